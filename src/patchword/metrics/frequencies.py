"""In how many documents each n-gram stands: what CIDEr weighs n-grams with when the references scored are not
the whole world.

A document is an image with all its references (self-critical training after Rennie et al. 2017,
`coco-train-idxs`) or a single caption (the Meshed-Memory family); the end of a caption may count as a token.
The table is a small npz file, never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from patchword.errors import ConfigError, DataError
from patchword.files import whole_file
from patchword.metrics.ngrams import LONGEST, gram_keys, number_tokens, positions, runs, sort_keys

END = "</s>"
"""The token that stands for the end of a caption, where ends count."""

DOCUMENTS = ("image", "caption")
_FORMAT = 1


class GramTable(NamedTuple):
    """Numbers for words and for the n-grams of a set of captions; the number of an n-gram is its place in the
    sorted `keys`.
    """

    words: dict[str, int]
    keys: tuple[np.ndarray, ...]
    """For each n the sorted keys: number of the (n-1)-gram times the number of words plus last word."""

    def numbers_in(self, other: GramTable) -> list[np.ndarray]:
        """For each n and each n-gram of this table, its number in the other one, or -1."""
        words_V = np.fromiter((other.words.get(word, -1) for word in self.words), np.int64, len(self.words))
        result: list[np.ndarray] = []
        for n, (own, theirs) in enumerate(zip(self.keys, other.keys, strict=True)):
            if n == 0:
                key, possible = words_V[own], words_V[own] >= 0
            else:
                head, last = result[-1][own // len(self.words)], words_V[own % len(self.words)]
                key, possible = head * len(other.words) + last, (head >= 0) & (last >= 0)
            at = np.minimum(np.searchsorted(theirs, key), max(0, len(theirs) - 1))
            same = theirs[at] == key if len(theirs) else np.zeros(len(key), bool)
            result.append(np.where(possible & same, at, -1))
        return result


class Occurrences(NamedTuple):
    """For one n: every n-gram in every caption in which it stands, sorted by n-gram, then by caption."""

    gram_R: np.ndarray
    caption_R: np.ndarray
    count_R: np.ndarray


def tabulate(captions: Sequence[Sequence[str]]) -> tuple[GramTable, list[Occurrences]]:
    """Numbers all n-grams of G captions (token lists), and says where each stands."""
    words_T, lengths_G, words = number_tokens(captions)
    caption_T, remaining_T = positions(lengths_G)
    gram_T, keys, occurrences = words_T, [], []
    for n in range(1, LONGEST + 1):
        place_S, key_S, new_S = sort_keys(*gram_keys(gram_T, words_T, remaining_T, n, len(words)))
        keys.append(key_S[new_S])
        number_S = np.cumsum(new_S) - 1
        gram_T = np.full(len(words_T), -1, np.int64)
        gram_T[place_S] = number_S
        caption_S = caption_T[place_S]
        new_S[1:] |= caption_S[1:] != caption_S[:-1]
        first_R, count_R = runs(new_S)
        occurrences.append(Occurrences(number_S[first_R], caption_S[first_R], count_R))
    return GramTable(words, tuple(keys)), occurrences


class DocumentFrequencies(NamedTuple):
    """How many of `documents` documents hold each n-gram of the table."""

    table: GramTable
    counts: tuple[np.ndarray, ...]
    documents: int
    unit: str
    """"image" or "caption": what a document is."""
    end_token: bool
    """Whether the end of a caption is a token."""

    @classmethod
    def of(
        cls, references: Sequence[Sequence[Sequence[str]]], unit: str = "image", end_token: bool = True
    ) -> DocumentFrequencies:
        """Counts over the references (token lists) of a set of images.

        Raises ConfigError for another unit, DataError for no image.
        """
        if unit not in DOCUMENTS:
            raise ConfigError(f"a document is one of {', '.join(DOCUMENTS)}, not {unit!r}")
        if not references:
            raise DataError("document frequencies need the references of at least one image")
        captions = with_ends([caption for group in references for caption in group], end_token)
        image_G = np.repeat(np.arange(len(references)), [len(group) for group in references])
        table, occurrences = tabulate(captions)
        counts = []
        for keys, of_n in zip(table.keys, occurrences, strict=True):
            document_R = image_G[of_n.caption_R] if unit == "image" else of_n.caption_R
            new_R = np.ones(len(document_R), bool)
            new_R[1:] = (document_R[1:] != document_R[:-1]) | (of_n.gram_R[1:] != of_n.gram_R[:-1])
            counts.append(np.bincount(of_n.gram_R[new_R], minlength=len(keys)))
        return cls(
            table, tuple(counts), len(references) if unit == "image" else len(captions), unit, end_token
        )

    def save(self, path: Path) -> None:
        """Writes an npz file, whole or not at all."""
        about = {
            "format": _FORMAT,
            "documents": self.documents,
            "unit": self.unit,
            "end_token": self.end_token,
        }
        about["words"] = list(self.table.words)
        arrays = {f"keys_{n + 1}": keys for n, keys in enumerate(self.table.keys)}
        arrays |= {f"counts_{n + 1}": counts.astype(np.int32) for n, counts in enumerate(self.counts)}
        with whole_file(path) as aside, open(aside, "wb") as file:
            # One mapping: numpy's own keyword for pickles would otherwise be taken for one of the arrays.
            named: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays}
            np.savez_compressed(file, **named)

    @classmethod
    def load(cls, path: Path) -> DocumentFrequencies:
        """Reads what `save` wrote. Raises DataError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes())
                keys = tuple(file[f"keys_{n + 1}"] for n in range(LONGEST))
                counts = tuple(file[f"counts_{n + 1}"] for n in range(LONGEST))
        except (OSError, BadZipFile, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: is no file of document frequencies ({error}); write one with "
                "DocumentFrequencies.save"
            ) from error
        if about.get("format") != _FORMAT:
            raise DataError(
                f"{path}: document frequencies of format {about.get('format')!r}, this version reads "
                f"{_FORMAT}; make it anew"
            )
        words = {word: number for number, word in enumerate(about["words"])}
        return cls(GramTable(words, keys), counts, about["documents"], about["unit"], about["end_token"])


def with_ends(captions: Sequence[Sequence[str]], end_token: bool) -> Sequence[Sequence[str]]:
    """The captions, with the end token after each if wanted."""
    return [[*caption, END] for caption in captions] if end_token else captions
