"""Concepts of a picture beside its caption: which words its eyes are sure of, how sure, and what is said of
strange pictures.

    p(word)  = sum of the classifier's probabilities over the classes of the word           (text/imagenet.py)
    q(word)  = sigmoid(slope * logit p + intercept + offset(word))     how often a reference caption names the
        word

Slope, intercept and offsets are fitted on training pictures, of which the classifier never saw a caption; the
offset of a word is drawn towards 0 where few pictures show it (a ridge). A word that the captioner's
vocabulary lacks is said in the place of its host, the vocabulary's word that is nearest in the space of
sentences (direct transfer, Hendricks et al. 2016, arXiv 1511.05284).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from patchword.data.captions import TokenSource
from patchword.errors import DataError
from patchword.tasks.caption.model import ConceptSettings
from patchword.tasks.caption.result import Concept
from patchword.text.imagenet import common_words
from patchword.types import VisualFeatures

_LEAST, _MOST = 1e-4, 1 - 1e-4
SHOWN = 5
"""How many concepts of a picture are listed."""
TEMPLATE, TEMPLATE_OF_SEVERAL = "perhaps {}", "this may be {}"
TEMPLATE_OF_NOTHING = "no caption: this is unlike all training pictures"


@runtime_checkable
class NamesClasses(Protocol):
    """A tower whose classifier names what it sees."""

    text_space: str | None
    """The text space of the classes' names; None where they have no place in one."""

    def look(self, pixels_B3HW: Tensor) -> tuple[VisualFeatures, ClassLogits]: ...


class ClassLogits(Protocol):
    """Logits of ImageNet's classes for whole pictures and for their cells."""

    picture_BK: Tensor
    cells_BNK: Tensor


def word_probabilities(logits_BK: Tensor) -> Tensor:
    """The classifier's probability of every common word (B, words), in the order of `common_words`."""
    shares_BK = logits_BK.float().softmax(-1)
    return torch.stack([shares_BK[:, list(classes)].sum(1) for classes in common_words().values()], dim=1)


def concepts_of(logits_BK: Tensor, settings: ConceptSettings) -> list[tuple[Concept, ...]]:
    """Returns the likeliest words of each picture, best first, with calibrated probabilities of at least
    `probable`."""
    return likeliest(word_probabilities(logits_BK).cpu(), settings)


def likeliest(shares_BW: Tensor, settings: ConceptSettings) -> list[tuple[Concept, ...]]:
    """The same from the results of `word_probabilities`.

    A word that the picture makes no likelier than it is in any picture is left out.
    """
    words = list(common_words())
    offsets_W = torch.tensor([settings.offsets.get(word, 0.0) for word in words])
    chances_BW = calibrated(shares_BW, settings.slope, settings.intercept, offsets_W)
    found = []
    for chances_W in chances_BW:
        best = chances_W.topk(SHOWN)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        listed = [Concept(words[place], chance) for place, chance in pairs]
        least, priors = settings.probable, settings.priors
        found.append(tuple(one for one in listed if one.probability >= max(least, priors.get(one.word, 0.0))))
    return found


def calibrated(shares_BW: Tensor, slope: float, intercept: float, offsets_W: Tensor) -> Tensor:
    """How often a reference names each word, from the classifier's probabilities."""
    return torch.sigmoid(slope * torch.logit(shares_BW.clamp(_LEAST, _MOST)) + intercept + offsets_W)


def fit_calibration(shares_BW: Tensor, named_BW: Tensor, least: float = 0.02) -> tuple[float, float, Tensor]:
    """Slope, intercept and offsets (W,) from pictures whose captions do or do not name each word.

    Pairs of picture and word below `least` take no part: there are hundreds of thousands, and none of them is
    ever said. Each word counts with the square root of its pairs, so that a word in every fifth picture does
    not speak for all. Raises DataError where no picture is likely to show any word.
    """
    rows, words = torch.nonzero(shares_BW >= least, as_tuple=True)
    if not len(rows):
        raise DataError(
            f"none of the {len(shares_BW)} pictures shows one of the classifier's words: nothing to "
            "calibrate on"
        )
    x_P, y_P = (
        torch.logit(shares_BW[rows, words].double().clamp(_LEAST, _MOST)),
        named_BW[rows, words].double(),
    )
    weights_P = torch.bincount(words, minlength=shares_BW.shape[1])[words].double().rsqrt()
    parameters = torch.zeros(2 + shares_BW.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_P = parameters[0] * x_P + parameters[1] + parameters[2:][words]
        losses_P = torch.nn.functional.binary_cross_entropy_with_logits(logits_P, y_P, reduction="none")
        total = (weights_P * losses_P).sum() + 0.5 * (parameters[2:] ** 2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    found = parameters.detach()
    return float(found[0]), float(found[1]), found[2:].float()


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
