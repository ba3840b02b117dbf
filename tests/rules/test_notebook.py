"""The notebook of examples/ runs from its first cell to its last, and shows what its texts promise."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def shown() -> list[Any]:
    """The value of the last expression of each code cell, as a notebook would show it; None where a cell ends
    otherwise.
    """
    names: dict[str, Any] = {}
    values = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, str(NOTEBOOK), "exec"), names)
            values.append(
                None
                if last is None
                else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)
            )
    return values


def test_the_notebook_shows_what_its_texts_promise(shown):
    model, caption, _, alternatives, labels, scores, _ = shown
    assert repr(model).startswith("<CaptioningModel ")
    assert caption.text and caption._repr_html_().count("<figure") > len(caption.tokens)
    assert len(alternatives) == 2 and all(alternatives)
    assert sum(labels.values()) == pytest.approx(1, abs=0.01)
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= set(scores)


def test_the_notebook_is_stored_without_results():
    """Results of another day would be taken for those of the reader."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
