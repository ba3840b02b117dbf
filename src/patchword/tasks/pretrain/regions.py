"""Regions of pictures and their features by a frozen tower, computed once.

The first region is the whole picture: the mean feature and the full box. The others are the cells of the
tower's grid, or windows that the tower sees one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.composed import see
from patchword.data.captions import PictureInputs
from patchword.errors import ConfigError
from patchword.layers.features import masked_mean
from patchword.layers.regions import cell_boxes, five, square_boxes, squares, whole_and_cells

WINDOWS = (2, 3)
"""Crops: windows of a half and of a third of each side, each grid of them overlapping by half."""
HALVES = (2, 3, 4, 6)
"""Sides of the squares that a phrase may name, in halves of a cell."""
_AT_ONCE = 32


class Regions(NamedTuple):
    """Regions of n pictures, the same places in each."""

    features_nNF: Tensor
    """fp16 where there are many."""
    places_N5: Tensor
    classes_nNK: Tensor | None
    """What the tower's classifier says of each region; None for a tower without one."""


def window_boxes() -> Tensor:
    """Boxes of the whole picture and of overlapping windows, (1 + windows, 4)."""
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    for parts in WINDOWS:
        steps = [number / (2 * parts) for number in range(2 * parts - 1)]
        boxes += [(x, y, x + 1 / parts, y + 1 / parts) for y in steps for x in steps]
    return torch.tensor(boxes)


def boxes_of(kind: str, hw: tuple[int, int] | None) -> Tensor:
    """Boxes of the regions. Raises ConfigError for cells of a tower without a grid."""
    if kind == "crops":
        return window_boxes()
    if hw is None:
        raise ConfigError("the tower's features form no grid: set model.regions to crops")
    return cell_boxes(hw)


@torch.inference_mode()
def see_regions(tower: Any, pixels_B3HW: Tensor, kind: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features (B, N, F), class probabilities (B, N, K) or None, and boxes (N, 4) of a batch of pictures."""
    if kind == "cells":
        return _cells(*_seen(tower, pixels_B3HW))
    boxes_N4 = window_boxes()
    height, width = pixels_B3HW.shape[2:]
    parts, classes_parts = [], []
    for x1, y1, x2, y2 in boxes_N4.tolist():
        top, left = int(y1 * height), int(x1 * width)
        cut = pixels_B3HW[
            :, :, top : max(top + 1, round(y2 * height)), left : max(left + 1, round(x2 * width))
        ]
        cut = F.interpolate(cut, (height, width), mode="bilinear", antialias=True)
        features, logits = _seen(tower, cut)
        parts.append(masked_mean(features.grid_BNC, features.mask_BN))
        if logits is not None:
            classes_parts.append(logits.picture_BK.float().softmax(-1))
    classes = torch.stack(classes_parts, 1) if classes_parts else None
    return torch.stack(parts, 1), classes, boxes_N4


def _cells(features: Any, logits: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    seen_BNF = whole_and_cells(features.grid_BNC, features.mask_BN)
    classes = None
    if logits is not None:
        classes = torch.cat((logits.picture_BK[:, None], logits.cells_BNK), 1).float().softmax(-1)
    return seen_BNF, classes, boxes_of("cells", features.hw)


@torch.inference_mode()
def stored_regions(tower: Any, features: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same of the cells of a stored grid; its classes where they can be read from it."""
    return _cells(features, tower.classify(features) if _names_classes(tower) else None)


@torch.inference_mode()
def candidates(tower: Any, pixels_B3HW: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """What a phrase may name: features (B, 1 + M, F) and boxes (1 + M, 4), the whole picture first.

    Of a grid every square of 1, 1.5, 2 and 3 cells, at steps of half a cell, of features between the cells'
    by their distance; of crops each window.
    """
    if kind == "crops":
        features, _, boxes_N4 = see_regions(tower, pixels_B3HW, kind)
        return features, boxes_N4
    seen = tower(pixels_B3HW)
    boxes_N4 = boxes_of(kind, seen.hw)
    whole_B1F = masked_mean(seen.grid_BNC, seen.mask_BN)[:, None]
    grid_BFhw = seen.grid_BNC.transpose(1, 2).unflatten(2, seen.hw)
    halved = 2 * seen.hw[0], 2 * seen.hw[1]
    fine_BNF = F.interpolate(grid_BFhw, halved, mode="bilinear").flatten(2).transpose(1, 2)
    squares_BMF = torch.stack([squares(cells_NF, halved, HALVES) for cells_NF in fine_BNF])
    return torch.cat((whole_B1F, squares_BMF), 1), torch.cat((boxes_N4[:1], square_boxes(halved, HALVES)))


def _seen(tower: Any, pixels_B3HW: Tensor) -> tuple[Any, Any]:
    """Features, and logits of the tower's classes where it has a classifier."""
    return tower.look(pixels_B3HW) if _names_classes(tower) else (tower(pixels_B3HW), None)


def _names_classes(tower: Any) -> bool:
    return callable(getattr(tower, "look", None)) and bool(getattr(tower.config, "classifier", False))


def all_regions(
    tower: Any, pictures: PictureInputs, files: Sequence[str], kind: str, advance: Callable[[int], None]
) -> Regions:
    """The regions of all pictures, kept in memory as fp16.

    Raises ConfigError for features in place of pixels, of which only cells can be made, where crops are
    asked for.
    """
    tower.eval()
    features, classes, boxes_N4 = [], [], torch.zeros(0, 4)
    for first in range(0, len(files), _AT_ONCE):
        inputs = pictures.load(files[first : first + _AT_ONCE], None)
        if inputs.pixels_B3HW is not None:
            found, shares, boxes_N4 = see_regions(tower, inputs.pixels_B3HW, kind)
        elif kind == "cells":
            found, shares, boxes_N4 = stored_regions(tower, see(tower, inputs))
        else:
            raise ConfigError(
                "stored features have no crops: set model.regions to cells, or leave data.features out"
            )
        features.append(found.half())
        if shares is not None:
            classes.append(shares.half())
        advance(len(found))
    return Regions(torch.cat(features), five(boxes_N4), torch.cat(classes) if classes else None)
