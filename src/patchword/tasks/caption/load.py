"""A captioning model by its name, from a folder, the shipped ones, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchword.checkpoints.folder import is_exported
from patchword.checkpoints.model import build_over_tower, find_model, read_settings, read_vocabulary
from patchword.composed import CaptionModel
from patchword.device import choose_device
from patchword.errors import ConfigError
from patchword.hub import hub_name, is_hub
from patchword.layers.codebook import Codebook
from patchword.lookup import look_up
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.prototypes import FILE as PROTOTYPES
from patchword.tasks.caption.prototypes import nearest_captions, read_prototypes


def load(name: str | Path, device: str | None = None) -> Any:
    """A captioning model by the name of a shipped one, a folder, an exported folder, a hub id of a Patchword
    folder, or `hub:ID` of a transformers captioner.

    Raises ModelError when there is no such model, or its folder is incomplete or of another format.
    """
    chosen = choose_device(device)
    if is_hub(name):
        return look_up("tasks.caption.hub:HubCaptioner").load(*hub_name(name), chosen)
    if is_exported(name):
        if device not in (None, "cpu"):
            raise ConfigError(f"{name} is exported and runs on the processor: leave device {device!r} out")
        return look_up("tasks.caption.exported:ExportedCaptioner")(name)
    folder = find_model(name)
    settings, facts = read_settings(folder, "caption", ModelSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)

    def build(tower: nn.Module) -> CaptionModel:
        codebook = None if settings.codebook is None else Codebook.described(settings.codebook)
        size, familiar = settings.vocabulary_size, settings.concepts is not None
        ngrams = None if settings.consensus is None else settings.consensus.ngrams
        return CaptionModel.over(tower, settings.captioner, size, codebook, familiar, ngrams)

    model = build_over_tower(folder, settings.tower, settings.tower_sha256, build)
    known = nearest_captions(read_prototypes(folder)) if (folder / PROTOTYPES).exists() else None
    return CaptioningModel(model, settings, vocabulary, facts, chosen, known)
