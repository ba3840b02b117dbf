"""What answering gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answer:
    """One answer to a question, with its probability under the model: among all answers of its list, or as a sequence of words."""

    text: str
    probability: float


@dataclass(frozen=True)
class Answers:
    """A question with its answers, and where its words looked.

    `tokens` are the words as the model reads them; every sequence below has one entry per token.
    """

    question: str
    answers: tuple[Answer, ...]
    """Best first."""
    tokens: tuple[str, ...]
    answer_attention_hw: np.ndarray | None = None
    """Share of each patch in the token that the answer is chosen by; None for features that form no grid."""
    attention_Lhw: np.ndarray | None = None
    concepts: tuple[str, ...] | None = None
    """Codebook word of each patch, row by row (region alignment)."""
