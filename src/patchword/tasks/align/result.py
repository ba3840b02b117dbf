"""What alignment gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PointedWord:
    """One word of a text and what it found in a picture."""

    word: str
    found: str
    """The token that it is nearest to, in words: `token 3`, `the dropped patches`, `the whole picture`."""
    token: int
    """The same as a row of `AlignedPair.weights_Phw`."""
    cosine: float
    patch: tuple[int, int]
    """Row and column of the patch that gives this token the most of the cosine, from 0."""
    gifts_hw: np.ndarray
    """Share of every patch in that cosine; sums to 1, or to 0 where none speaks for the word."""


@dataclass(frozen=True)
class AlignedPair:
    """How a picture and a text fit, patch by patch and word by word (LAPS)."""

    text: str
    similarity: float
    """Sum of two means of cosines, within about -0.2 to 2."""
    cosine: float
    """Of the two towers' own vectors."""
    words: tuple[PointedWord, ...]
    """Start and end of the text are words here too."""
    scores_hw: np.ndarray
    """By which patches are chosen, grid rows by columns."""
    kept_hw: np.ndarray
    """True where the patch stays."""
    weights_Phw: np.ndarray
    """Share of every patch in every token; rows sum to 1, that of a class token to 0."""
    merged: tuple[int, ...]
    """Rows of `weights_Phw` that are made of kept patches."""
    fused: int | None
    """Row that is made of the dropped patches; None without one."""
