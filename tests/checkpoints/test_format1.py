"""Model folders written by the code before format 2 open, and give what that code gave (tests/kits/format1)."""

import json
import shutil

import pytest
from mutants import ASKED, KIT

from patchword.checkpoints.folder import FORMAT, read_config, record_digests
from patchword.errors import ModelError
from patchword.interface import load
from patchword.tasks.table import TASKS
from patchword.tensors import read_tensors, write_tensors

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


def test_what_its_files_are_can_be_recorded_and_then_a_flipped_bit_is_noticed(tmp_path, caplog, patchword):
    folder = shutil.copytree(KIT / "caption", tmp_path / "model")
    before = load(folder, "cpu")
    assert "patchword models --check" in caplog.text and "--record" in caplog.text
    status, said, _ = patchword("models", "--check", folder)
    assert status == 0 and "numbers were not compared" in said
    status, said, _ = patchword("models", "--check", folder, "--record")
    assert status == 0 and "recorded of model.safetensors, prototypes.json, vocab.json" in said
    caplog.clear()
    after = load(folder, "cpu")
    assert not caplog.records and ASKED["caption"](after) == ASKED["caption"](before)
    assert after.facts == before.facts and after.settings == before.settings
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="not the file that was written"):
        load(folder, "cpu")


def test_weights_that_are_no_numbers_are_not_recorded(tmp_path):
    folder = shutil.copytree(KIT / "caption", tmp_path / "model")
    tensors = read_tensors(folder / "model.safetensors")
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = float("nan")
    write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(ModelError, match="is not finite"):
        record_digests(folder)
    assert "files" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
