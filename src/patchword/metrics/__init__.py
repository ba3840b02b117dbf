"""The numbers of the field, equal to coco-caption's, without Java and without torch.

from patchword.metrics import score
score({"42": ["A dog runs.", "A brown dog."]}, {"42": "a dog is running"})["CIDEr"].value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from patchword.errors import ConfigError, DataError, MetricUnavailable
from patchword.lookup import look_up
from patchword.metrics.bleu import BleuCounts, bleu_counts, bleu_values, corpus_bleu
from patchword.metrics.cider import cider_values
from patchword.metrics.ngrams import caption_set, count_grams
from patchword.metrics.rouge import rouge_values
from patchword.metrics.scores import Score
from patchword.text import ptb

__all__ = [
    "ALL_METRICS",
    "FAST_METRICS",
    "TOKENIZERS",
    "Report",
    "Score",
    "report",
    "score",
    "score_captions",
    "score_tokens",
]

ALL_METRICS = ("bleu", "meteor", "rouge", "cider", "spice")
FAST_METRICS = ("bleu", "rouge", "cider")
KNOWN_METRICS = (*ALL_METRICS, "cider-plain")
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "CIDEr_plain", "SPICE")
"""Names of the values, in the order in which the field prints them."""

_OUTSIDE = {"meteor": "metrics.meteor.score:Meteor", "spice": "metrics.spice:Spice"}
"""Metrics that need tables or Java, imported only when they are wanted."""

Tokens = Mapping[str, Sequence[str]]
ReferenceTokens = Mapping[str, Sequence[Sequence[str]]]

TOKENIZERS: dict[str, Callable[[Sequence[str]], list[list[str]]]] = {
    "ptb": ptb.tokenize,
    "char": lambda captions: [list("".join(caption.split())) for caption in captions],
    "none": lambda captions: [caption.split() for caption in captions],
}
"""Only "ptb" gives numbers comparable with coco-caption: "char" makes every character a word (Chinese),
"none" splits at white space."""


class Report(NamedTuple):
    """Scores by name in the order of the field, and for each metric that could not run the line that says
    why.
    """

    scores: dict[str, Score]
    absent: dict[str, str]
    counts: BleuCounts | None
    """What BLEU summed, per image, for the bootstrap."""


def score(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], tokenizer: str = "ptb"
) -> dict[str, Score]:
    """All caption metrics that can run here: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr, SPICE, as fractions
    (CIDEr up to ten).

    `references` and `predictions` map the same image ids to captions. METEOR and SPICE are absent where their
    tables or Java are; `report` says why. Raises DataError where ids differ or an image has no reference,
    ConfigError for an unknown tokenizer.
    """
    return report(references, predictions, tokenizer).scores


def score_captions(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    tokenizer: str = "ptb",
    metrics: Sequence[str] = FAST_METRICS,
) -> dict[str, Score]:
    """The metrics named, cheap ones unless said otherwise: for model selection during training.

    Raises MetricUnavailable where one of them cannot run, and what `score` raises.
    """
    result = report(references, predictions, tokenizer, metrics)
    for reason in result.absent.values():
        raise MetricUnavailable(reason)
    return result.scores


def report(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    tokenizer: str = "ptb",
    metrics: Sequence[str] = ALL_METRICS,
) -> Report:
    """Scores of the metrics named that can run here, and the reasons for those that cannot.

    Raises what `score` raises.
    """
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"tokenizer {tokenizer!r} does not exist; choose one of {', '.join(TOKENIZERS)}")
    check_ids(references, predictions)
    tokenize = TOKENIZERS[tokenizer]
    # Both sides in the order of the references, as coco-caption does it: its tokenizer looks at the next
    # caption.
    prediction_tokens = dict(
        zip(references, tokenize([predictions[image] for image in references]), strict=True)
    )
    flat = iter(tokenize([caption for captions in references.values() for caption in captions]))
    reference_tokens = {image: [next(flat) for _ in captions] for image, captions in references.items()}
    return score_tokens(reference_tokens, prediction_tokens, metrics)


def score_tokens(
    references: ReferenceTokens, predictions: Tokens, metrics: Sequence[str] = ALL_METRICS
) -> Report:
    """Like `report`, for captions that are token lists already."""
    unknown = sorted(set(metrics) - set(KNOWN_METRICS))
    if unknown:
        raise ConfigError(f"metric {unknown[0]!r} does not exist; choose from {', '.join(KNOWN_METRICS)}")
    check_ids(references, predictions)
    images = list(predictions)
    reference_lists, prediction_list = (
        [references[image] for image in images],
        [predictions[image] for image in images],
    )
    scores, counts = _counting_scores(images, reference_lists, prediction_list, metrics)
    absent = {}
    for name in _OUTSIDE:
        if name in metrics:
            try:
                scores |= _outside_scores(name, dict(zip(images, reference_lists, strict=True)), predictions)
            except MetricUnavailable as reason:
                absent[name] = str(reason)
    return Report({name: scores[name] for name in NAMES if name in scores}, absent, counts)


def check_ids(references: Mapping[str, object], predictions: Mapping[str, object]) -> None:
    """Raises DataError unless predictions and references speak of the same images, at least one, each with a
    reference.
    """
    missing, extra = (
        sorted(references.keys() - predictions.keys()),
        sorted(predictions.keys() - references.keys()),
    )
    if missing or extra:
        raise DataError(
            f"predictions and references speak of different images: {_listed(missing)} without a prediction, "
            f"{_listed(extra)} without references; score the same images on both sides"
        )
    if not predictions:
        raise DataError("there is nothing to score: predictions and references are empty")
    bare = sorted(image for image, captions in references.items() if not captions)
    if bare:
        raise DataError(f"{_listed(bare)} without any reference caption; every image needs at least one")


def _listed(images: Sequence[str], shown: int = 10) -> str:
    names = ", ".join(map(str, images[:shown])) + (", ..." if len(images) > shown else "")
    return f"{len(images)} image{'' if len(images) == 1 else 's'}" + (f" ({names})" if images else "")


def _counting_scores(
    images: Sequence[str],
    references: Sequence[Sequence[Sequence[str]]],
    predictions: Sequence[Sequence[str]],
    metrics: Sequence[str],
) -> tuple[dict[str, Score], BleuCounts | None]:
    """BLEU, ROUGE-L and CIDEr, as far as they are wanted."""
    counts = None
    values: dict[str, tuple[float, np.ndarray]] = {}
    if "rouge" in metrics:
        per_image = rouge_values(references, predictions)
        values["ROUGE_L"] = float(per_image.mean()), per_image
    if {"bleu", "cider", "cider-plain"} & set(metrics):
        captions = caption_set(references, predictions)
        grams = list(count_grams(captions))
        if "bleu" in metrics:
            counts = bleu_counts(captions, grams)
            for n, (corpus, column) in enumerate(
                zip(corpus_bleu(counts), bleu_values(counts).T, strict=True)
            ):
                values[f"Bleu_{n + 1}"] = float(corpus), column
        for metric, name in (("cider", "CIDEr"), ("cider-plain", "CIDEr_plain")):
            if metric in metrics:
                per_image = cider_values(captions, grams, clipped=metric == "cider")
                values[name] = float(per_image.mean()), per_image
    scores = {
        name: Score(value, dict(zip(images, per_image.tolist(), strict=True)))
        for name, (value, per_image) in values.items()
    }
    return scores, counts


def _outside_scores(name: str, references: ReferenceTokens, predictions: Tokens) -> dict[str, Score]:
    """METEOR and SPICE need tables or Java: they are imported only when wanted."""
    return look_up(_OUTSIDE[name])().score(references, predictions)
