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
from dataclasses import replace

from patchword.tasks.caption.naming import ConceptSettings, DoubtSettings, PictureConcepts, guess, names
from patchword.tasks.caption.result import Caption

AGREES = 0.25
"""CIDEr from which a caption counts as agreeing with the people who described the picture."""


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
