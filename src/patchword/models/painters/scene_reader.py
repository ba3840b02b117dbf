"""Reads a drawn picture back into its things: the oracle that says what a painted scene shows.

A small convolutional detector in the manner of CenterNet (Zhou et al. 2019, "Objects as Points",
arXiv 1904.07850): every cell of a grid says whether a thing's centre lies in it, and which thing. A cell has
three slots, for small, medium and large radii, so that a small thing inside a large one has a slot of its
own.

    slot  = (is there one, dx, dy, radius, shape, colour)        dx, dy: place of the centre within the cell
    L    = BCE(is there one) + CE(shape) + CE(colour) + |dx, dy, radius|     the last three where there is one
          + CE(background)

A cell whose middle lies near the centre of a thing in another cell may say so or not: the first sum leaves
it out.

Shape legend: B pictures, S their side, G side of the grid, R = 3 slots, F numbers of a slot, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

SLOTS = (0.165, 0.245)
"""Bounds between the radii of the three slots, as shares of the picture."""
SIDE = 32
"""Pixels of a picture as the reader sees it; others are resized first."""
NEAR = 0.8
"""Cells from the middle of a cell to a centre, within which the cell need not say that it has none."""


class SceneReaderConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the reader."""

    width: int = Field(48, gt=0, description="channels of the grid's layers")
    shapes: int = Field(8, gt=0, description="kinds of things")
    colours: int = Field(8, gt=0, description="their colours")
    backgrounds: int = Field(5, gt=0, description="colours of the ground")


class Reading(NamedTuple):
    """What the reader sees in B pictures."""

    there_BRGG: Tensor
    """Logit that a slot holds a thing."""
    place_BR3GG: Tensor
    """Place within the cell, right and down, in [0, 1], and the radius as a share of the picture."""
    shape_BRFGG: Tensor
    colour_BRFGG: Tensor
    background_BF: Tensor
    features_BC: Tensor
    """Mean and maximum over the grid's last layer: features for distances between sets of pictures."""


class SceneReader(nn.Module):
    """Sees pictures (B, 3, 32, 32) in [-1, 1]."""

    def __init__(self, config: SceneReaderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = []
        now = 3
        for out, stride in ((24, 1), (width, 2), (width, 1), (width, 2), (width, 1), (width, 1), (width, 1)):
            layers += [nn.Conv2d(now, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            now = out
        self.body = nn.Sequential(*layers)
        self.per_slot = 4 + config.shapes + config.colours
        self.head = nn.Conv2d(width, (len(SLOTS) + 1) * self.per_slot, 1)
        self.ground = nn.Linear(width, config.backgrounds)
        assert self.head.bias is not None  # by torch's default
        nn.init.constant_(self.head.bias, -2.0)

    def forward(self, pixels_B3SS: Tensor) -> Reading:
        """What is where."""
        map_BCGG = self.body(pixels_B3SS)
        mean_BC, most_BC = map_BCGG.mean((2, 3)), map_BCGG.amax((2, 3))
        slots = self.head(map_BCGG).unflatten(1, (len(SLOTS) + 1, self.per_slot))
        there, place, shape, colour = slots.split([1, 3, self.config.shapes, self.config.colours], 2)
        features_BC = torch.cat([mean_BC, most_BC], 1)
        return Reading(there[:, :, 0], place.sigmoid(), shape, colour, self.ground(mean_BC), features_BC)


class Things(NamedTuple):
    """K things of pictures, as a reader is trained on them."""

    picture_K: Tensor
    slot_K: Tensor
    row_K: Tensor
    column_K: Tensor
    place_K3: Tensor
    shape_K: Tensor
    colour_K: Tensor


def reading_loss(found: Reading, things: Things, background_B: Tensor) -> Tensor:
    """The loss of a batch."""
    there, counts = torch.zeros_like(found.there_BRGG), torch.ones_like(found.there_BRGG)
    at = (things.picture_K, things.slot_K, things.row_K, things.column_K)
    middles_G = torch.arange(there.shape[-1]) + 0.5
    right_KG = things.column_K[:, None] + things.place_K3[:, :1] - middles_G
    down_KG = things.row_K[:, None] + things.place_K3[:, 1:2] - middles_G
    near_KGG = torch.hypot(down_KG[:, :, None], right_KG[:, None, :]) < NEAR
    thing_P, row_P, column_P = near_KGG.nonzero().T
    counts[things.picture_K[thing_P], things.slot_K[thing_P], row_P, column_P] = 0.0
    there[at], counts[at] = 1.0, 1.0
    rare = torch.tensor(8.0)  # most cells are empty
    loss = F.binary_cross_entropy_with_logits(found.there_BRGG, there, counts, pos_weight=rare)

    def of_things(map_BRFGG: Tensor) -> Tensor:
        return map_BRFGG[at[0], at[1], :, at[2], at[3]]

    loss = loss + F.cross_entropy(of_things(found.shape_BRFGG), things.shape_K)
    loss = loss + F.cross_entropy(of_things(found.colour_BRFGG), things.colour_K)
    loss = loss + (of_things(found.place_BR3GG) - things.place_K3).abs().mean()
    return loss + 0.5 * F.cross_entropy(found.background_BF, background_B)
