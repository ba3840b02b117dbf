"""A vision tower out of a model folder, with the preprocessing that belongs to it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from patchword import checkpoint
from patchword.data.pictures import Preprocessing
from patchword.errors import ModelError
from patchword.tasks.caption import find_model, load
from patchword.tasks.retrieve import load_two_towers


def load_tower(name: str | Path) -> tuple[nn.Module, Preprocessing]:
    """The vision tower of a captioning or two-tower model. Raises ModelError for a model without one."""
    folder = find_model(name)
    task = checkpoint.read_config(folder).get("task")
    if task == "caption":
        captioning = load(folder, "cpu")
        return captioning.model.tower, captioning.settings.preprocessing
    if task in ("retrieve", "align"):
        towers = load_two_towers(folder, "cpu")
        return towers.model.vision, towers.settings.preprocessing
    raise ModelError(f"{folder} is a model for {task!r}; a vision tower comes with models for 'caption', 'retrieve' and 'align'")
