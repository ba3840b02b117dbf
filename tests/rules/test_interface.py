"""`patchword.__all__` is the Python interface: every public name, documented, imported when it is asked for,
and typed.
"""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import patchword

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ("load", "train", "index", "open_index", "score", "evaluate")


def test_all_names_the_errors_of_the_tree():
    from patchword import errors

    tree = {name for name, one in vars(errors).items() if isinstance(one, type)}
    assert tree == {name for name in patchword.__all__ if hasattr(errors, name)}
    assert all(issubclass(getattr(patchword, name), patchword.PatchwordError) for name in tree)


def test_all_names_what_a_type_checker_is_shown():
    """Names are looked up while running, and imported for type checkers: both lists are the same, each name
    once.
    """
    source = ast.parse((ROOT / "src" / "patchword" / "__init__.py").read_text(encoding="utf-8"))
    shown = {
        name.asname or name.name
        for branch in source.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert {"__version__", *shown} == set(patchword.__all__)
    assert len(patchword.__all__) == len(set(patchword.__all__))
    assert set(patchword.__all__) <= set(dir(patchword))


@pytest.mark.parametrize("name", [name for name in patchword.__all__ if name != "__version__"])
def test_a_public_name_is_documented(name):
    found = getattr(patchword, name)
    text = inspect.getdoc(found)
    assert text and not text.startswith("str(object"), name
    for method, function in inspect.getmembers(found, inspect.isfunction):
        if not method.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{method}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_say_what_they_take_return_and_raise(name):
    """`train` is a package that can be called: its function stands in the interface."""
    from patchword import interface

    function = getattr(interface, name, None) or getattr(patchword, name)
    signature, text = inspect.signature(function), inspect.getdoc(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())
    assert "Raises" in text
    if "Args:" in text:
        assert all(f"{parameter}: " in text for parameter in signature.parameters)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        patchword.lod  # noqa: B018


def test_training_is_called_by_the_name_of_its_package():
    """Whichever is imported first, `patchword.train` is the package and can be called."""
    from patchword.train.settings import RunSettings

    assert RunSettings.__name__ == "RunSettings" and callable(patchword.train)
    with pytest.raises(patchword.ConfigError, match="no configuration at nowhere.toml"):
        patchword.train("nowhere.toml")


def test_models_and_results_show_themselves(towers, aligner, photos):
    two = patchword.load(towers, "cpu", task="retrieve")
    assert repr(two).startswith("<TwoTowerModel towers: convolutional and bert, vectors of 12, ")
    assert repr(two).endswith(" parameters, on cpu>")
    assert repr(patchword.load(aligner, "cpu")).startswith(
        "<AlignmentModel aligner: patch-word alignment over"
    )
    assert isinstance(patchword.load(aligner, "cpu", task="retrieve"), patchword.TwoTowerModel)


def test_load_refuses_a_model_for_another_task(towers):
    with pytest.raises(
        patchword.ModelError, match="is a model for 'retrieve', and one for 'caption' is needed"
    ):
        patchword.load(towers, task="caption")
    with pytest.raises(patchword.ConfigError, match="task is 'draw', expected one of caption, "):
        patchword.load(towers, task="draw")


def test_training_and_captions_from_python(config, photos, tmp_path):
    """A run folder as `patchword train` makes it, whose model captions a list that a notebook shows picture
    by picture.
    """
    settings = {"out": str(tmp_path / "run"), "stage.0.epochs": 1, "stage.1.epochs": 1, "data.limit": 4}
    run = patchword.train(config, settings, device="cpu")
    resolved = json.loads((run / "config.json").read_text())
    assert run == tmp_path / "run" and resolved["data"]["limit"] == 4
    model = patchword.load(run / "best", "cpu")
    assert repr(model).startswith("<CaptioningModel run: show_attend_tell over convolutional, ")
    captions = model.caption([photos / "red.png", photos / "bl\u00e5.png"])
    assert isinstance(captions, patchword.Captions) and len(captions) == 2
    shown = captions._repr_html_()
    assert shown.count('class="said"') == 2 and shown.count("<style>") == 1
    captions.extend([captions[0]] * patchword.Captions.SHOWN)
    shown = captions._repr_html_()
    assert (
        shown.count('class="said"') == patchword.Captions.SHOWN and "2 more captions are not shown" in shown
    )


def test_an_index_from_python(towers, photos, tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install patchword[search]")
    told = []
    report = patchword.index(photos, tmp_path / "index", towers, progress=lambda *pair: told.append(pair))
    assert report.added == report.pictures == 2 and len(report.bad) == 1
    assert told[-1] == (3, 3)
    with patchword.open_index(tmp_path / "index") as opened:
        vector_E = patchword.load(towers, task="retrieve").embed_texts(["red ball"])[0]
        assert {Path(match.path).name for match in opened.search(vector_E)} == {"red.png", "bl\u00e5.png"}


def test_evaluate_refuses_a_captioner():
    with pytest.raises(patchword.ConfigError, match="flickr8k is one for 'caption': caption, then `score`"):
        patchword.evaluate("flickr8k", "data.json", "photos")


@pytest.mark.parametrize("name", ["score", "load", "Caption", "IndexReport"])
def test_a_public_name_loads_no_torch(name):
    code = f"import sys, patchword; patchword.{name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
