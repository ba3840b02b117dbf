"""K-Means in torch with its own random generator, and values for the centres.

All work is done in chunks, so that the largest table apart from the points has a few thousand rows by the
number of centres. On a CPU, the same points and the same generator state give the same centres, bit for bit.

Shape legend: N points, M centres, D width, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 4096
_SEEDS_PER_CENTRE = 16


def kmeans(
    points_ND: Tensor, count: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns `count` centres (M, D) and the number of points of each (M).

    They come from k-means++ seeds (Arthur 2007) and Lloyd's iterations. A centre that loses all its points
    moves to the point that is farthest from its own centre. `generator` must be on the CPU. Raises ValueError
    where there are fewer points than centres.
    """
    if len(points_ND) < count:
        raise ValueError(f"{len(points_ND)} points cannot have {count} centres")
    centres_MD = _seeds(points_ND, count, generator)
    for _ in range(iterations):
        nearest_N, distances_N = _nearest(points_ND, centres_MD)
        moved_MD = _means(points_ND, nearest_N, distances_N, centres_MD)
        if torch.equal(moved_MD, centres_MD):
            break
        centres_MD = moved_MD
    nearest_N, _ = _nearest(points_ND, centres_MD)
    return centres_MD, nearest_N.bincount(minlength=count)


def neighbour_values(
    centres_MD: Tensor, keys_ND: Tensor, values_ND: Tensor, neighbours: int
) -> tuple[Tensor, Tensor]:
    """Returns a value for each centre, (M, D), and the indices of its nearest keys, (M, K).

    The value is the mean of the values of these keys, weighted by exp(-distance). It is computed as a softmax
    over negative distances, because exp(-distance) itself underflows at widths of some hundred. With one
    neighbour it is exactly that neighbour's value.
    """
    neighbours = min(neighbours, len(keys_ND))
    values, indices = [], []
    for chunk_MD in centres_MD.split(max(1, _CHUNK * _CHUNK // len(keys_ND))):
        distances_MK, nearest_MK = torch.cdist(chunk_MD, keys_ND).topk(neighbours, dim=1, largest=False)
        weights_MK = (-distances_MK).softmax(dim=1)
        values.append((weights_MK[..., None] * values_ND[nearest_MK]).sum(dim=1))
        indices.append(nearest_MK)
    return torch.cat(values), torch.cat(indices)


def _seeds(points_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws k-means++ seeds from a random subset of the points.

    A point is drawn with a probability proportional to its squared distance from the nearest seed so far.
    """
    drawn = torch.randperm(len(points_ND), generator=generator)[: count * _SEEDS_PER_CENTRE]
    points_ND = points_ND[drawn.to(points_ND.device)]
    uniform = torch.rand(count, generator=generator).tolist()
    chosen_MD = points_ND.new_empty(count, points_ND.shape[1])
    chosen_MD[0] = points_ND[0]
    norms_N = points_ND.square().sum(dim=1)
    apart_N = _apart(points_ND, norms_N, 0)
    for seed in range(1, count):
        reached_N = apart_N.double().cumsum(dim=0)
        place = torch.searchsorted(reached_N, reached_N[-1:] * uniform[seed], right=True).clamp(
            max=len(points_ND) - 1
        )
        chosen_MD[seed] = points_ND[place[0]]
        apart_N = torch.minimum(apart_N, _apart(points_ND, norms_N, place[0]))
    return chosen_MD


def _apart(points_ND: Tensor, norms_N: Tensor, place: int | Tensor) -> Tensor:
    """Squared distances of all points to one of them, as |p|^2 + |c|^2 - 2 p c.

    This form reads the points once and writes no difference vectors. Rounding leaves small remainders where
    the distance is zero; they are set to zero, so that a point and its copies are not both drawn.
    """
    sums_N = norms_N + norms_N[place]
    apart_N = sums_N - 2 * (points_ND @ points_ND[place])
    return apart_N.masked_fill_(apart_N <= 1e-5 * sums_N, 0)


def _nearest(points_ND: Tensor, centres_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the index of each point's nearest centre and the squared distance to it."""
    norms_M = centres_MD.square().sum(dim=1)
    nearest, distances = [], []
    for chunk_ND in points_ND.split(_CHUNK):
        closest = torch.addmm(norms_M, chunk_ND, centres_MD.T, alpha=-2).min(dim=1)
        nearest.append(closest.indices)
        distances.append(closest.values + chunk_ND.square().sum(dim=1))
    return torch.cat(nearest), torch.cat(distances)


def _means(points_ND: Tensor, nearest_N: Tensor, distances_N: Tensor, centres_MD: Tensor) -> Tensor:
    sizes_M = nearest_N.bincount(minlength=len(centres_MD))
    sums_MD = torch.zeros_like(centres_MD).index_add_(0, nearest_N, points_ND)
    means_MD = sums_MD / sizes_M.clamp(min=1)[:, None]
    empty = (sizes_M == 0).nonzero()[:, 0]
    if len(empty):
        means_MD[empty] = points_ND[distances_N.topk(len(empty)).indices]
    return means_MD
