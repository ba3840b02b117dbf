"""What a caption says of the concepts of its picture, whether it can be trusted, and what is said otherwise.

    p(agrees) = sigmoid(bias + w_d d + w_l l + w_u u)         logistic regression on held-out pictures
        d  distance of the picture from the training pictures, over its limit    (layers/familiarity.py)
        l  mean log-probability of a token of the caption, its end included
        u  the highest calibrated probability of a concept that the caption does not name
    agrees: the caption's CIDEr against the picture's own references is at least AGREES

    p < limit or d > far    the picture is marked unsure
    1 < d <= far            the captioner is off its ground, the eyes are not: its caption must say the
                            likeliest concept that it does not name, from a probability of `likely` on
    d > far                 nothing is left to the captioner, and a sentence of the concepts is said

far is the distance of the farthest picture held out of training, over the limit.

The distance alone marks most photographs of another collection, whatever their captions say; the captioner's
own probability alone is high for a fluent sentence about something else.

A word that the captioner's vocabulary lacks is said in the place of its host, the vocabulary's word that is
nearest in the space of sentences (direct transfer, Hendricks et al. 2016, arXiv 1511.05284).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from patchword.errors import DataError
from patchword.tasks.caption.options import ConceptSettings, DoubtSettings
from patchword.tasks.caption.result import Caption, Concept, PictureConcepts

if TYPE_CHECKING:
    from patchword.data.captions import TokenSource

AGREES = 0.25
"""CIDEr from which a caption counts as agreeing with the people who described the picture."""
SHOWN = 5
"""How many concepts of a picture are listed."""
TEMPLATE, TEMPLATE_OF_SEVERAL = "perhaps {}", "this may be {}"
TEMPLATE_OF_NOTHING = "no caption: this is unlike all training pictures"


def signs(caption: Caption, seen: PictureConcepts) -> tuple[float, float, float]:
    """The three inputs of the regression (d, l, u)."""
    unsaid = [one.probability for one in seen.named if not names(caption.text, one.word)]
    return seen.distance, caption.log_probability / (len(caption.tokens) + 1), max(unsaid, default=0.0)


def is_unsure(caption: Caption, seen: PictureConcepts, settings: DoubtSettings | None) -> bool:
    """Whether a picture is marked; without settings of doubt beyond the limit of distance."""
    if settings is None:
        return seen.distance > 1
    return seen.distance > settings.far or trust(caption, seen, settings) < settings.limit


def is_far(seen: PictureConcepts, settings: DoubtSettings | None) -> bool:
    """Whether a picture is so unlike the training pictures that only its concepts are named."""
    return seen.distance > (1 if settings is None else settings.far)


def as_guess(caption: Caption, seen: PictureConcepts, settings: ConceptSettings) -> Caption:
    """A sentence of the concepts in place of the caption, which stays as the first alternative."""
    text = guess(seen.named, settings)
    blank = replace(caption, unsure=True, attention_Thw=None, sentinel=None, prototypes=None)
    kept = (replace(caption, alternatives=()), *caption.alternatives)
    return replace(blank, text=text, tokens=tuple(text.split()), alternatives=kept)


def least_probability(seen: PictureConcepts, settings: ConceptSettings) -> float:
    """The probability of the likeliest unsaid concept from which a caption must say it."""
    if settings.doubt is None or seen.distance <= 1:
        return settings.confident
    return min(settings.doubt.likely, settings.confident)


def trust(caption: Caption, seen: PictureConcepts, settings: DoubtSettings) -> float:
    """Probability that people's captions agree with this one."""
    distance, log_probability, unsaid = signs(caption, seen)
    total = (
        settings.bias
        + settings.distance * distance
        + settings.log_probability * log_probability
        + settings.unsaid * unsaid
    )
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))


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
