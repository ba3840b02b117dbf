"""A vision tower out of a model folder, what belongs to it, and what identifies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from torch import nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import build_checked, check_published, find_model, shipped_models
from patchword.composed import TowerSettings, build_tower, reader_preprocessing
from patchword.config import read_toml, shipped_configs, validate
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError, ModelError
from patchword.hub import hub_name, is_hub
from patchword.towers.settings import ClipTowerConfig, EfficientNetLiteConfig

SECTIONS = ("tower", "vision")
"""Sections of config.json that describe a vision tower; the names of its weights begin or go on with the
same word."""


class TowerSection(BaseModel, frozen=True):
    """The tower of a configuration or of a model folder, whatever else stands there."""

    tower: TowerSettings = Field(discriminator="kind")


class StoredTowerSection(TowerSection, frozen=True):
    """The tower of a model folder, with how pictures are prepared for it."""

    preprocessing: Preprocessing


PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
"""Towers that are named by themselves; their weights come in packages (`towers/packages.py`)."""


def load_tower(name: str | Path) -> tuple[nn.Module, Preprocessing]:
    """The vision tower of any model that has one, `hub:ID` for a CLIP of transformers; or a bare tower: by
    its own name (efficientnet-lite2), or by the TOML of a training (its path, or the name of one that came
    with the package and is no model's as well), whose [tower] or [vision] it is.

    Raises ModelError for a model without a tower, ConfigError for a configuration without one.
    """
    if str(name) in PACKAGED:
        return _bare(build_tower(EfficientNetLiteConfig(kind=str(name))))
    if Path(name).suffix == ".toml" or _names_a_training(str(name)):
        return _bare(_tower_of(Path(name)))
    if is_hub(name):
        source, revision = hub_name(name)
        tower = build_tower(ClipTowerConfig(source=source, revision=revision))
        return tower, reader_preprocessing(tower.preprocessing)
    folder = find_model(name)
    config = checkpoint.read_config(folder)
    checkpoint.check_files(folder, config)
    section = _section(folder, config)
    stored = {"tower": config[section], "preprocessing": config["preprocessing"]}
    settings = validate(stored, StoredTowerSection, str(folder / "config.json"))
    if config.get("tower_sha256") is None:
        prefix = checkpoint.prefix_of(folder, section)
        tower = build_checked(folder, lambda: build_tower(settings.tower), prefix)
        return tower, settings.preprocessing
    tower = build_tower(settings.tower)
    check_published(tower, folder, str(config["tower_sha256"]))
    if getattr(tower, "adapters", ()):
        checkpoint.load_weights(tower.adapters, folder, "tower.adapters.")
    return tower, settings.preprocessing


def _names_a_training(name: str) -> bool:
    """Whether a name is that of a configuration that came with the package, and of nothing else."""
    return name in shipped_configs() and name not in shipped_models() and not Path(name).exists()


def _tower_of(path: Path) -> nn.Module:
    settings = read_toml(path)
    sections = [section for section in ("tower", "vision") if section in settings]
    if not sections:
        raise ConfigError(
            f"{path} has no [tower] or [vision] section: give the configuration of a training that has one"
        )
    tower = build_tower(validate({"tower": settings[sections[0]]}, TowerSection, str(path)).tower)
    if settings.get("tower_from"):
        load_tower_weights(tower, find_model(settings["tower_from"]))
    return tower


def _bare(tower: nn.Module) -> tuple[nn.Module, Preprocessing]:
    return tower, reader_preprocessing(tower.preprocessing)


def load_tower_weights(tower: nn.Module, folder: Path) -> None:
    """The tower of a model folder into `tower`, whose adapters stay as they are where the folder's tower has
    none.

    Raises ModelError for a model without a tower, or with one of another shape.
    """
    config = checkpoint.read_config(folder)
    checkpoint.check_files(folder, config)
    section = _section(folder, config)
    prefix = checkpoint.prefix_of(folder, section)
    if getattr(tower, "adapters", ()) and not config[section].get("adapters"):
        checkpoint.load_weights(tower.model, folder, f"{prefix}model.")
    elif lacks_class_branch(tower, folder):
        tower.drop_class_branch()
        checkpoint.load_weights(tower, folder, prefix)
        tower.make_class_branch()
    else:
        checkpoint.load_weights(tower, folder, prefix)


def lacks_class_branch(tower: nn.Module, folder: Path) -> bool:
    """Whether a tower keeps the classes of its trained blocks apart, and the tower of a model folder was
    frozen and does not.
    """
    if getattr(tower, "class_layers", None) is None:
        return False
    config = checkpoint.read_config(folder)
    return config[_section(folder, config)].get("trainable_from") is None


def first_trained(tower: nn.Module) -> int:
    """The first layer in which something may learn, an adapter or the layer itself; the number of layers
    where nothing may.
    """
    trained = tower.config.trainable_from
    return min(_first_adapted(tower), len(tower.layers) if trained is None else trained)


def stored_digest(tower: nn.Module, until_layer: int | None) -> str:
    """What a feature store calls its tower: only what the stored tokens passed counts, and a store outlives
    the training of the rest.
    """
    return (
        checkpoint.weights_digest(tower)
        if until_layer is None
        else checkpoint.lower_digest(tower, until_layer)
    )


def _first_adapted(tower: nn.Module) -> int:
    return len(tower.layers) - len(getattr(tower, "adapters", ()))


def _section(folder: Path, config: dict[str, Any]) -> str:
    for section in SECTIONS:
        if isinstance(config.get(section), dict) and "preprocessing" in config:
            return section
    raise ModelError(
        f"{folder} is a model for {config.get('task')!r} without a vision tower of its own: name another "
        "model"
    )
