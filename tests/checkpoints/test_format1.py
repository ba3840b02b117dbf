"""Model folders written by the code before format 2 open, and give what that code gave (tests/kits/format1)."""

import json
import shutil

import pytest
from mutants import ASKED, KIT

from patchword.checkpoints.folder import FORMAT, read_config
from patchword.interface import load
from patchword.tasks.table import TASKS

OUTPUTS = json.loads((KIT / "outputs.json").read_text(encoding="utf-8"))


def close(found, wanted):
    """Numbers within the rounding of another type of machine, everything else equal."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return (
        found == pytest.approx(wanted, rel=1e-4, abs=1e-6) if isinstance(wanted, float) else found == wanted
    )


def test_every_task_of_that_time_has_a_folder():
    """Tasks that came after format 1 have none."""
    assert set(ASKED) == set(OUTPUTS) and set(ASKED) <= set(TASKS)


@pytest.mark.parametrize("task", ASKED)
def test_opens_and_gives_the_same(task):
    assert json.loads((KIT / task / "config.json").read_text(encoding="utf-8"))["format"] == 1
    model = load(KIT / task, "cpu")
    assert close(ASKED[task](model), OUTPUTS[task])
    assert model.facts.name == task
    assert model.facts.description == f"a tiny {task}" and model.facts.licence == "none"


@pytest.mark.parametrize("task", ASKED)
def test_saved_anew_it_is_of_the_newest_format_and_the_same_model(task, tmp_path):
    first = load(KIT / task, "cpu")
    first.save(tmp_path / "model")
    config = read_config(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["format"] == FORMAT
    assert {"model.safetensors", "vocab.json"} <= set(config["files"])
    again = load(tmp_path / "model", "cpu")
    assert ASKED[task](again) == ASKED[task](first)
    assert again.facts == first.facts and again.settings == first.settings


def test_facts_of_a_captioner_arrive_in_their_fields(tmp_path):
    facts = load(KIT / "caption", "cpu").facts
    config = json.loads((KIT / "caption" / "config.json").read_text(encoding="utf-8"))
    assert facts.scores == config["scores"] and facts.scores_on == config["scores_on"]
    assert facts.limits == config["limits"] and facts.command == config["command"]


def test_a_fact_without_a_field_is_kept_as_a_note(tmp_path):
    folder = shutil.copytree(KIT / "retrieve", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"funding": "none"}))
    model = load(folder, "cpu")
    assert model.facts.notes == {"funding": "none"}
    model.save(tmp_path / "again")
    assert load(tmp_path / "again", "cpu").facts == model.facts
    assert "funding" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
