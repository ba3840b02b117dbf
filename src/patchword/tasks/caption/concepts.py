"""Concepts of a picture beside its caption: which words its eyes are sure of, and how sure.

    p(word)  = sum of the classifier's probabilities over the classes of the word           (text/imagenet.py)
    q(word)  = sigmoid(slope * logit p + intercept + offset(word))     how often a reference caption names the
        word

Slope, intercept and offsets are fitted on training pictures, of which the classifier never saw a caption; the
offset of a word is drawn towards 0 where few pictures show it (a ridge).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from patchword.errors import DataError
from patchword.tasks.caption.doubt import listed
from patchword.tasks.caption.options import ConceptSettings
from patchword.tasks.caption.result import Concept
from patchword.text.imagenet import common_words
from patchword.types import VisualFeatures

_LEAST, _MOST = 1e-4, 1 - 1e-4


@runtime_checkable
class NamesClasses(Protocol):
    """A tower whose classifier names what it sees."""

    text_space: str | None
    """The text space of the classes' names; None where they have no place in one."""

    def look(self, pixels_B3HW: Tensor) -> tuple[VisualFeatures, ClassLogits]: ...

    def classify(self, features: VisualFeatures) -> ClassLogits: ...


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
    return [listed(chances_W, words, settings) for chances_W in chances_BW.numpy()]


def calibrated(shares_BW: Tensor, slope: float, intercept: float, offsets_W: Tensor) -> Tensor:
    """How often a reference names each word, from the classifier's probabilities."""
    return torch.sigmoid(slope * torch.logit(shares_BW.clamp(_LEAST, _MOST)) + intercept + offsets_W)


def fit_calibration(
    shares_BW: Tensor, named_BW: Tensor, least: float = 0.02, only_named: bool = False
) -> tuple[float, float, Tensor]:
    """Slope, intercept and offsets (W,) from pictures whose captions do or do not name each word.

    Pairs of picture and word below `least` take no part: there are hundreds of thousands, and none of them is
    ever said. Each word counts with the square root of its pairs, so that a word in every fifth picture does
    not speak for all. With `only_named` a word that no caption names takes no part and has an offset of 0:
    it is taken for a word that people might use as they use others, and its silence is no evidence. Raises
    DataError where no picture is likely to show any word.
    """
    counts_BW = shares_BW >= least
    if only_named:
        counts_BW = counts_BW & named_BW.any(0)
    rows, words = torch.nonzero(counts_BW, as_tuple=True)
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
