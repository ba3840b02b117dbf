"""How well word vectors agree with people: by set, by kind of vector, for concrete and abstract words apart.

A set gives one row per kind of vector. All kinds of a model are compared on the pairs that every one of them
knows, so that a gain is never one of coverage; how many these are stands in the row. Concrete and abstract
are told apart by scores that are given (or SimLex-999's own), else by the pictures themselves: words whose
pictures look alike are concrete (dispersion, Kiela et al. 2014), and the border is the median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from patchword.data.formats.similarity import JudgedPair, is_concrete
from patchword.errors import DataError
from patchword.metrics.bootstrap import Difference
from patchword.metrics.similarity import FEWEST, Agreement, agreement, difference
from patchword.tasks.words.model import SPACES, Space, WordVectors


class Row(NamedTuple):
    """One line of an evaluation."""

    set: str
    part: str
    """all, concrete or abstract."""
    space: str
    agreement: Agreement
    gain: Difference | None
    """Over the text vectors of the same model, or over those of the other model."""


class Concreteness(NamedTuple):
    """What tells concrete words from abstract ones."""

    scores: Mapping[str, float]
    border: float
    source: str


def dispersion_scores(model: WordVectors) -> Concreteness:
    """Words by how much alike their pictures look. Raises DataError for a model without pictures."""
    if "dispersion" not in model.tensors:
        raise DataError(
            "this model has no pictures: give --concreteness to tell concrete words from abstract ones"
        )
    values = -model.tensors["dispersion"].numpy().astype(float)
    scores = {
        word: float(value) for word, value in zip(model.words, values, strict=True) if np.isfinite(value)
    }
    return Concreteness(
        scores, float(np.median(list(scores.values()))), "dispersion of the pictures, border: its median"
    )


def own_scores(pairs: Sequence[JudgedPair]) -> Concreteness | None:
    """The scores that come with a set (SimLex-999: 1 to 7, border: the median); None where there are none."""
    scores: dict[str, float] = {}
    for pair in pairs:
        if pair.concreteness is not None:
            scores[pair.first], scores[pair.second] = pair.concreteness
    if not scores:
        return None
    return Concreteness(
        scores, float(np.median(list(scores.values()))), "the set's own scores, border: their median"
    )


def parts_of(pairs: Sequence[JudgedPair], concreteness: Concreteness | None) -> dict[str, np.ndarray]:
    """Which pairs belong to all, to concrete and to abstract (both words on one side of the border)."""
    parts = {"all": np.ones(len(pairs), bool)}
    if concreteness is not None:
        sides = [is_concrete(pair, concreteness.scores, concreteness.border) for pair in pairs]
        parts["concrete"] = np.array([side is True for side in sides])
        parts["abstract"] = np.array([side is False for side in sides])
    return parts


def evaluate_set(
    name: str,
    pairs: Sequence[JudgedPair],
    model: WordVectors,
    other: WordVectors | None = None,
    concreteness: Concreteness | None = None,
) -> list[Row]:
    """The rows of a set.

    Without `other` each kind of vector is compared with the text vectors; with it, with the same kind of
    `other`.
    Raises DataError where the set covers fewer than five pairs (said with numbers).
    """
    people = np.array([pair.score for pair in pairs])
    words = [(pair.first, pair.second) for pair in pairs]
    scores = {space: model.similarities(words, space) for space in SPACES if space in model.spaces}
    against = {space: scores.get("text") for space in scores}
    if other is not None:
        against = {space: _of(other, words, space) for space in scores}
    sides = [*scores.values(), *(side for side in against.values() if side is not None)]
    known = np.all([np.isfinite(side) for side in sides], axis=0)
    if known.sum() < FEWEST:
        covered = {space: int(np.isfinite(side).sum()) for space, side in scores.items()}
        told = ", ".join(f"{count} by {space} vectors" for space, count in covered.items())
        raise DataError(
            f"{name}: of {len(pairs)} pairs {int(known.sum())} are covered ({told}); at least {FEWEST} "
            "are needed: "
            "train on text (and pictures) of these words, or give other pairs"
        )
    rows = []
    for part, inside in parts_of(pairs, concreteness or own_scores(pairs)).items():
        chosen = inside & known
        if chosen.sum() < FEWEST:
            continue
        for space, values in scores.items():
            masked = np.where(chosen, values, np.nan)[inside]
            base = against[space]
            gain = None
            if base is not None and (other is not None or space != "text"):
                gain = difference(people[chosen], base[chosen], values[chosen])
            rows.append(Row(name, part, space, agreement(people[inside], masked), gain))
    return rows


def _of(other: WordVectors, words: Sequence[tuple[str, str]], space: Space | str) -> np.ndarray | None:
    return other.similarities(words, space) if space in other.spaces else None
