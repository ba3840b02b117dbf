"""What a task gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from collections.abc import Mapping
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
    contexts: Mapping[int, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """What each of these prototypes stands for: its nearest training contexts (beginnings of captions, or patches), where known."""
    picture: bytes | None = field(default=None, repr=False, compare=False)
    """A small JPEG of what the model saw, kept with the trace, so that the caption can be shown over it."""
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


@dataclass(frozen=True)
class GatheredLayer:
    """What the query prompts of one fused layer gathered (prompt fusion): shares of attention, mean over heads, one row per prompt."""

    layer: int
    """Counted from 1 at the bottom of the picture's tower."""
    patches_Qhw: np.ndarray
    """What is missing to 1 went to the class token and to prompts."""
    words_QL: np.ndarray
    """One column for each of `Labelled.words`; what is missing to 1 went to prompts."""


@dataclass(frozen=True)
class Labelled:
    """The labels of one picture with its text, best first, and where the query prompts looked; `layers` is empty without prompts."""

    probabilities: dict[str, float]
    words: tuple[str, ...]
    layers: tuple[GatheredLayer, ...] = ()
