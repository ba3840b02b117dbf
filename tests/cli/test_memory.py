import json

import pytest
from typer.testing import CliRunner

from patchword.cli import app
from patchword.errors import ModelError


def prototype(alive=True, attention=0.1, contexts=("a dog runs",)):
    return {"alive": alive, "bank_share": 0.25, "attention": attention, "contexts": list(contexts)}


@pytest.fixture()
def folder(tmp_path):
    first = [
        prototype(attention=0.02),
        prototype(attention=0.3, contexts=("a red ball", "the ball")),
        prototype(alive=False, contexts=()),
    ]
    described = {"placement": "self_concat", "layers": [first, [prototype(attention=0.0)]]}
    (tmp_path / "prototypes.json").write_text(json.dumps(described))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["memory", *map(str, arguments)])


def test_lists_contexts_use_and_dead_prototypes(folder):
    text = run(folder).output
    assert "layer 0: 2 prototypes, 1 dead, 0 never attended to" in " ".join(text.split())
    assert text.index("a red ball") < text.index("a dog runs")  # the most attended first
    assert "30.00%" in text
    assert "layer 1: 1 prototype, 0 dead, 1 never attended to" in " ".join(text.split())


def test_one_layer_and_json(folder):
    assert "layer 0" not in run(folder, "--layer", 1).output
    assert json.loads(run(folder, "--json").output)["layers"][0][1]["attention"] == 0.3


def test_errors(folder, tmp_path):
    for arguments, message in (
        ([folder, "--layer", 5], "has 2 decoder layers with prototypes, counted from 0; there is no layer 5"),
        ([tmp_path / "nothing"], "no model at"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, ModelError) and message in str(error)
    (folder / "prototypes.json").write_text("[]")
    assert "lists no prototypes" in str(run(folder).exception)
    (folder / "prototypes.json").write_text("{")
    assert "is not JSON" in str(run(folder).exception)


def test_kind_6_a_shipped_model_is_found_by_its_name():
    shown = run("flickr8k", "--top", 1)
    assert "flickr8k has no prototype memory" in str(shown.exception)


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        ({"kind": "show_tell"}, "has no prototype memory: it is show_tell"),
        (
            {"kind": "caption_transformer", "memory": None},
            "has no prototype memory: it is caption_transformer",
        ),
        (
            {"kind": "caption_transformer", "memory": {}},
            "has a prototype memory, and its prototypes.json is missing",
        ),
        (None, "has no prototype memory: it is no captioner"),
    ],
)
def test_kind_6_why_there_are_no_prototypes(tmp_path, captioner, message):
    (tmp_path / "config.json").write_text(json.dumps({"captioner": captioner}))
    error = run(tmp_path).exception
    assert isinstance(error, ModelError) and message in str(error)
