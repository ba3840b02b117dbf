"""A pre-trained two-stream model: how well a text fits a picture, and which region a phrase names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import build_over_tower, published_commits, read_settings, read_vocabulary
from patchword.composed import (
    TextTowerSettings,
    TowerModel,
    TowerSettings,
    build_text_tower,
    build_two_streams,
)
from patchword.data.captions import padded
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.device import choose_device
from patchword.errors import DataError, counted
from patchword.layers.regions import five
from patchword.models.pretraining.vilbert import Vilbert, VilbertConfig
from patchword.tasks.describe import describe
from patchword.tasks.pretrain.regions import candidates, see_regions
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords, remarks_on_length
from patchword.text.words import Vocabulary, refuse_no_text, refuse_no_texts
from patchword.towers import layered


class VilbertSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a two-stream model, apart from the facts about its training."""

    tower: TowerSettings
    text: TextTowerSettings
    vilbert: VilbertConfig
    preprocessing: Preprocessing
    vocabulary_size: int = Field(gt=4, le=10_000_000)
    max_words: int = Field(gt=0, le=100_000)
    classes: int = Field(ge=0, le=10_000_000)
    points: bool = False
    """Whether it was tuned on phrases with boxes."""
    tower_sha256: str | None = None


class VilbertModule(TowerModel):
    """The frozen eyes and the two streams."""

    def __init__(self, tower: nn.Module, vilbert: Vilbert, points: bool = False) -> None:
        """`points`: with a head that says of each region whether a phrase names it."""
        super().__init__(tower)
        self.vilbert = vilbert
        self.region_head = nn.Linear(vilbert.config.width, 1) if points else None

    @classmethod
    def over(cls, tower: Any, settings: VilbertSettings) -> VilbertModule:
        """Over a tower that is there."""
        vilbert = build_two_streams(settings.vilbert, settings.text, tower.width, settings.classes)
        return cls(tower, vilbert, settings.points)

    def region_logits(
        self, ids_BL: Tensor, mask_BL: Tensor, features_BNF: Tensor, places_BN5: Tensor
    ) -> Tensor:
        """Logit of each region but the whole picture being what the text names, (B, N - 1)."""
        assert self.region_head is not None  # built with `points`
        streams = self.vilbert(ids_BL, mask_BL, features_BNF, places_BN5)
        return self.region_head(streams.picture_BNW[:, 1:]).squeeze(-1)


class RegionScore(NamedTuple):
    """A region and how well a phrase fits it."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom as shares of the picture."""
    share: float
    """Probability that the phrase belongs to a picture of this region alone."""


class TwoStreamModel:
    """A two-stream model with its vocabulary and preprocessing."""

    def __init__(
        self,
        model: VilbertModule,
        settings: VilbertSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device

    def __repr__(self) -> str:
        return describe(
            self, f"two streams over {self.settings.tower.kind}", f"{self.settings.vilbert.pairs} joined"
        )

    @torch.inference_mode()
    def score(self, pictures: Sequence[Picture], texts: Sequence[str]) -> np.ndarray:
        """Probability that the n-th text belongs to the n-th picture, (n,) float32.

        Raises DataError for lists of different lengths or a text without a word that the model knows.
        """
        if len(pictures) != len(texts):
            raise DataError(
                f"{counted(len(pictures), 'picture')} and {counted(len(texts), 'text')}: give one for each"
            )
        features, _, boxes = self.see(pictures)
        return self._shares(texts, features, boxes).cpu().numpy()

    @torch.inference_mode()
    def point(self, picture: Picture, phrase: str, best: int = 3) -> list[RegionScore]:
        """The regions that a phrase fits best, best first. A model that was tuned on phrases reads all
        regions at once and says which is named; else each region is read as a picture of its own.

        Raises DataError for a phrase without a word that the model knows.
        """
        features_1NF, boxes_N4 = candidates(
            self.model.tower, self._pixels([picture]), self.settings.vilbert.regions
        )
        if self.settings.points:
            ids_BL, real_BL = self._read([phrase])
            places_BN5 = five(boxes_N4).to(self.device)[None]
            shares = self.model.region_logits(ids_BL, real_BL, features_1NF, places_BN5)[0].float().sigmoid()
        else:
            each = features_1NF[0, 1:, None]
            shares = self._shares([phrase] * len(each), each, torch.tensor([(0.0, 0.0, 1.0, 1.0)]))
        order = shares.argsort(descending=True)[:best].tolist()
        return [RegionScore(tuple(boxes_N4[1 + place].tolist()), float(shares[place])) for place in order]

    def _pixels(self, pictures: Sequence[Picture]) -> Tensor:
        preprocessing = self.settings.preprocessing
        pixels = np.stack([preprocessing.apply(open_picture(picture)) for picture in pictures])
        return torch.from_numpy(preprocessing.normalise(pixels)).to(self.device)

    def see(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features of the regions (n, N, F), what the tower's classifier says of them, and boxes (N, 4)."""
        return see_regions(self.model.tower, self._pixels(pictures), self.settings.vilbert.regions)

    def _shares(self, texts: Sequence[str], features_BNF: Tensor, boxes_N4: Tensor) -> Tensor:
        ids_BL, real_BL = self._read(texts)
        places_BN5 = five(boxes_N4).to(self.device).expand(len(texts), -1, -1)
        streams = self.model.vilbert(ids_BL, real_BL, features_BNF, places_BN5)
        return self.model.vilbert.pair_logits(streams).float().sigmoid()

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids with start and end, and which are no padding; raises DataError where no word is known."""
        special, rows = self.vocabulary.special, []
        refuse_no_texts(texts)
        for text in texts:
            refuse_no_text(text)
            ids = self.vocabulary.encode(text)[: self.settings.max_words]
            if all(number == special.unknown for number in ids):
                raise DataError(f"{text!r} has no word that the model knows: try plain words")
            rows.append(ids)
        ids_BL, _ = padded(rows, special, ends=True)
        ids_BL = ids_BL.to(self.device)
        return ids_BL, ids_BL != special.pad

    def unknown_words(self, text: str) -> list[str]:
        """The words of a phrase that the model never read."""
        return self.vocabulary.unknown_words(text)

    def cut_off(self, text: str) -> list[str]:
        """What a person should know whose phrase is longer than what the model reads."""
        return remarks_on_length(self.vocabulary, text, self.settings.max_words)

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Writes the model folder, which appears under its name when it is complete; `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        settings = self.settings.model_copy(
            update={
                "tower": layered.by_value(self.model.tower),
                "text": layered.by_value(self.model.vilbert.text),
            }
        )
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        checkpoint.write_model(folder, "pretrain", settings, facts, weights, words, half)


def load_two_streams(folder: Path, device: str | None = None) -> TwoStreamModel:
    """Loads a two-stream model from its folder.

    Raises ModelError where it is none, or its folder is incomplete or of another format.
    """
    settings, facts = read_settings(folder, "pretrain", VilbertSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    build_text_tower(settings.text)  # what it imports must be there before sizes are compared

    def build(tower: nn.Module) -> VilbertModule:
        return VilbertModule.over(tower, settings)

    model = build_over_tower(folder, settings.tower, settings.tower_sha256, build)
    return TwoStreamModel(model, settings, vocabulary, facts, choose_device(device))
