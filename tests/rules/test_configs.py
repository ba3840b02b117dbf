"""Every configuration that comes with the package is a run that could begin: its settings are valid, and its
learning rates name parameters of its model.
"""

from pathlib import Path

import pytest
import torch

from patchword.composed import CaptionModel
from patchword.config import read_toml, validate, write_toml
from patchword.layers.codebook import Codebook
from patchword.lookup import look_up
from patchword.tasks.answer.composed import AnswerModel
from patchword.tasks.label.structure import StructureRun
from patchword.tasks.table import TASKS
from patchword.train.groups import assign

CONFIGS = Path(__file__).resolve().parents[2] / "src" / "patchword" / "configs"
FILES = sorted(CONFIGS.rglob("*.toml"))
CAPTIONING = [path for path in FILES if 'task = "caption"' in path.read_text(encoding="utf-8")]
ANSWERING = [path for path in FILES if 'task = "answer"' in path.read_text(encoding="utf-8")]
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_valid(path):
    values = read_toml(path)
    schema = StructureRun if values["task"] == "structure" else look_up(TASKS[values["task"]].run)
    settings = validate(values, schema, str(path))
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(CONFIGS).as_posix().removesuffix(".toml")
    assert settings.out == f"runs/{name}"
    assert text.startswith("# ") and f" {name}" in text.split("\ntask =")[0], "the header gives the command"


@pytest.mark.parametrize("path", CAPTIONING, ids=lambda path: path.stem)
def test_learning_rates_name_parameters_of_the_model(path):
    settings = validate(read_toml(path), look_up(TASKS["caption"].run), str(path))
    tower = settings.tower
    if tower.kind == "clip":
        tower = tower.model_copy(
            update={"source": None, "revision": None, "architecture": {**TINY_CLIP, "image_size": 32}}
        )
    if tower.kind.startswith("efficientnet"):
        tower = tower.model_copy(update={"weights": "none"})
    width = 8 if tower.kind == "clip" else getattr(tower, "names_width", None) or tower.shared_width
    codebook = (
        Codebook([f"word {n}" for n in range(64)], torch.randn(64, width), "none")
        if settings.codebook
        else None
    )
    model = CaptionModel.build(tower, settings.captioner, vocabulary_size=12, codebook=codebook)
    names = [name for name, _ in model.named_parameters()]
    for stage in settings.stage:
        assert set(assign(names, stage.learning_rates)) == set(names)


@pytest.mark.parametrize("path", ANSWERING, ids=lambda path: path.stem)
def test_answering_configs_fit_their_model(path):
    settings = validate(read_toml(path), look_up(TASKS["answer"].run), str(path))
    tower = settings.tower
    if tower.kind == "clip":
        tower = tower.model_copy(
            update={"source": None, "revision": None, "architecture": {**TINY_CLIP, "image_size": 32}}
        )
    codebook = Codebook(["dog", "cat", "red"], torch.randn(3, 8), "none") if settings.codebook else None
    questions = settings.answerer.model_copy(update={"width": 16, "heads": 2, "hidden": 16})
    model = AnswerModel.build(
        tower, questions, settings.generator, vocabulary_size=12, answers=3, codebook=codebook
    )
    assert model.tower_is_frozen == (tower.kind == "clip")
    assert settings.data.max_words < settings.answerer.max_positions
    for stage in settings.stage:
        assert assign([name for name, _ in model.named_parameters()], stage.learning_rates)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_written_as_it_is_read(path, tmp_path):
    values = read_toml(path)
    (tmp_path / "again.toml").write_text(write_toml(values), encoding="utf-8")
    assert read_toml(tmp_path / "again.toml") == values


def test_a_configuration_is_found_by_name_from_anywhere(tmp_path, monkeypatch, patchword):
    """Its name as the list prints it, and the path that it has had in earlier checkouts; a file of one's own
    comes first.
    """
    monkeypatch.chdir(tmp_path)
    shipped = read_toml(CONFIGS / "ablation" / "fsgr.toml")
    assert read_toml("ablation/fsgr") == read_toml("configs/ablation/fsgr.toml") == shipped
    (tmp_path / "own-data").write_text('task = "mine"\n', encoding="utf-8")
    assert read_toml("own-data") == {"task": "mine"}
    status, out, _ = patchword("train", "--list")
    listed = [line.split("  ")[0] for line in out.splitlines()]
    assert not status and listed == sorted(
        path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES
    )
    assert all(line.split("  ")[1] for line in out.splitlines())


def test_a_configuration_that_is_not_there_is_said_with_those_that_are_near(patchword, tmp_path):
    status, _, err = patchword("train", "show-tel-flickr8k")
    assert status == 2 and "no configuration at show-tel-flickr8k" in err and "show-tell-flickr8k" in err
    status, _, err = patchword("train", tmp_path)
    assert status == 2 and f"{tmp_path} is a folder" in err
