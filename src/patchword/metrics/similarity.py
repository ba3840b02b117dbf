"""How well similarities agree with people's: Spearman's rank correlation, its interval, and tests of
differences.

Ties have the mean of their ranks. Pairs that a model does not know are left out and counted, never scored as
0: a correlation always stands beside its coverage. Intervals are bootstrapped over pairs (percentile, 95 %);
two models are compared on the pairs that both know, with the same resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchword.errors import DataError
from patchword.metrics.bootstrap import Difference, Interval

FEWEST = 5
"""Pairs below which there is no correlation worth a number."""
_CHUNK = 100
"""Resamples drawn at once."""


class Agreement(NamedTuple):
    """A rank correlation with people's scores."""

    spearman: float
    interval: Interval
    covered: int
    """Pairs that the model knows."""
    pairs: int
    """Pairs of the set."""


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values have the mean of theirs."""
    _, place_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    ends_U = np.cumsum(counts_U)
    return (ends_U - (counts_U + 1) / 2)[place_N]


def spearman(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """Spearman's correlation; not a number where one side is constant."""
    one_N, other_N = ranks(one_N) - (len(one_N) - 1) / 2, ranks(other_N) - (len(other_N) - 1) / 2
    norm = np.sqrt((one_N @ one_N) * (other_N @ other_N))
    return float(one_N @ other_N / norm) if norm > 0 else float("nan")


def agreement(
    people_N: Sequence[float], model_N: Sequence[float], resamples: int = 1000, seed: int = 0
) -> Agreement:
    """The correlation over the pairs that the model knows; it gives nan for those that it does not.

    Raises DataError where it knows fewer than five.
    """
    people, model = np.asarray(people_N, float), np.asarray(model_N, float)
    known = np.isfinite(model)
    if known.sum() < FEWEST:
        raise DataError(
            f"the model knows both words of {int(known.sum())} of {len(people)} pairs; at least {FEWEST} "
            "are needed "
            "for a correlation: train on text that has these words, or give other pairs"
        )
    drawn_R = _resampled(people[known], [model[known]], resamples, seed)[0]
    interval = Interval(*np.nanquantile(drawn_R, (0.025, 0.975)).tolist())
    return Agreement(spearman(people[known], model[known]), interval, int(known.sum()), len(people))


def difference(
    people_N: Sequence[float],
    first_N: Sequence[float],
    second_N: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """The second correlation minus the first over the pairs that both know, its interval, and the p-value of
    the two-sided paired bootstrap. Raises DataError where fewer than five pairs are known to both."""
    people, first, second = (np.asarray(side, float) for side in (people_N, first_N, second_N))
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < FEWEST:
        raise DataError(
            f"both models know {int(known.sum())} of {len(people)} pairs; at least {FEWEST} are needed"
        )
    people, first, second = people[known], first[known], second[known]
    before_R, after_R = _resampled(people, [first, second], resamples, seed)
    gain_R = after_R - before_R
    gain_R = gain_R[np.isfinite(gain_R)]
    against = min(int((gain_R <= 0).sum()), int((gain_R >= 0).sum()))
    value = spearman(people, second) - spearman(people, first)
    interval = Interval(*np.quantile(gain_R, (0.025, 0.975)).tolist())
    return Difference(value, interval, min(1.0, 2 * (against + 1) / (len(gain_R) + 1)))


def _resampled(people_N: np.ndarray, sides: list[np.ndarray], resamples: int, seed: int) -> list[np.ndarray]:
    """The correlation of each side with people's scores in each resample (R,); the same resamples for all."""
    size, random = len(people_N), np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in sides]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picks_RN = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        often_RN = np.bincount(picks_RN.ravel(), minlength=rows * size).reshape(rows, size).astype(float)
        ranks_RN = _weighted_ranks(people_N, often_RN)
        for side_N, found in zip(sides, parts, strict=True):
            found.append(_weighted_correlation(ranks_RN, _weighted_ranks(side_N, often_RN), often_RN))
    return [np.concatenate(found) for found in parts]


def _weighted_ranks(values_N: np.ndarray, often_RN: np.ndarray) -> np.ndarray:
    """Mean ranks of the values where each occurs so many times."""
    _, place_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    starts_U = np.cumsum(counts_U) - counts_U
    counts_RU = np.add.reduceat(often_RN[:, np.argsort(place_N, kind="stable")], starts_U, axis=1)
    return (np.cumsum(counts_RU, axis=1) - (counts_RU + 1) / 2)[:, place_N]


def _weighted_correlation(one_RN: np.ndarray, other_RN: np.ndarray, often_RN: np.ndarray) -> np.ndarray:
    middle = (often_RN.shape[1] - 1) / 2
    one_RN, other_RN = one_RN - middle, other_RN - middle
    norm_R = np.sqrt((often_RN * one_RN**2).sum(1) * (often_RN * other_RN**2).sum(1))
    with np.errstate(invalid="ignore"):  # a resample of one value only has no correlation: not a number
        return (often_RN * one_RN * other_RN).sum(1) / norm_R
