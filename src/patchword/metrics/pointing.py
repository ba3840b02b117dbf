"""How well a map over a picture's cells points at an object, and how much a word hangs on the cells of a map.

Pointing game (Zhang et al. 2016, arXiv 1608.00507): a map hits where its strongest cell lies on an object
that the word names. Mass: the share of the map that lies on the objects. Deletion and insertion (Petsiuk
et al. 2018, arXiv 1806.07421): cells are taken away, or given back, in the order of the map; the area under
the word's probability is small for deletion and large for insertion where the map is right.

Shape legend: h x w cells of a map, T maps, K boxes or masks, H x W pixels, S curve points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchword.errors import DataError

SAMPLES = 16
"""A cell is sampled at this many places along each side to find how much of it an object covers."""

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Region(NamedTuple):
    """Where the objects of one kind lie, in cells of a map."""

    covered_hw: np.ndarray
    """Share of each cell that the objects cover, 0 to 1."""
    on_hw: np.ndarray
    """True for cells that count as a hit: their centre is on an object, or they hold most of an object."""


def box_region(boxes: Sequence[Edges], seen: Edges, hw: tuple[int, int]) -> Region:
    """The region of boxes (left, top, right, bottom), of which a model sees the part `seen`, all in pixels.

    Raises DataError where no box is given, or the seen part is empty.
    """
    x_X, y_Y = _sample_places(seen, hw)
    covers = [
        ((y_Y >= top) & (y_Y < bottom))[:, None] & ((x_X >= left) & (x_X < right))
        for left, top, right, bottom in boxes
    ]
    return _region(covers, hw)


def mask_region(masks_KHW: np.ndarray, seen: Edges, hw: tuple[int, int]) -> Region:
    """The region of masks (K, H, W), bool, of which a model sees the part `seen`, in pixels.

    Raises DataError where no mask is given, or the seen part is empty.
    """
    x_X, y_Y = _sample_places(seen, hw)
    rows_Y = np.floor(y_Y).astype(int).clip(0, masks_KHW.shape[1] - 1)
    columns_X = np.floor(x_X).astype(int).clip(0, masks_KHW.shape[2] - 1)
    return _region([mask_HW[rows_Y][:, columns_X] for mask_HW in masks_KHW], hw)


def _sample_places(seen: Edges, hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    left, top, right, bottom = seen
    if right <= left or bottom <= top:
        raise DataError(
            f"the seen part of a picture is {seen}: expected left, top, right and bottom of an area"
        )
    across_X, down_Y = (np.arange(SAMPLES * cells) + 0.5 for cells in (hw[1], hw[0]))
    x_X = left + across_X * (right - left) / len(across_X)
    return x_X, top + down_Y * (bottom - top) / len(down_Y)


def _region(covers: Sequence[np.ndarray], hw: tuple[int, int]) -> Region:
    if not covers:
        raise DataError("a region needs at least one box or mask")
    middle = SAMPLES // 2
    on_hw = np.zeros(hw, dtype=bool)
    for cover_YX in covers:
        cells_hSwS = cover_YX.reshape(hw[0], SAMPLES, hw[1], SAMPLES)
        share_hw = cells_hSwS.mean(axis=(1, 3))
        # A small object need not hold any centre; the cell with most of it is right all the same.
        on_hw |= cells_hSwS[:, middle, :, middle] | ((share_hw == share_hw.max()) & (share_hw > 0))
    whole_hSwS = np.logical_or.reduce(covers).reshape(hw[0], SAMPLES, hw[1], SAMPLES)
    return Region(whole_hSwS.mean(axis=(1, 3)), on_hw)


def hit(map_hw: np.ndarray, region: Region) -> float:
    """1 where the strongest cell is on the region, else 0; where several are equally strong, their mean.

    Raises DataError for a map of another grid.
    """
    _check(map_hw, region)
    return float(region.on_hw[map_hw == map_hw.max()].mean())


def mass(map_hw: np.ndarray, region: Region) -> float:
    """Share of the map that lies on the region; a map of zeros says nothing and counts as an even one.

    Raises DataError for a map of another grid, or with a value below zero.
    """
    _check(map_hw, region)
    if float(map_hw.min()) < 0:
        raise DataError(f"a map has the value {map_hw.min():.3g}: shares cannot be negative")
    total = float(map_hw.sum())
    weights_hw = np.full(map_hw.shape, 1 / map_hw.size) if total == 0 else map_hw / total
    return float((weights_hw * region.covered_hw).sum())


def _check(map_hw: np.ndarray, region: Region) -> None:
    if map_hw.shape != region.on_hw.shape:
        raise DataError(
            f"a map of {map_hw.shape} cells cannot be compared with objects on {region.on_hw.shape} cells"
        )
    if not np.isfinite(map_hw).all():
        raise DataError("a map holds values that are not finite")


def removal_masks(map_hw: np.ndarray, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The cells that are left (True) at each point of the curves: (S, N) for deletion and for insertion.

    `shares` are the shares of cells taken away (deletion) or given (insertion), from 0 to 1. A model needs at
    least one cell, so one always stays: the weakest in deletion, the strongest in insertion. Equal cells go
    in the order of the grid.
    """
    order_N = np.argsort(-map_hw.ravel(), kind="stable")
    rank_N = np.empty(len(order_N), dtype=int)
    rank_N[order_N] = np.arange(len(order_N))
    counts_S1 = np.array([round(share * len(order_N)) for share in shares])[:, None]
    return rank_N >= counts_S1.clip(max=len(order_N) - 1), rank_N < counts_S1.clip(min=1)


def area(shares: Sequence[float], values_S: Sequence[float]) -> float:
    """Area under a curve by the trapezoid rule, divided by its length, so that it is the mean height.

    Raises DataError where there are fewer than two points or the shares do not rise.
    """
    steps = np.diff(shares)
    if len(steps) == 0 or len(shares) != len(values_S) or (steps <= 0).any():
        raise DataError(f"a curve needs two points or more with rising shares, found {list(shares)}")
    heights = np.asarray(values_S, dtype=float)
    return float((steps * (heights[1:] + heights[:-1]) / 2).sum() / (shares[-1] - shares[0]))


def centre_map(hw: tuple[int, int]) -> np.ndarray:
    """The baseline that always points at the middle: a Gaussian with a deviation of a quarter of the side."""
    y_h, x_w = ((np.arange(cells) + 0.5) / cells - 0.5 for cells in hw)
    weights_hw = np.exp(-(y_h[:, None] ** 2 + x_w**2) / (2 * 0.25**2))
    return (weights_hw / weights_hw.sum()).astype(np.float32)


def uniform_map(hw: tuple[int, int]) -> np.ndarray:
    """The baseline that says nothing: every cell weighs the same."""
    return np.full(hw, 1 / (hw[0] * hw[1]), dtype=np.float32)


def random_map(hw: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """The baseline that guesses: weights drawn from a flat Dirichlet distribution."""
    return generator.dirichlet(np.ones(hw[0] * hw[1])).reshape(hw).astype(np.float32)
