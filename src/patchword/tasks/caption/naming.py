"""What is said of the concepts of a picture: whether a caption names them, how a wanted word is said, and
what is said of a picture unlike all training pictures.

A word that the captioner's vocabulary lacks is said in the place of its host, the vocabulary's word that is
nearest in the space of sentences (direct transfer, Hendricks et al. 2016, arXiv 1511.05284).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from patchword.errors import DataError
from patchword.tasks.caption.result import Concept

if TYPE_CHECKING:
    from patchword.data.captions import TokenSource

SHOWN = 5
"""How many concepts of a picture are listed."""
TEMPLATE, TEMPLATE_OF_SEVERAL = "perhaps {}", "this may be {}"
TEMPLATE_OF_NOTHING = "no caption: this is unlike all training pictures"


class DoubtSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """When a caption is marked unsure (`doubt.py`), fitted on pictures held out of training."""

    bias: float = Field(description="logistic regression: constant term")
    distance: float = Field(description="logistic regression: weight of the distance over its limit")
    log_probability: float = Field(description="logistic regression: weight of a token's log-probability")
    unsaid: float = Field(description="logistic regression: weight of the likeliest unsaid concept")
    limit: float = Field(ge=0, le=1, description="probability of agreement below which a picture is unsure")
    far: float = Field(1.0, ge=1, description="distance over its limit beyond which only concepts are named")
    likely: float = Field(0.15, gt=0, le=1, description="as confident, where the caption cannot be trusted")


class ConceptSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What a captioning model knows about the concepts that its eyes name."""

    slope: float = Field(description="calibration: slope of logit q in logit p")
    intercept: float = Field(description="calibration: intercept")
    offsets: dict[str, float] = Field(default_factory=dict, description="calibration: what a word differs by")
    priors: dict[str, float] = Field(
        default_factory=dict,
        description="how often captions name a word, whatever the picture; less than that is no evidence",
    )
    hosts: dict[str, str] = Field(
        default_factory=dict,
        description="concept words that the vocabulary lacks, and the words they are said like",
    )
    mention: Literal["never", "confident"] = Field(
        "confident", description="confident: words of at least that probability enter the caption"
    )
    confident: float = Field(0.6, gt=0, le=1, description="probability from which a word must be said")
    probable: float = Field(
        0.08, gt=0, le=1, description="probability from which a word is listed, or guessed"
    )
    doubt: DoubtSettings | None = Field(
        None, description="when a caption is marked unsure; absent: beyond the limit of distance"
    )


class PictureConcepts(NamedTuple):
    """What the tower names in a picture, and how far the picture lies from the training pictures."""

    named: tuple[Concept, ...]
    distance: float
    """Over the limit: above 1 are few of the pictures held out of training."""


def listed(chances_W: np.ndarray, words: Sequence[str], settings: ConceptSettings) -> tuple[Concept, ...]:
    """The likeliest words of a picture, best first, by their calibrated probabilities.

    A word that the picture makes no likelier than it is in any picture is left out.
    """
    best = np.argsort(-chances_W, kind="stable")[:SHOWN].tolist()
    found = [Concept(words[place], float(chances_W[place])) for place in best]
    least, priors = settings.probable, settings.priors
    return tuple(one for one in found if one.probability >= max(least, priors.get(one.word, 0.0)))


@cache
def forms(word: str) -> tuple[str, ...]:
    """A noun in the singular and the plural, by the rules of English spelling."""
    if re.search(r"(?:[sxz]|ch|sh)$", word):
        return word, f"{word}es"
    if re.search(r"[^aeiou]y$", word):
        return word, f"{word[:-1]}ies"
    return word, f"{word}s"


class SpokenText:
    """A text prepared for questions whether it names a word."""

    def __init__(self, text: str) -> None:
        spoken = re.findall(r"[\w'-]+", text.lower())
        self._words = frozenset(spoken)
        self._beginnings = {word[:length] for word in self._words for length in range(4, len(word) + 1)}
        self._whole = f" {' '.join(spoken)} "

    def names(self, word: str) -> bool:
        """Whether it holds the word itself, its plural, or a word that begins with it ("skiing" names
        "ski")."""
        if " " in word:
            return any(f" {form} " in self._whole for form in forms(word))
        stem = word[:-1] if word.endswith(("e", "y")) and len(word) > 4 else word
        return any(form in self._words for form in forms(word)) or stem in self._beginnings


def names(text: str, word: str) -> bool:
    """Whether a text names a concept, see `SpokenText`."""
    return SpokenText(text).names(word)


class Phrase(NamedTuple):
    """How a wanted word is said: the alternatives as tokens, and, where the vocabulary lacks it, its host in
    the caption.
    """

    word: str
    alternatives: tuple[tuple[int, ...], ...]
    host: str | None


def phrase_of(word: str, vocabulary: TokenSource, hosts: Mapping[str, str]) -> Phrase:
    """Raises DataError for a word that neither the vocabulary nor the list of hosts knows."""
    word = " ".join(word.lower().split())
    known = [tokens for form in forms(word) if (tokens := _tokens(form, vocabulary)) is not None]
    if known:
        return Phrase(word, tuple(known), None)
    host = hosts.get(word)
    tokens = None if host is None else _tokens(host, vocabulary)
    if tokens is None:
        raise DataError(
            f"--mention {word!r}: the model never learnt this word, and it is none of the {len(hosts)} "
            "words that it can "
            "say in another's place: name a word of its training captions or of ImageNet's classes"
        )
    return Phrase(word, (tokens,), host)


def sayable(word: str, vocabulary: TokenSource, hosts: Mapping[str, str]) -> bool:
    """Whether the model can say a word, itself or in the place of its host."""
    return any(
        _tokens(form, vocabulary) is not None
        for form in (*forms(word), *([hosts[word]] if word in hosts else []))
    )


def _tokens(text: str, vocabulary: TokenSource) -> tuple[int, ...] | None:
    tokens = tuple(vocabulary.encode(text))
    return tokens if tokens and vocabulary.special.unknown not in tokens else None


def said(words: Sequence[str], phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """The words of a caption with each host replaced by the word that it stands for, and its article made to
    fit.
    """
    words = list(words)
    for phrase in phrases:
        if phrase.host is None or phrase.host not in words:
            continue
        place = words.index(phrase.host)
        words[place] = phrase.word
        if place and words[place - 1] in ("a", "an"):
            words[place - 1] = article(phrase.word)
    return tuple(words)


def article(word: str) -> str:
    """The indefinite article by the first letter."""
    return "an" if word[:1] in "aeiou" else "a"


def guess(concepts: Sequence[Concept], settings: ConceptSettings) -> str:
    """What is said of a picture unlike all training pictures: its likeliest concepts as such, and no
    invention.
    """
    if not concepts:
        return TEMPLATE_OF_NOTHING
    named = [f"{article(one.word)} {one.word}" for one in concepts[:2]]
    if concepts[0].probability >= settings.confident or len(named) == 1:
        return TEMPLATE.format(named[0])
    template = TEMPLATE if settings.doubt is None else TEMPLATE_OF_SEVERAL
    return template.format(" or ".join(named))
