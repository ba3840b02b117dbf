"""What a task gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Caption:
    """One caption of one picture, with what made each word.

    `tokens` are the words as the model spells them, without start and end; every sequence below has one entry per token.
    `log_probability` is the natural logarithm of the caption's probability under the model, end token included.
    `complete` is False where the search ran into its length limit before the end token.
    """

    text: str
    log_probability: float
    tokens: tuple[str, ...]
    complete: bool = True
    attention_Thw: np.ndarray | None = None
    """Share of each patch, float32 in [0, 1]; None for models that do not attend or where no trace was asked for."""
    sentinel: tuple[float, ...] | None = None
    """Share of the visual sentinel per word (adaptive attention): 1 means that the word came from language alone."""
    concepts: tuple[str, ...] | None = None
    """Codebook word of each patch, row by row (region alignment)."""
    prototypes: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Per word the memory prototypes of the last decoder layer that it attended to most, as (index, weight), best first."""
    alternatives: tuple[Caption, ...] = field(default=(), repr=False)
    """The other hypotheses of the search, best first."""

    def _repr_html_(self) -> str:
        from patchword.explain.captions import caption_strip

        return caption_strip(self)


@dataclass(frozen=True)
class Answer:
    """One answer to a question, with its probability under the model: among all answers of its list, or as a sequence of words."""

    text: str
    probability: float


@dataclass(frozen=True)
class Asked:
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
