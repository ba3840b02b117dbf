"""Two towers by their name, from a folder, the shipped ones, or the hub."""

from __future__ import annotations

from pathlib import Path

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import find_model, hub_id, is_hub, read_settings, read_vocabulary
from patchword.device import choose_device
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers


def load_two_towers(name: str | Path, device: str | None = None) -> TwoTowerModel:
    """A two-tower model by the name of a shipped one, a folder, a hub id, or `hub:ID` of a CLIP of transformers; of a model for
    patch-word alignment its two towers.

    Raises ModelError when it is no such model.
    """
    if is_hub(name):
        from patchword.tasks.retrieve.hub import load_clip

        return load_clip(hub_id(name), choose_device(device))
    folder = find_model(name)
    task = "align" if checkpoint.read_config(folder).get("task") == "align" else "retrieve"
    settings, card = read_settings(folder, task, TwoTowerSettings)
    model = build_two_towers(settings)
    checkpoint.load_weights(model, folder, "towers." if task == "align" else "")
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    return TwoTowerModel(model, settings, vocabulary, card, choose_device(device))
