"""Whether a caption can be trusted: what marks a picture as unsure, and what is said of it then.

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
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from patchword.tasks.caption.concepts import names
from patchword.tasks.caption.model import ConceptSettings, DoubtSettings, PictureConcepts
from patchword.tasks.caption.result import Caption

AGREES = 0.25
"""CIDEr from which a caption counts as agreeing with the people who described the picture."""
UNSURE_SHARE = 0.1
"""This share of the pictures held out of training is marked unsure."""
_RIDGE = 1e-3


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


def fit_doubt(
    captions: Sequence[Caption], seen: Sequence[PictureConcepts], agree: Sequence[bool]
) -> DoubtSettings | None:
    """The regression, the limit below which UNSURE_SHARE of these pictures lie, and the farthest of them.

    None where all captions agree, or none does: then nothing tells one from the other, and the distance alone
    decides.
    """
    if len(set(agree)) < 2:
        return None
    x_P3 = torch.tensor([signs(*pair) for pair in zip(captions, seen, strict=True)], dtype=torch.float64)
    weights_4 = _logistic(x_P3, torch.tensor(list(agree), dtype=torch.float64))
    chances_P = torch.sigmoid(weights_4[0] + x_P3 @ weights_4[1:])
    bias, distance, log_probability, unsaid = weights_4.tolist()
    return DoubtSettings(
        bias=bias,
        distance=distance,
        log_probability=log_probability,
        unsaid=unsaid,
        limit=float(chances_P.quantile(UNSURE_SHARE)),
        far=max(1.0, max(one.distance for one in seen)),
    )


def _logistic(x_PF: Tensor, y_P: Tensor) -> Tensor:
    """Bias and weights (1 + F) of a logistic regression, with a slight ridge on the weights."""
    parameters = torch.zeros(1 + x_PF.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_P = parameters[0] + x_PF @ parameters[1:]
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits_P, y_P)
        total = total + _RIDGE * (parameters[1:] ** 2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    return parameters.detach()
