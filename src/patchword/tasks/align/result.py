"""The results of alignment as plain values, without tensors or torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PointedWord:
    """One word of a text and the part of a picture that it matches."""

    word: str
    found: str
    """Name of the nearest token: `token 3`, `the dropped patches`, `the whole picture`."""
    token: int
    """The same token as a row of `AlignedPair.weights_Phw`."""
    cosine: float
    patch: tuple[int, int]
    """Row and column, from 0, of the patch that contributes most to the cosine with this token."""
    gifts_hw: np.ndarray
    """Share of every patch in that cosine; sums to 1, or to 0 where no patch contributes to the word."""


@dataclass(frozen=True)
class AlignedPair:
    """How well a picture and a text match, patch by patch and word by word (LAPS)."""

    text: str
    similarity: float
    """Sum of two means of cosines, within about -0.2 to 2."""
    cosine: float
    """Cosine of the vectors of the two towers."""
    words: tuple[PointedWord, ...]
    """Words of the text, including its start and end."""
    scores_hw: np.ndarray
    """Selection score of each patch, grid rows by columns."""
    kept_hw: np.ndarray
    """True where the patch is kept."""
    weights_Phw: np.ndarray
    """Share of every patch in every token; rows sum to 1, but the class token's row to 0."""
    merged: tuple[int, ...]
    """Rows of `weights_Phw` that are made of kept patches."""
    fused: int | None
    """Row that is made of the dropped patches; None where there is none."""
