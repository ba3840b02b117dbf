"""The results of question answering as plain values, without tensors or torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answer:
    """One answer to a question, with its probability under the model.

    The probability is over all answers of the list, or that of the sequence of words.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class Answers:
    """A question with its answers, and the attention of its words.

    `tokens` are the words as the model reads them; every sequence below has one entry per token.
    """

    question: str
    answers: tuple[Answer, ...]
    """Best first."""
    tokens: tuple[str, ...]
    answer_attention_hw: np.ndarray | None = None
    """Attention of the token from which the answer is chosen; None where the features form no grid."""
    attention_Lhw: np.ndarray | None = None
    concepts: tuple[str, ...] | None = None
    """Codebook word of each patch, row by row (region alignment)."""
