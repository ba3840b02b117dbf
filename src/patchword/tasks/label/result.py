"""What labelling gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerAttention:
    """What the query prompts of one fused layer gathered (prompt fusion): shares of attention, mean over heads, one row per prompt."""

    layer: int
    """Counted from 1 at the bottom of the picture's tower."""
    patches_Qhw: np.ndarray
    """What is missing to 1 went to the class token and to prompts."""
    words_QL: np.ndarray
    """One column for each of `Labels.words`; what is missing to 1 went to prompts."""


@dataclass(frozen=True)
class Labels:
    """The labels of one picture with its text, best first, and where the query prompts looked; `layers` is empty without prompts."""

    probabilities: dict[str, float]
    words: tuple[str, ...]
    layers: tuple[LayerAttention, ...] = ()
