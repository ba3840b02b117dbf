"""A vision tower out of a model folder, what belongs to it, and what identifies it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field
from torch import nn

from patchword import checkpoint
from patchword.composed import TowerSettings, build_tower, reader_preprocessing
from patchword.config import read_toml, validate
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError, ModelError
from patchword.tasks.answer import load_answerer
from patchword.tasks.caption import find_model, load
from patchword.tasks.retrieve import load_two_towers
from patchword.towers.settings import EfficientNetLiteConfig

_PREFIXES = {"caption": "tower", "answer": "tower", "retrieve": "vision", "align": "towers.vision"}
"""Per task the beginning of the names of its vision tower's weights; the last part is also the section of its config."""


PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
"""Towers that are named by themselves; their weights come in packages (`towers/packages.py`)."""


class TowerSection(BaseModel):
    """The tower of a configuration, whatever else stands there."""

    tower: TowerSettings = Field(discriminator="kind")


def load_tower(name: str | Path) -> tuple[nn.Module, Preprocessing]:
    """The vision tower of any model that has one, `hub:ID` for a CLIP of transformers; or a bare tower: by its own name
    (efficientnet-lite2), or by the TOML of a training, whose [tower] or [vision] it is.

    Raises ModelError for a model without a tower, ConfigError for a configuration without one.
    """
    if str(name) in PACKAGED:
        return _bare(build_tower(EfficientNetLiteConfig(kind=str(name))))
    if Path(name).suffix == ".toml":
        return _bare(_tower_of(Path(name)))
    task = "retrieve" if str(name).startswith("hub:") else _task(find_model(name))
    if task in ("caption", "answer"):
        reader = load(name, "cpu") if task == "caption" else load_answerer(name, "cpu")
        return reader.model.tower, reader.settings.preprocessing
    towers = load_two_towers(name, "cpu")
    return towers.model.vision, towers.settings.preprocessing


def _tower_of(path: Path) -> nn.Module:
    settings = read_toml(path)
    sections = [section for section in ("tower", "vision") if section in settings]
    if not sections:
        raise ConfigError(f"{path} has no [tower] or [vision] section: give the configuration of a training that has one")
    tower = build_tower(validate({"tower": settings[sections[0]]}, TowerSection, str(path)).tower)
    if settings.get("tower_from"):
        load_tower_weights(tower, find_model(settings["tower_from"]))
    return tower


def _bare(tower: nn.Module) -> tuple[nn.Module, Preprocessing]:
    return tower, reader_preprocessing(tower.preprocessing)


def load_tower_weights(tower: nn.Module, folder: Path) -> None:
    """The tower of a model folder into `tower`, whose adapters stay as they are where the folder's tower has none.

    Raises ModelError for a model without a tower, or with one of another shape.
    """
    prefix = _PREFIXES[_task(folder)]
    stored = checkpoint.read_config(folder)[prefix.rpartition(".")[2]]
    if getattr(tower, "adapters", ()) and stored.get("adapters") is None:
        checkpoint.load_weights(tower.model, folder, f"{prefix}.model.")
    else:
        checkpoint.load_weights(tower, folder, f"{prefix}.")


def first_trained(tower: nn.Module) -> int:
    """The first layer in which something may learn, an adapter or the layer itself; the number of layers where nothing may."""
    trained = tower.config.trainable_from
    return min(_first_adapted(tower), len(tower.layers) if trained is None else trained)


def stored_digest(tower: nn.Module, until_layer: int | None) -> str:
    """What a feature store calls its tower: only what the stored tokens passed counts, and a store outlives the training of the rest."""
    return checkpoint.weights_digest(tower) if until_layer is None else checkpoint.lower_digest(tower, until_layer)


def _first_adapted(tower: nn.Module) -> int:
    return len(tower.layers) - len(getattr(tower, "adapters", ()))


def _task(folder: Path) -> str:
    task = checkpoint.read_config(folder).get("task")
    if task not in _PREFIXES:
        raise ModelError(f"{folder} is a model for {task!r}: a vision tower comes with models for {', '.join(_PREFIXES)}")
    return task
