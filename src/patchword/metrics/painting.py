"""How good generated pictures are, from features of any extractor: distances, precision and recall,
agreement.

    inception_score   exp(E KL(p(y|x) || p(y)))                                        (Salimans et al. 2016)
    frechet_distance  |m - m'|^2 + Tr(C + C' - 2 (C C')^1/2)                           (Heusel et al. 2017)
    kernel_distance   unbiased MMD^2 with the kernel (x.y / d + 1)^3                   (Binkowski et al. 2018)
    precision, recall share within the balls around the k-nearest neighbours        (Kynkaanniemi et al. 2019)
    density, coverage the same, counted                                                (Naeem et al. 2020)
    r_precision       share whose own text is the nearest of 100                       (Xu et al. 2018)

A Frechet distance is called FID only with Inception's weights; everywhere else it carries the name of what
made the features. Nothing here knows a model, and numpy is enough.

Shape legend: N generated and M real pictures, D features, Y classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchword.errors import DataError, counted

_CHUNK = 1024
"""Rows whose distances are computed at once."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, and how many there were: what a Frechet distance needs, in a size that
    does not grow with the number of pictures."""

    count: int
    mean_D: np.ndarray
    covariance_DD: np.ndarray


def moments(batches_ND: Iterable[np.ndarray]) -> Moments:
    """Moments of features that come in batches, in float64 and one pass (Chan et al. 1979).

    The covariance is the unbiased one. Raises DataError for fewer than two pictures.
    """
    count, mean_D, scatter_DD = 0, np.zeros(0), np.zeros((0, 0))
    for batch_ND in batches_ND:
        batch_ND = np.asarray(batch_ND, np.float64)
        own, own_D = len(batch_ND), batch_ND.mean(0)
        centred_ND = batch_ND - own_D
        if count == 0:
            count, mean_D, scatter_DD = own, own_D, centred_ND.T @ centred_ND
            continue
        gap_D = own_D - mean_D
        scatter_DD = (
            scatter_DD + centred_ND.T @ centred_ND + np.outer(gap_D, gap_D) * (count * own / (count + own))
        )
        mean_D = mean_D + gap_D * (own / (count + own))
        count += own
    if count < 2:
        raise DataError(
            f"{counted(count, 'picture has', 'pictures have')} no covariance: give at "
            "least two, thousands for a distance"
        )
    return Moments(count, mean_D, scatter_DD / (count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Frechet distance between two normal distributions.

    The trace of (C C')^1/2 is the sum of the roots of the eigenvalues of C^1/2 C' C^1/2, which is symmetric,
    so that no complex part appears; eigenvalues below zero are rounding, and count as zero.
    """
    gap = float(((first.mean_D - second.mean_D) ** 2).sum())
    values_D, vectors_DD = np.linalg.eigh(first.covariance_DD)
    root_DD = (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T
    product_DD = root_DD @ second.covariance_DD @ root_DD
    shared = float(np.sqrt(np.linalg.eigvalsh((product_DD + product_DD.T) / 2).clip(0)).sum())
    found = gap + float(np.trace(first.covariance_DD) + np.trace(second.covariance_DD)) - 2 * shared
    return max(0.0, found)


def too_few(first: Moments, second: Moments) -> str | None:
    """What a person must know about a distance over so few pictures; None where there are enough.

    With no more pictures than features a covariance has no full rank, and the distance is biased upwards.
    """
    least, width = min(first.count, second.count), len(first.mean_D)
    if least > width:
        return None
    return (
        f"{least} pictures and {width} features: the covariance has no full rank, and the distance is far "
        "too "
        f"high; it may be compared with others of the same number only. Use more than {width}, or `KID`"
    )


def kernel_distance(
    first_ND: np.ndarray, second_MD: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: the mean, and the standard deviation, of the unbiased MMD^2 over random subsets.

    Between two samples of one distribution the mean is 0, and may be below. Raises DataError for fewer than
    two pictures.
    """
    least = min(len(first_ND), len(second_MD), size)
    if least < 2:
        raise DataError(
            f"{counted(least, 'picture has', 'pictures have')} no kernel distance: "
            "give at least two on either side"
        )
    rng, found = np.random.default_rng(seed), []
    for _ in range(subsets):
        a = np.asarray(first_ND[rng.choice(len(first_ND), least, replace=False)], np.float64)
        b = np.asarray(second_MD[rng.choice(len(second_MD), least, replace=False)], np.float64)
        found.append(_mmd(a, b))
    return float(np.mean(found)), float(np.std(found))


def _mmd(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    width, count = a_ND.shape[1], len(a_ND)
    aa, bb, ab = ((x @ y.T / width + 1) ** 3 for x, y in ((a_ND, a_ND), (b_ND, b_ND), (a_ND, b_ND)))
    own = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (count * (count - 1))
    return float(own - 2 * ab.mean())


def inception_score(probabilities_NY: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over the splits; between 1 and the number of classes.

    `probabilities_NY` are those of a classifier; the score is "Inception" only with Inception's. Raises
    DataError where there are fewer pictures than splits.
    """
    if len(probabilities_NY) < splits:
        raise DataError(
            f"{counted(len(probabilities_NY), 'picture')} cannot be split into "
            f"{counted(splits, 'part')}: give more"
        )
    found = []
    for part_NY in np.array_split(np.asarray(probabilities_NY, np.float64), splits):
        mean_Y = part_NY.mean(0)
        logs_NY = np.log(part_NY.clip(1e-30)) - np.log(mean_Y.clip(1e-30))
        found.append(np.exp((part_NY * logs_NY).sum(1).mean()))
    return float(np.mean(found)), float(np.std(found))


class Neighbourhood(NamedTuple):
    """How two sets of pictures lie among each other."""

    precision: float
    """Share of generated pictures within the balls of real ones."""
    recall: float
    """Share of real pictures within the balls of generated ones."""
    density: float
    """Real balls around a generated picture, in units of k; may be above 1."""
    coverage: float
    """Share of real pictures whose ball holds a generated one."""


def refuse_few(name: str, count: int, k: int) -> None:
    """Raises DataError for a set of no more than k pictures."""
    if count <= k:
        raise DataError(
            f"{counted(count, name + ' picture has', name + ' pictures have')} no {counted(k, 'neighbour')}: "
            f"give more than {k}"
        )


def neighbourhood(generated_ND: np.ndarray, real_MD: np.ndarray, k: int = 3) -> Neighbourhood:
    """Improved precision and recall, density and coverage; a ball reaches to the k-th neighbour of its set.

    Raises DataError where a set has no more than k pictures.
    """
    refuse_few("generated", len(generated_ND), k)
    refuse_few("real", len(real_MD), k)
    generated, real = np.asarray(generated_ND, np.float64), np.asarray(real_MD, np.float64)
    real_radius_M, generated_radius_N = _radii(real, k), _radii(generated, k)
    inside_N = np.zeros(len(generated), bool)
    count_N = np.zeros(len(generated))
    recalled_M, covered_M = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for first in range(0, len(generated), _CHUNK):
        rows = slice(first, first + _CHUNK)
        distance_NM = _distances(generated[rows], real)
        in_real_NM = distance_NM <= real_radius_M
        inside_N[rows], count_N[rows] = in_real_NM.any(1), in_real_NM.sum(1)
        recalled_M |= (distance_NM <= generated_radius_N[rows, None]).any(0)
        covered_M |= in_real_NM.any(0)
    return Neighbourhood(
        float(inside_N.mean()), float(recalled_M.mean()), float(count_N.mean() / k), float(covered_M.mean())
    )


def _radii(features_ND: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th neighbour in the same set, itself not counted."""
    found = []
    for first in range(0, len(features_ND), _CHUNK):
        distance = _distances(features_ND[first : first + _CHUNK], features_ND)
        distance[np.arange(len(distance)), first + np.arange(len(distance))] = -1.0  # itself, exactly first
        found.append(np.partition(distance, k, axis=1)[:, k])
    return np.concatenate(found)


def _distances(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    squares = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * a_ND @ b_MD.T
    return np.sqrt(squares.clip(0))


def r_precision(
    pictures_NE: np.ndarray, texts_NE: np.ndarray, captions: list[str], others: int = 99, seed: int = 0
) -> np.ndarray:
    """For each picture, whether its own text is nearer than `others` texts that say something else (0 or 1).

    As in AttnGAN: 99 mismatched descriptions, drawn for each picture; texts that are equal to its own are
    none. Where there are fewer, all of them are taken. Raises DataError where all texts are the same.
    """
    if len(set(captions)) < 2:
        raise DataError("R-precision compares a text with others, and all captions are the same")
    rng, names = np.random.default_rng(seed), np.array(captions)
    won = np.zeros(len(captions))
    for n, own in enumerate(captions):
        places = np.flatnonzero(names != own)
        if len(places) > others:
            places = rng.choice(places, others, replace=False)
        scores = texts_NE[places] @ pictures_NE[n]
        won[n] = float(texts_NE[n] @ pictures_NE[n] > scores.max())
    return won


def interval(
    statistic: Callable[[np.ndarray], float], count: int, samples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of a statistic by the bootstrap; it is given places of pictures, drawn with
    replacement."""
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(count, size=count)) for _ in range(samples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
