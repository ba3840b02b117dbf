"""Two towers by their name, from a folder, the shipped ones, or the hub."""

from __future__ import annotations

from pathlib import Path

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import build_checked, find_model, read_settings, read_vocabulary
from patchword.device import choose_device
from patchword.hub import hub_name, is_hub
from patchword.lookup import look_up
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers

_OF_ALIGNMENT = ("patch_slimming", "region_alignment", "codebook")
"""Sections of a model for patch-word alignment that its towers do not need."""


def load_two_towers(name: str | Path, device: str | None = None) -> TwoTowerModel:
    """A two-tower model by the name of a shipped one, a folder, a hub id, or `hub:ID` of a CLIP of
    transformers; of a model for patch-word alignment its two towers.

    Raises ModelError when it is no such model.
    """
    if is_hub(name):
        return look_up("tasks.retrieve.hub:load_clip")(*hub_name(name), choose_device(device))
    folder = find_model(name)
    of_alignment = checkpoint.read_config(folder).get("task") == "align"
    task, prefix = ("align", "towers.") if of_alignment else ("retrieve", "")
    settings, facts = read_settings(folder, task, TwoTowerSettings, _OF_ALIGNMENT)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    model = build_checked(folder, lambda: build_two_towers(settings), prefix)
    return TwoTowerModel(model, settings, vocabulary, facts, choose_device(device))
