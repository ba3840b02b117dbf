"""A vokenizer as a person uses it: texts go in, and each token comes out with a picture of a bank.

text -> text tower of the two towers -> its last layers -> head -> nearest pictures of an index of the same
towers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import build_checked, find_model, read_settings
from patchword.errors import DataError, ModelError, StoreError
from patchword.models.pretraining.vokenizer import Vokenizer, VokenizerConfig, nearest_pictures
from patchword.search.index import PictureIndex, open_index
from patchword.tasks.describe import describe
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel
from patchword.text.spans import spans

TEXTS_AT_ONCE = 64
BANK_AT_ONCE = 8192
"""Pictures of the bank that are compared at once: memory is this many relevances per token."""


class VokenSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a vokenizer."""

    towers: str = Field(description="two towers by name; they are not in the folder")
    identity: str = Field(description="SHA-256 of their weights")
    model: VokenizerConfig
    token_width: int = Field(gt=0)
    picture_width: int = Field(gt=0)


class Voken(NamedTuple):
    """A token and its picture."""

    token: str
    """As it stands in the text."""
    span: tuple[int, int]
    """Where it stands: characters from and to."""
    picture: str
    relevance: float
    preference: float
    """Standard deviations above the mean of the bank; small where the token prefers no picture."""


class Bank(NamedTuple):
    """Pictures of an index, in the space of the vokenizer."""

    paths: tuple[str, ...]
    pictures_FD: Tensor

    def parts(self, size: int = BANK_AT_ONCE) -> Iterator[Tensor]:
        """The pictures, some at a time."""
        yield from self.pictures_FD.split(size)


def token_states(tower: nn.Module, ids_BL: Tensor, mask_BL: Tensor, layers: int) -> Tensor:
    """The last layers of a text tower side by side (B, L, layers * C); all of them where it has fewer."""
    tokens_BLC, mask_BL = tower.embed(ids_BL, mask_BL)
    states = []
    for layer in tower.layers:
        tokens_BLC = layer(tokens_BLC, mask_BL)
        states.append(tokens_BLC)
    return torch.cat(states[-layers:], dim=-1)


def encode(towers: TwoTowerModel, texts: Sequence[str], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, L) with start and end, the mask of what is no padding, and the mask of what is no special
    token.

    Raises DataError for a text without a piece.
    """
    vocabulary, special = towers.vocabulary, towers.vocabulary.special
    most = min(most, towers.model.text.max_length - 2)
    rows = [vocabulary.encode(text)[:most] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise DataError(f"{text!r} has no word: expected a text")
    ids_BL = torch.full((len(rows), max(map(len, rows)) + 2), special.pad)
    words_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row) + 2] = torch.tensor([special.start, *row, special.end])
        words_BL[b, 1 : len(row) + 1] = True
    real_BL = words_BL.clone()
    real_BL[:, 0] = True
    for b, row in enumerate(rows):
        real_BL[b, len(row) + 1] = True
    return ids_BL, real_BL, words_BL


class VokenModel:
    """A vokenizer with its towers."""

    def __init__(
        self, model: Vokenizer, settings: VokenSettings, towers: TwoTowerModel, facts: ModelFacts
    ) -> None:
        self.model = model.to(towers.device).eval()
        self.settings, self.towers, self.facts, self.device = settings, towers, facts, towers.device

    def __repr__(self) -> str:
        return describe(self, f"vokenizer over {self.settings.towers}")

    @torch.inference_mode()
    def bank(self, index: str | Path) -> Bank:
        """The pictures of an index that `patchword index` made with the same towers.

        Raises StoreError for no index, one of another model, or an empty one.
        """
        with open_index(index) as opened:
            if not isinstance(opened, PictureIndex):
                raise StoreError(
                    f"{index} is held by Milvus, and a bank is read whole: give a folder of an index"
                )
            opened.refuse_other(self.settings.identity)
            if not opened.count:
                raise StoreError(
                    f"{index} holds no pictures: a bank needs some; index a folder of photographs"
                )
            paths: list[str] = []
            parts, waiting = [], []
            for path, vector_E in opened.pictures():
                paths.append(path)
                waiting.append(np.array(vector_E))
                if len(waiting) == BANK_AT_ONCE:
                    parts.append(self._placed(waiting))
                    waiting = []
            if waiting:
                parts.append(self._placed(waiting))
        return Bank(tuple(paths), torch.cat(parts))

    def _placed(self, vectors: list[np.ndarray]) -> Tensor:
        return self.model.pictures(torch.from_numpy(np.stack(vectors)).to(self.device)).float().cpu()

    @torch.inference_mode()
    def vokens(self, texts: Sequence[str], bank: Bank, most: int = 254) -> list[list[Voken]]:
        """The tokens of each text with their pictures; a text without a word has none. Tokens beyond `most`,
        or beyond what the text tower reads, are left out."""
        found: list[list[Voken]] = [[] for _ in texts]
        having = [place for place, text in enumerate(texts) if self.towers.vocabulary.encode(text)]
        for first in range(0, len(having), TEXTS_AT_ONCE):
            places = having[first : first + TEXTS_AT_ONCE]
            chosen = [texts[place] for place in places]
            ids_BL, real_BL, words_BL = encode(self.towers, chosen, most)
            states_BLC = token_states(
                self.towers.model.text,
                ids_BL.to(self.device),
                real_BL.to(self.device),
                self.settings.model.layers,
            )
            words_ND = self.model.tokens(states_BLC).float().cpu()[words_BL]
            vokens = nearest_pictures(words_ND, bank.parts())
            rows = zip(*(values.tolist() for values in vokens), strict=True)
            for place, text, count in zip(places, chosen, words_BL.sum(1).tolist(), strict=True):
                for begin, end in spans(self.towers.vocabulary, text, count):
                    picture, relevance, preference = next(rows)
                    found[place].append(
                        Voken(text[begin:end], (begin, end), bank.paths[picture], relevance, preference)
                    )
        return found

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder: the heads, and the towers by name and SHA-256."""
        weights = self.model.state_dict()
        checkpoint.write_model(folder, "vokens", self.settings, self.facts, weights, None, half)


def load_vokenizer(name: str | Path, device: str | None = None) -> VokenModel:
    """A vokenizer of a folder or a hub id, with the two towers that it names.

    Raises ModelError where it is none, or its towers are not those that it was trained with.
    """
    folder = find_model(name)
    settings, facts = read_settings(folder, "vokens", VokenSettings)
    towers = load_two_towers(settings.towers, device)
    if towers.identity != settings.identity:
        raise ModelError(
            f"{folder} was trained with towers {settings.towers!r} of SHA-256 "
            f"{settings.identity[:12]}..., and that "
            f"name now gives {towers.identity[:12]}...: put those back, or train the vokenizer anew"
        )

    def build() -> Vokenizer:
        return Vokenizer(settings.model, settings.token_width, settings.picture_width)

    return VokenModel(build_checked(folder, build), settings, towers, facts)
