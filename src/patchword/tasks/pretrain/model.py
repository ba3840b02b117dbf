"""A pre-trained tower, as other tasks take it: `tower_from`, `vision_from`, `text_from`, `probe-linear`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_checked,
    find_model,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.composed import (
    TextTowerSettings,
    TowerSettings,
    build_text_tower,
    build_tower,
)
from patchword.data.captions import padded
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.device import choose_device
from patchword.errors import ModelError
from patchword.layers.features import masked_mean
from patchword.lookup import look_up
from patchword.tasks.describe import describe
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers import layered


class PretrainedSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a pre-trained tower, apart from the facts about its training."""

    tower: TowerSettings | None = None
    preprocessing: Preprocessing | None = None
    text: TextTowerSettings | None = None
    vocabulary_size: int | None = None
    max_words: int | None = None


class PretrainedTower:
    """A tower with what is needed to feed it: preprocessing, or a vocabulary."""

    def __init__(
        self,
        tower: nn.Module,
        settings: PretrainedSettings,
        vocabulary: Vocabulary | Subwords | Pieces | None,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.tower = tower.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device

    @property
    def model(self) -> nn.Module:
        """The tower, under the name that the network of every model has."""
        return self.tower

    def __repr__(self) -> str:
        part: Any = self.settings.tower or self.settings.text
        return describe(self, f"a pre-trained {part.kind} tower", f"width {self.tower.width}")

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> np.ndarray:
        """The mean patch of each picture (n, C), float32. Raises ModelError for a text tower."""
        preprocessing = self.settings.preprocessing
        if preprocessing is None:
            raise ModelError(f"{self.facts.name} is a text tower: it reads no pictures")
        vectors = [np.zeros((0, self.tower.width), dtype=np.float32)]
        for first in range(0, len(pictures), batch):
            opened = [open_picture(picture) for picture in pictures[first : first + batch]]
            pixels_BHWC = np.stack([preprocessing.apply(picture) for picture in opened])
            pixels_B3HW = torch.from_numpy(preprocessing.normalise(pixels_BHWC)).to(self.device)
            features = self.tower(pixels_B3HW)
            vectors.append(masked_mean(features.grid_BNC, features.mask_BN).float().cpu().numpy())
        return np.concatenate(vectors)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The mean token of each text (n, C), float32. Raises ModelError for a picture tower."""
        if self.vocabulary is None or self.settings.max_words is None:
            raise ModelError(f"{self.facts.name} is a picture tower: it reads no texts")
        rows = [self.vocabulary.encode(text)[: self.settings.max_words] for text in texts]
        ids_BL, _ = padded(rows, self.vocabulary.special, ends=True)
        features = self.tower(ids_BL.to(self.device), (ids_BL != self.vocabulary.special.pad).to(self.device))
        return masked_mean(features.tokens_BLC, features.mask_BL).float().cpu().numpy()

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Writes the model folder, which appears under its name when it is complete; `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        part = "text" if self.settings.tower is None else "tower"
        settings = self.settings.model_copy(update={part: layered.by_value(self.tower)})
        weights = {f"{part}.{name}": value for name, value in self.tower.state_dict().items()}
        facts = self.facts.with_sources(published_commits(self.tower))
        words = None if self.vocabulary is None else self.vocabulary.to_json()
        checkpoint.write_model(folder, "pretrain", settings, facts, weights, words, half)


def load_pretrained(name: str | Path, device: str | None = None) -> Any:
    """Loads a pre-trained tower, or a two-stream model, by its folder or hub id.

    Raises ModelError where it is none, or its folder is incomplete or of another format.
    """
    folder = find_model(name)
    if "vilbert" in checkpoint.read_config(folder):
        return look_up("tasks.pretrain.vilbert_model:load_two_streams")(folder, device)
    settings, facts = read_settings(folder, "pretrain", PretrainedSettings)
    vocabulary, vision, text = None, settings.tower, settings.text
    if vision is not None:
        tower = build_checked(folder, lambda: build_tower(vision), "tower.")
    elif text is not None and settings.vocabulary_size is not None:
        build_text_tower(text)  # what it imports must be there before sizes are compared
        vocabulary = read_vocabulary(folder, settings.vocabulary_size)
        tower = build_checked(folder, lambda: build_text_tower(text), "text.")
    else:
        raise ModelError(f"{folder}: config.json names neither a tower nor a text tower: copy it anew")
    return PretrainedTower(tower, settings, vocabulary, facts, choose_device(device))
