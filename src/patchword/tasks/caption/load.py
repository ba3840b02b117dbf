"""A captioning model by its name, from a folder, the shipped ones, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.model import (
    find_model,
    hub_id,
    is_hub,
    read_settings,
    read_vocabulary,
    restore_weights,
)
from patchword.composed import CaptionModel
from patchword.device import choose_device
from patchword.layers.codebook import Codebook
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.prototypes import FILE as PROTOTYPES
from patchword.tasks.caption.prototypes import nearest_captions, read_prototypes


def load(name: str | Path, device: str | None = None) -> Any:
    """A captioning model by the name of a shipped one, a folder, a hub id of a Patchword folder, or `hub:ID` of a transformers captioner.

    Raises ModelError when there is no such model, or its folder is incomplete or of another format.
    """
    chosen = choose_device(device)
    if is_hub(name):
        from patchword.tasks.caption.hub import HubCaptioner

        return HubCaptioner.load(hub_id(name), chosen)
    folder = find_model(name)
    settings, card = read_settings(folder, "caption", ModelSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    codebook = None if settings.codebook is None else Codebook.described(settings.codebook)
    model = CaptionModel.build(
        settings.tower, settings.captioner, settings.vocabulary_size, codebook, settings.concepts is not None
    )
    restore_weights(model, model.captioner, "captioner.", folder, settings.tower_sha256)
    if settings.tower_sha256 is not None and model.familiarity is not None:
        checkpoint.load_weights(model.familiarity, folder, "familiarity.")
    if (folder / PROTOTYPES).exists():
        card["prototype_captions"] = nearest_captions(read_prototypes(folder))
    return CaptioningModel(model, settings, vocabulary, {"name": folder.name, **card}, chosen)
