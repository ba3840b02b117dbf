"""The results of labelling as plain values, without tensors or torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerAttention:
    """Attention of the query prompts of one fused layer (prompt fusion).

    It is averaged over heads; there is one row per prompt.
    """

    layer: int
    """Number of the layer in the image tower, from 1 at the bottom."""
    patches_Qhw: np.ndarray
    """What a row lacks to 1 is attention to the class token and to prompts."""
    words_QL: np.ndarray
    """One column for each of `Labels.words`; what a row lacks to 1 is attention to prompts."""


@dataclass(frozen=True)
class Labels:
    """The labels of one picture with its text, best first, and the attention of the query prompts.

    `layers` is empty without prompts.
    """

    probabilities: dict[str, float]
    words: tuple[str, ...]
    layers: tuple[LayerAttention, ...] = ()
