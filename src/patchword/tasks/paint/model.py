"""Paints pictures from texts: a prompt goes in, pictures come out, each with the seed that repeats it.

prompt -> vocabulary -> text tower -> painter (diffusion and others, `families.py`) -> pictures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_checked,
    find_model,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.composed import build_text_tower
from patchword.device import choose_device
from patchword.errors import ConfigError, DataError, counted
from patchword.hub import hub_name, is_hub
from patchword.lookup import look_up
from patchword.tasks.describe import describe
from patchword.tasks.paint.composed import PaintModel, Prompt, padded_ids
from patchword.tasks.paint.families import Family, TokenChoice, Wish, check_wish, family_of, texts_of
from patchword.tasks.paint.settings import PaintingSettings
from patchword.tasks.retrieve.model import build_two_towers, by_value
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary, refuse_no_text
from patchword.towers import layered


def build_paint_model(
    settings: PaintingSettings,
    text: Any = None,
    towers: Any = None,
    codec: Any = None,
) -> PaintModel:
    """The composed model of these settings, with random weights but for the towers that are given."""
    if settings.towers is not None:
        towers = build_two_towers(settings.towers) if towers is None else towers
    elif text is None and settings.text is not None:
        text = build_text_tower(settings.text)
    painting: Any = settings.painter
    if towers is not None and painting.decoder.picture_width != towers.config.width:
        raise ConfigError(
            f"painter.decoder.picture_width is {painting.decoder.picture_width}, and the space of the "
            f"two towers is {towers.config.width} wide: set it to that"
        )
    reader = text if towers is None else towers.text
    width = None if reader is None else reader.width
    painter = family_of(settings.painter).build(painting, width, settings.vocabulary_size)
    if settings.codec is not None and codec is None:
        codec = look_up("tasks.paint.latents:LatentCodec")(settings.codec)
    return PaintModel(text, painter, towers, codec)


class PaintingModel:
    """A painter with its text tower and vocabulary."""

    def __init__(
        self,
        model: PaintModel,
        settings: PaintingSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device
        self.family: Family = family_of(settings.painter)

    def __repr__(self) -> str:
        return describe(self, self.settings.painter.kind, f"{self.size} px")

    @property
    def identity(self) -> str:
        """SHA-256 of the weights; painted files record it."""
        return checkpoint.weights_digest(self.model)

    @property
    def usual_steps(self) -> int | None:
        """Steps where none are asked for; None where there is no choice."""
        return self.family.steps

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        codec: Any = self.model.codec
        painter: Any = self.settings.painter
        return int(painter.size) * (1 if codec is None else codec.factor)

    def words(self, text: str) -> list[str]:
        """The words of a text as the model reads them, with marks for its start and end."""
        return ["(start)", *self.vocabulary.tokens(self._ids(text)), "(end)"]

    def remarks(self, text: str) -> list[str]:
        """What a person should know who asks with this text: words that the model never learnt, and what is
        cut off; empty where it reads everything."""
        found = []
        unknown = self.vocabulary.unknown_words(text)
        if unknown:
            known = ", ".join(sorted(getattr(self.vocabulary, "words", ()))[:60])
            found.append(
                f"the model never learnt {', '.join(unknown)}, and takes no notice of it"
                + (f"; it knows: {known}" if known else "")
            )
        length, limit = len(self.vocabulary.encode(text)), self.settings.max_words
        if length > limit:
            found.append(
                f"the prompt has {counted(length, 'word')} and the model reads {limit}: the last "
                f"{length - limit} are "
                "left out"
            )
        return found

    def check(self, text: str) -> None:
        """Raises DataError for an empty prompt, or one without a word that the model knows."""
        refuse_no_text(text)
        if not text.strip():
            raise DataError('the prompt is empty: say what to paint, such as "a red circle"')
        special = self.vocabulary.special
        if all(number == special.unknown for number in self._ids(text)):
            raise DataError(f"{text!r} has no word that the model knows: {'; '.join(self.remarks(text))}")

    def tell(self, texts: Sequence[str]) -> Prompt:
        """Texts as the painter is told them; an empty one is no text. Words that it does not know are told as
        unknown, and what is beyond its length is cut."""
        rows = [self._ids(text) for text in texts]
        special = self.vocabulary.special
        return self.model.tell(padded_ids(rows, special, self.device), special.pad)

    @torch.inference_mode()
    def draw(self, texts: Sequence[str], wish: Wish) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], one per text and seed. Raises ConfigError for a wish that the
        model cannot fulfil."""
        check_wish(wish)
        self.family.check(self.settings.painter, wish)
        longest = max(2, *(len(self._ids(text)) + 2 for text in texts))
        told, nothing = self.tell(texts), self.tell([""] * len(texts))
        nothing = self._as_long(nothing, longest)
        return self.family.paint(self.model, told, nothing, wish)

    def paint(
        self,
        prompt: str | Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
        percentile: float | None = None,
        tokens: TokenChoice | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Pictures of a prompt, or of one for each seed, uint8 (n, H, W, 3).

        Args:
            guidance: how much the text counts: 1 as trained, more for more of the text and less variety, 0
                for none of it; the family's own where left out.
            steps: denoising steps; the family's own where left out.
            percentile: dynamic thresholding at this percentile of a picture's values, for high guidance.
            tokens: how tokens are drawn, by a painter that writes them.
            watch: called after every step.

        Raises DataError for a prompt of which the model knows nothing, ConfigError for a wish that it cannot
        fulfil.
        """
        prompts = texts_of(prompt, seeds)
        for one in dict.fromkeys(prompts):
            self.check(one)
        wish = Wish(seeds, guidance, steps, percentile, tokens=tokens, watch=watch)
        return to_pixels(self.draw(prompts, wish))

    def enlarge(
        self,
        prompt: str | Sequence[str],
        pixels_BHWC: np.ndarray,
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Larger pictures of smaller ones (uint8, (n, h, w, 3)), for a model that was trained to enlarge: the
        second step of a cascade.

        Raises ConfigError for a model that was not.
        """
        small = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
        wish = Wish(seeds, guidance, steps, watch=watch, small=small.to(self.device))
        return to_pixels(self.draw(texts_of(prompt, seeds), wish))

    def explain(
        self, prompt: str, seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Pictures as `paint` gives them, the words as the model read them, and for each picture and word
        where on it cells attended to the word: float32 (n, words, h, w), shares that sum to one over words.

        Raises what `paint` raises, and DataError for a painter that does not attend to words.
        """
        self.check(prompt)
        maps: list[Tensor] = []
        wish = Wish(seeds, guidance, steps, maps=maps)
        pixels = to_pixels(self.draw([prompt] * len(seeds), wish))
        if not maps:
            raise DataError(f"a painter of kind {self.settings.painter.kind!r} does not attend to words")
        words = self.words(prompt)
        shares = maps[0].permute(0, 3, 1, 2)[:, : len(words)].float().cpu().numpy()
        return pixels, words, shares

    def _ids(self, text: str) -> list[int]:
        return self.vocabulary.encode(text)[: self.settings.max_words]

    def _as_long(self, nothing: Prompt, longest: int) -> Prompt:
        """The empty texts padded to the length of the others, so that both fit into one batch."""
        special = self.vocabulary.special
        missing = longest - nothing.ids_BL.shape[1]
        ids_BL = torch.nn.functional.pad(nothing.ids_BL, (0, missing), value=special.pad)
        return self.model.tell(ids_BL, special.pad)

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder, with all weights by value; it needs no other folder."""
        if self.settings.towers is None:
            text = self.model.text
            held = {"text": None if text is None else layered.by_value(text)}
        else:
            held = {"towers": by_value(self.settings.towers, self.model.towers)}
        settings = self.settings.model_copy(update=held)
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        checkpoint.write_model(folder, "paint", settings, facts, weights, words, half)


def to_pixels(pictures_B3HW: Tensor) -> np.ndarray:
    """Pictures in [-1, 1] as uint8 (B, H, W, 3)."""
    values = ((pictures_B3HW.float().clamp(-1, 1) + 1) * 127.5).round()
    return values.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def load_painter(name: str | Path, device: str | None = None) -> PaintingModel:
    """A painter by the name of a shipped one, a folder, a hub id, or `hub:ID` of a pipeline of diffusers.

    Raises ModelError where it is no such model.
    """
    if is_hub(name):
        return look_up("tasks.paint.hub:load_pipeline")(*hub_name(name), choose_device(device))
    folder = find_model(name)
    settings, facts = read_settings(folder, "paint", PaintingSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)
    model = build_checked(folder, lambda: build_paint_model(settings))
    return PaintingModel(model, settings, vocabulary, facts, choose_device(device))
