"""Word vectors as a person uses them: text, pictures and both, with the pictures that stand for a word.

Every way of training ends here: rows of three matrices by word. A model of variant B (or A) also has the
matrix that leads from words to pictures, and so imagines what words without pictures look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import find_model, read_settings
from patchword.errors import ConfigError, DataError, ModelError
from patchword.models.word_vectors.distributional import unit_rows
from patchword.tasks.words.settings import WordModelSettings
from patchword.tensors import read_tensors
from patchword.text.words import refuse_no_text

Space = Literal["text", "picture", "fused"]
SPACES: tuple[Space, ...] = ("text", "picture", "fused")


class WordSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of word vectors."""

    model: WordModelSettings
    words: int = Field(gt=0)
    images: str | None = None
    """Folder of the pictures, for pages; where it is gone, a page says so."""


class Neighbour(NamedTuple):
    """A word and how near it is, by the cosine."""

    word: str
    cosine: float


class WordVectors:
    """Vectors of words; rows of zeros stand for words that have none of a kind."""

    def __init__(
        self,
        settings: WordSettings,
        words: Sequence[str],
        tensors: dict[str, Tensor],
        pictures: dict[str, Any],
        facts: ModelFacts,
    ) -> None:
        """`tensors`: `text`, `picture`, `fused` (W, .), and where there are pictures `bank` (F, P), where
        words lead to pictures `imagined` (W, P), and `dispersion` (W,). `pictures`: files of the bank, and
        places of those that stand for each word."""
        self.settings, self.words, self.facts = settings, tuple(words), facts
        self.tensors, self.pictures = tensors, pictures
        self._row = {word: number for number, word in enumerate(self.words)}
        self._unit = {space: unit_rows(tensors[space].float()) for space in SPACES if space in tensors}

    def __repr__(self) -> str:
        widths = ", ".join(f"{space} {rows.shape[1]}" for space, rows in self._unit.items())
        kind, count = self.settings.model.kind, f"{len(self.words):,} words"
        return f"<WordVectors {self.facts.name}: {kind}, {count}, {widths}>"

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The kinds of vectors that there are."""
        return tuple(self._unit)

    def __contains__(self, word: str) -> bool:
        return word.lower() in self._row

    def row(self, word: str) -> int:
        """The place of a word. Raises DataError for a word that is not known, with the nearest spellings."""
        refuse_no_text(word)
        found = self._row.get(word.lower())
        if found is None:
            import difflib

            near = difflib.get_close_matches(word.lower(), self.words, 3)
            hint = f"; similar ones: {', '.join(near)}" if near else ""
            raise DataError(f"{word!r} is none of the {len(self.words):,} words of this model{hint}")
        return found

    def vectors(self, space: Space) -> np.ndarray:
        """All vectors of a kind (W, .), float32, as they were trained. Raises ConfigError where there are
        none."""
        if space not in self.tensors:
            raise ConfigError(f"this model has no {space} vectors: it has {', '.join(self.spaces)}")
        return self.tensors[space].float().numpy()

    def has(self, word: str, space: Space) -> bool:
        """Whether a known word has a vector of a kind."""
        return word in self and space in self._unit and bool(self._unit[space][self.row(word)].any())

    def similarities(self, pairs: Sequence[tuple[str, str]], space: Space) -> np.ndarray:
        """Cosine of each pair; nan where a word is not known or has no vector of this kind."""
        found = np.full(len(pairs), np.nan)
        for place, (one, other) in enumerate(pairs):
            if self.has(one, space) and self.has(other, space):
                rows = self._unit[space]
                found[place] = float(rows[self.row(one)] @ rows[self.row(other)])
        return found

    def neighbours(self, word: str, space: Space, count: int = 10) -> list[Neighbour]:
        """The nearest words, best first; none where the word has no vector of this kind. Raises DataError for
        an unknown word, ConfigError for a kind or a count that there is not."""
        number = self.row(word)
        _refuse_count(count)
        if space not in SPACES:
            raise ConfigError(f"there are no {space} vectors: expected one of {', '.join(SPACES)}")
        if not self.has(word, space):
            return []
        rows = self._unit[space]
        cosines_W = rows @ rows[number]
        cosines_W[number] = -2
        cosines_W[~rows.any(1)] = -2
        best = cosines_W.argsort(descending=True, stable=True)[:count].tolist()
        return [Neighbour(self.words[one], float(cosines_W[one])) for one in best if cosines_W[one] > -2]

    def pictures_of(self, word: str) -> list[str]:
        """Files of the pictures that stand for a word, nearest to their mean first; none where it has
        none."""
        number = self.row(word)
        return (
            [self.pictures["files"][place] for place in self.pictures["shown"][number]]
            if self.pictures
            else []
        )

    def imagine(self, word: str, count: int = 10) -> list[Neighbour]:
        """The pictures nearest to where the word leads in the space of pictures, as (file, cosine).

        Raises ConfigError for a model whose words lead to no pictures, DataError for an unknown word.
        """
        if "imagined" not in self.tensors:
            raise ConfigError(
                "the words of this model lead to no pictures: train skip_gram of variant A or B, whose "
                "words do"
            )
        _refuse_count(count)
        seen_P = unit_rows(self.tensors["imagined"][self.row(word)].float()[None])[0]
        cosines_F = self.tensors["bank"].float() @ seen_P
        best = cosines_F.argsort(descending=True, stable=True)[:count].tolist()
        return [Neighbour(self.pictures["files"][place], float(cosines_F[place])) for place in best]

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder."""
        vocabulary = {"words": list(self.words), "pictures": self.pictures}
        checkpoint.write_model(folder, "words", self.settings, self.facts, self.tensors, vocabulary, half)


def _refuse_count(count: int) -> None:
    if count < 1:
        raise ConfigError(f"count is {count}: expected 1 or more")


def load_words(name: str | Path, device: str | None = None) -> WordVectors:
    """Word vectors of a folder or a hub id; they are on the processor whatever the device.

    Raises ModelError where it is no such model, or its parts do not fit each other.
    """
    folder = find_model(name)
    settings, facts = read_settings(folder, "words", WordSettings)
    vocabulary = checkpoint.read_vocabulary(folder)
    words, pictures = vocabulary.get("words"), vocabulary.get("pictures", {})
    tensors = read_tensors(folder / checkpoint.WEIGHTS)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("training.")}
    if not isinstance(words, list) or len(words) != settings.words:
        raise ModelError(
            f"{folder / 'vocab.json'} has no list of {settings.words} words: copy the folder anew"
        )
    for space in (*SPACES, "imagined", "dispersion"):
        if space in tensors and len(tensors[space]) != len(words):
            raise ModelError(
                f"{folder}: {len(tensors[space])} rows of {space} for {len(words)} words: the folder is "
                "mixed up"
            )
    return WordVectors(settings, words, tensors, pictures, facts)
