"""A vision tower out of a model folder, what belongs to it, and what identifies it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from patchword import checkpoint
from patchword.data.pictures import Preprocessing
from patchword.errors import ModelError
from patchword.tasks.answer import load_answerer
from patchword.tasks.caption import find_model, load
from patchword.tasks.retrieve import load_two_towers

_PREFIXES = {"caption": "tower", "answer": "tower", "retrieve": "vision", "align": "towers.vision"}
"""Per task the beginning of the names of its vision tower's weights; the last part is also the section of its config."""


def load_tower(name: str | Path) -> tuple[nn.Module, Preprocessing]:
    """The vision tower of any model that has one, `hub:ID` for a CLIP of transformers. Raises ModelError for a model without."""
    task = "retrieve" if str(name).startswith("hub:") else _task(find_model(name))
    if task in ("caption", "answer"):
        reader = load(name, "cpu") if task == "caption" else load_answerer(name, "cpu")
        return reader.model.tower, reader.settings.preprocessing
    towers = load_two_towers(name, "cpu")
    return towers.model.vision, towers.settings.preprocessing


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
    """What a feature store calls its tower: adapters count only where what is stored passed them."""
    passed = until_layer is None or until_layer > _first_adapted(tower)
    return checkpoint.weights_digest(tower) if passed else checkpoint.tower_digest(tower)


def _first_adapted(tower: nn.Module) -> int:
    return len(tower.layers) - len(getattr(tower, "adapters", ()))


def _task(folder: Path) -> str:
    task = checkpoint.read_config(folder).get("task")
    if task not in _PREFIXES:
        raise ModelError(f"{folder} is a model for {task!r}: a vision tower comes with models for {', '.join(_PREFIXES)}")
    return task
