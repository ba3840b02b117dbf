"""Confidence intervals of scores, and tests of differences: bootstrap over images (Koehn 2004).

Images are drawn with replacement, and each metric is computed again from the statistics of the drawn images:
BLEU from summed counts, the others as means of image values. METEOR's corpus value is not such a mean, so its
interval is that of the mean, shifted to the corpus value. CIDEr keeps the document frequencies of the whole
set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchword.errors import DataError
from patchword.metrics.bleu import BleuCounts, bleu_values
from patchword.metrics.scores import Score

_CHUNK = 100
"""Number of resamples drawn at once; it bounds memory to a hundred weights per image."""


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """The second predictions minus the first, the 95 % interval of this difference, and its p-value.

    The p-value is that of the two-sided paired bootstrap.
    """

    value: float
    interval: Interval
    p: float


def intervals(
    scores: dict[str, Score], counts: BleuCounts | None, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Returns 95 % intervals by the name of the metric."""
    drawn = _resampled([(scores, counts)], resamples, seed)[0]
    return {name: Interval(*np.quantile(values, (0.025, 0.975)).tolist()) for name, values in drawn.items()}


def compare(
    first: tuple[dict[str, Score], BleuCounts | None],
    second: tuple[dict[str, Score], BleuCounts | None],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Returns the gain of the second predictions over the first on the same images.

    Both sides use the same resamples. Raises DataError where the images differ.
    """
    before, after = _resampled([first, second], resamples, seed)
    result = {}
    for name in before:
        if name in after:
            drawn = after[name] - before[name]
            value = second[0][name].value - first[0][name].value
            against = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
            p = min(1.0, 2 * (against + 1) / (resamples + 1))
            result[name] = Difference(value, Interval(*np.quantile(drawn, (0.025, 0.975)).tolist()), p)
    return result


def grouped_interval(groups: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of the mean over all values, where whole groups are drawn.

    The values of a group (the questions about one picture) depend on one another, so drawing them one by one
    would give too narrow an interval.
    """
    sums_G, counts_G = (
        np.array([sum(group) for group in groups], float),
        np.array([len(group) for group in groups], float),
    )
    picks_RG = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    return Interval(
        *np.quantile(sums_G[picks_RG].sum(1) / counts_G[picks_RG].sum(1), (0.025, 0.975)).tolist()
    )


def _resampled(
    sides: list[tuple[dict[str, Score], BleuCounts | None]], resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Returns for each side and metric its value in each resample, shape (resamples,)."""
    images = [list(next(iter(scores.values())).values_per_item()) for scores, _ in sides]
    if any(other != images[0] for other in images):
        raise DataError("the predictions that are compared are not of the same images in the same order")
    size = len(images[0])
    random = np.random.default_rng(seed)
    drawn: list[dict[str, list[np.ndarray]]] = [{} for _ in sides]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picks_RB = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        weights_RB = np.bincount(picks_RB.ravel(), minlength=rows * size).reshape(rows, size).astype(float)
        for side, (scores, counts) in enumerate(sides):
            for name, values in _values(scores, counts, weights_RB).items():
                drawn[side].setdefault(name, []).append(values)
    return [{name: np.concatenate(parts) for name, parts in side.items()} for side in drawn]


def _values(
    scores: dict[str, Score], counts: BleuCounts | None, weights_RB: np.ndarray
) -> dict[str, np.ndarray]:
    result = {}
    if counts is not None:
        bleu_RN = bleu_values(BleuCounts(*(weights_RB @ column for column in counts)))
        result = {f"Bleu_{n + 1}": bleu_RN[:, n] for n in range(bleu_RN.shape[1])}
    for name, score in scores.items():
        if name not in result and not name.startswith("Bleu_"):
            values_B = np.fromiter(score.values_per_item().values(), float)
            result[name] = weights_RB @ values_B / len(values_B) + (score.value - values_B.mean())
    return result
