"""Regions of a picture: their boxes, the five numbers that place them, cells of a grid and squares of them.

Lu et al. 2019 (ViLBERT, section 2.2). A box is left, top, right and bottom as shares of the picture's sides.

Shape legend (in addition to `types.py`): N regions with the whole picture first, F width of their features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchword.layers.features import masked_mean


def cell_boxes(hw: tuple[int, int]) -> Tensor:
    """Boxes (1 + rows * columns, 4) of the whole picture and its cells, as shares of its sides."""
    rows, columns = hw
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    boxes += [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.tensor(boxes)


def five(boxes_N4: Tensor) -> Tensor:
    """The geometry of boxes as ViLBERT has it: x1, y1, x2, y2 and the area, all as shares."""
    area_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    return torch.cat((boxes_N4, area_N[:, None]), 1)


def whole_and_cells(grid_BNF: Tensor, mask_BN: Tensor | None) -> Tensor:
    """The mean cell before the cells, (B, 1 + N, F)."""
    return torch.cat((masked_mean(grid_BNF, mask_BN)[:, None], grid_BNF), 1)


def squares(cells_NF: Tensor, hw: tuple[int, int], sides: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    """The mean feature of every square of cells, small ones first, (M, F); boxes are those of
    `square_boxes`.

    `cells_NF` has no row for the whole picture.
    """
    grid = cells_NF.unflatten(0, hw)
    return torch.stack(
        [
            grid[row : row + side, column : column + side].flatten(0, 1).mean(0)
            for side, row, column in _squares(hw, sides)
        ]
    )


def square_boxes(hw: tuple[int, int], sides: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    """The boxes of `squares`, (M, 4)."""
    rows, columns = hw
    return torch.tensor(
        [
            (column / columns, row / rows, (column + side) / columns, (row + side) / rows)
            for side, row, column in _squares(hw, sides)
        ]
    )


def _squares(hw: tuple[int, int], sides: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(side, row, column) of the squares that fit."""
    rows, columns = hw
    return [
        (side, row, column)
        for side in sides
        for row in range(rows - side + 1)
        for column in range(columns - side + 1)
    ]


def overlaps(boxes_N4: Tensor, box_4: Tensor) -> Tensor:
    """Intersection over union of each box with one, (N,)."""
    low, high = torch.maximum(boxes_N4[:, :2], box_4[:2]), torch.minimum(boxes_N4[:, 2:], box_4[2:])
    shared_N = (high - low).clamp_min(0).prod(1)
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    return shared_N / (areas_N + (box_4[2:] - box_4[:2]).prod() - shared_N).clamp_min(1e-12)
