"""A few-shot model: shown some pictures with texts, it says what belongs to the next picture.

    shots -> read once -> cache;   photo -> tower -> resampler;   cache + photo + question -> words

`load_few_shot` returns a `FewShotModel`; `model.ask("photo.jpg", "what is it?", shots)` runs these steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_over_tower,
    find_model,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.composed import TowerSettings
from patchword.data.captions import Inputs
from patchword.data.pictures import Picture, Preprocessing, one_or_many, open_picture
from patchword.device import choose_device
from patchword.errors import DataError
from patchword.models.captioners.flamingo import (
    MARK,
    Context,
    Continuation,
    FlamingoConfig,
    continue_greedily,
)
from patchword.tasks.describe import describe
from patchword.tasks.interleave.composed import FewShotModule
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary
from patchword.towers import layered
from patchword.towers.settings import LanguageConfig

LONGEST = 30
"""Tokens of an answer or a caption."""


class FewShotSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a few-shot model, apart from the facts about its training."""

    tower: TowerSettings
    language: LanguageConfig
    flamingo: FlamingoConfig
    preprocessing: Preprocessing
    vocabulary_size: int = Field(gt=4, le=10_000_000)
    max_tokens: int = Field(gt=1, le=10_000_000)
    tower_sha256: str | None = None


class Shot(NamedTuple):
    """An example: a picture, and what is said of it; with a question, the text answers it."""

    image: Picture
    text: str
    question: str = ""


def read_shots(file: Path) -> list[Shot]:
    """Examples from JSON lines {"image", "text" or "caption" or "answer", and if wanted "question"}; pictures
    are named from the file's folder.

    Raises DataError, with the line, for what is none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    shots = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError:
            row = None
        row = row if isinstance(row, dict) else {}
        said = [row[key] for key in ("text", "caption", "answer") if isinstance(row.get(key), str)]
        image, question = row.get("image"), row.get("question", "")
        if len(said) != 1 or not isinstance(image, str) or not isinstance(question, str):
            raise DataError(
                f'{file}, line {number}: expected {{"image": FILE, "text": WORDS}} (or "caption", or '
                f'"question" with "answer"), found {line[:80]!r}'
            )
        shots.append(Shot(file.parent / image, said[0], question))
    return shots


class FewShotModel:
    """A few-shot model with its vocabulary and preprocessing."""

    def __init__(
        self,
        model: FewShotModule,
        settings: FewShotSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device

    def __repr__(self) -> str:
        eyes = f"few shots over {self.settings.tower.kind}"
        return describe(self, eyes, f"{self.settings.flamingo.latents} latents per picture")

    def read(self, shots: Sequence[Shot]) -> Context:
        """Reads examples once; any number of pictures can then be asked about.

        Raises DataError where they are longer than the language model reads, PictureError for a picture that
        cannot be decoded.
        """
        ids = [self.vocabulary.special.start]
        for shot in shots:
            ids += [MARK, *self._words(shot.question), *self._words(shot.text), self.vocabulary.special.end]
        self._check(len(ids), f"{len(shots)} shots")
        latents = self.latents([shot.image for shot in shots])[None] if shots else None
        with torch.inference_mode():
            return self.model.flamingo.read(torch.tensor([ids], device=self.device), latents)

    def ask(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        shots: Sequence[Shot] | Context = (),
        longest: int = LONGEST,
    ) -> list[str]:
        """What is said of each picture after the shots, by itself: one text per picture.

        `shots` are examples, or what `read` made of them.
        """
        many, _ = one_or_many(pictures)
        return [text for text, _ in self.said(many, question, shots, longest)]

    def said(
        self, many: Sequence[Picture], question: str, shots: Sequence[Shot] | Context, longest: int
    ) -> list[tuple[str, Continuation]]:
        """As `ask`, each text with its tokens and their probability."""
        if not many:
            return []
        before: Any = shots if isinstance(shots, Context) else self.read(shots)
        ids = [MARK, *self._words(question)]
        self._check(before.past.get_seq_length() + len(ids) + longest, "shots, question and answer")
        ids_BT = torch.tensor([ids] * len(many), device=self.device)
        with torch.inference_mode():
            latents_BMRW = self.latents(many)[:, None]
            read = self.model.flamingo.read(ids_BT, latents_BMRW, before)
            rows = continue_greedily(self.model.flamingo, read, self.vocabulary.special.end, longest)
        return [(self.vocabulary.decode(row.tokens), row) for row in rows]

    @torch.inference_mode()
    def latents(self, pictures: Sequence[Picture]) -> Tensor:
        """What the resampler makes of pictures, (n, R, W)."""
        opened = [open_picture(picture) for picture in pictures]
        pixels_BHWC = np.stack([self.settings.preprocessing.apply(picture) for picture in opened])
        pixels_B3HW = torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)
        return self.model.latents(Inputs(pixels_B3HW=pixels_B3HW))

    def unknown_words(self, text: str) -> list[str]:
        """The words of a question that the model never read."""
        return self.vocabulary.unknown_words(text)

    def _words(self, text: str) -> list[int]:
        return list(self.vocabulary.encode(text)) if text else []

    def _check(self, length: int, what: str) -> None:
        longest = self.model.flamingo.language.max_length
        if length > longest:
            raise DataError(
                f"{what} take {length} tokens, and the language model reads {longest}: give fewer shots"
            )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Writes the model folder, which appears under its name when it is complete; `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        sections = {
            "tower": layered.by_value(self.model.tower),
            "language": layered.by_value(self.model.flamingo.language),
        }
        settings = self.settings.model_copy(update=sections)
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        checkpoint.write_model(folder, "interleave", settings, facts, weights, words, half)


class ShownCaptioner:
    """A few-shot model after its shots, with the `caption` of a captioner."""

    def __init__(self, model: FewShotModel, shots: Sequence[Shot]) -> None:
        self.model, self.before = model, model.read(shots)

    def caption(self, pictures: Sequence[Picture], trace: bool, options: Any) -> list[Any]:
        """A caption per picture; `trace` and `options` of the search are refused where they ask for more than
        the likeliest words."""
        from patchword.tasks.caption.options import OWN
        from patchword.tasks.caption.result import Caption

        if trace or options != OWN:
            raise DataError(
                "a few-shot model says its likeliest words: leave out --explain and the options of the search"
            )
        found = self.model.said(list(pictures), "", self.before, LONGEST)
        words = self.model.vocabulary.tokens
        return [
            Caption(text, one.log_probability, tuple(words(one.tokens)), one.complete) for text, one in found
        ]


def load_few_shot(name: str | Path, device: str | None = None) -> FewShotModel:
    """Loads a few-shot model by its folder or hub id.

    Raises ModelError where it is none, or its folder is incomplete or of another format.
    """
    folder = find_model(name)
    settings, facts = read_settings(folder, "interleave", FewShotSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)

    def build(tower: nn.Module) -> FewShotModule:
        return FewShotModule.over(tower, settings.language, settings.flamingo)

    model = build_over_tower(folder, settings.tower, settings.tower_sha256, build)
    return FewShotModel(model, settings, vocabulary, facts, choose_device(device))


def load_shown(name: str | Path, device: str | None, shots: Path) -> ShownCaptioner:
    """A few-shot model that captions as its shots do."""
    return ShownCaptioner(load_few_shot(name, device), read_shots(shots))
