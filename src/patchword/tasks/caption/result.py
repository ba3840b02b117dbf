"""What captioning gives back to a person: plain values, no tensors, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from patchword.lookup import look_up


class Concept(NamedTuple):
    """A word and the calibrated probability that a person's caption names it."""

    word: str
    probability: float


class PictureConcepts(NamedTuple):
    """What the tower names in a picture, and how far the picture lies from the training pictures."""

    named: tuple[Concept, ...]
    distance: float
    """Over the limit: above 1 are few of the pictures held out of training."""


@dataclass(frozen=True)
class Caption:
    """One caption of one picture, with what made each word.

    `tokens` are the words as the model spells them, without start and end; every sequence below has one entry
    per token. `log_probability` is the natural logarithm of the caption's probability under the model, end
    token included. `complete` is False where the search ran into its length limit before the end token.
    """

    text: str
    log_probability: float
    tokens: tuple[str, ...]
    complete: bool = True
    attention_Thw: np.ndarray | None = None
    """Share of each patch, float32 in [0, 1]; None for models that do not attend or where no trace was
    asked for."""
    maps_Thw: np.ndarray | None = field(default=None, repr=False)
    """What pages show under each word where another map measures better than attention
    (docs/explanations.md): a share of each patch, float32; None: the attention is shown."""
    map_names: tuple[str, ...] = ()
    """Per word the map that `maps_Thw` holds: "copied" for a word that was copied (the patches that speak for
    it), "class_activation" for others that name a thing, "attention" for the rest, "none" (an even map) where
    the model does not attend. Empty where the attention is shown."""
    sentinel: tuple[float, ...] | None = None
    """Share of the visual sentinel per word (adaptive attention): 1 means that the word came from language
    alone."""
    copied: tuple[float | None, ...] | None = None
    """Per word that was copied from what the eyes see the probability of pointing at it, None for words that
    were not; None as a whole for models without a copy gate. `maps_Thw` shows where each was copied from."""
    concepts: tuple[str, ...] | None = None
    """Codebook word of each patch, row by row (region alignment)."""
    prototypes: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Per word the memory prototypes of the last decoder layer that it attended to most, as (index,
    weight), best first."""
    contexts: Mapping[int, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """What each of these prototypes stands for: its nearest training contexts (beginnings of captions, or
    patches), where known."""
    picture: bytes | None = field(default=None, repr=False, compare=False)
    """A small JPEG of what the model saw, kept with the trace, so that the caption can be shown over it."""
    unsure: bool | None = None
    """True for a picture unlike all that the model was trained on: `text` is then no more than a guess.
    None: not known."""
    named: tuple[Concept, ...] = ()
    """What the model's eyes name in the picture, likeliest first, each with the probability that a person
    would name it."""
    alternatives: tuple[Caption, ...] = field(default=(), repr=False)
    """The other hypotheses of the search, best first."""

    @property
    def shown_Thw(self) -> np.ndarray | None:
        """The maps that pages, figures and the service show: `maps_Thw`, or the attention without them."""
        return self.attention_Thw if self.maps_Thw is None else self.maps_Thw

    def shown_name(self, t: int) -> str:
        """Name of the map that is shown under word t."""
        return self.map_names[t] if self.map_names else "attention"

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture under each word's map."""
        strip: str = look_up("tasks.caption.page:caption_strip")(self)
        return strip


class Captions(list[Caption]):
    """Captions of several pictures, in their order: a list that a notebook shows picture by picture."""

    SHOWN = 20
    """A notebook keeps what it shows, so it is shown this many."""

    def _repr_html_(self) -> str:
        """The first captions, each with its picture, and how many more there are."""
        strips: str = look_up("tasks.caption.page:caption_strips")(self[: self.SHOWN], len(self))
        return strips
