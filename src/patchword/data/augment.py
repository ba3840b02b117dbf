"""Random views of pictures while a tower trains: crop, mirror image, brightness, contrast, saturation.

A crop has a random position, area and aspect. There is one affine resampling per batch, on the batch's
device. The random numbers come from a generator that the caller seeds by step, so a resumed run sees the same
views.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


class Augmentation(BaseModel, extra="forbid", frozen=True):
    """How much a random view may differ from the plain picture."""

    smallest_area: float = Field(
        0.5, gt=0, le=1, description="smallest share of the picture that a crop keeps"
    )
    aspect: float = Field(1.25, ge=1, description="largest ratio by which a crop is stretched")
    mirror: float = Field(
        0.5, ge=0, le=1, description="probability of a mirror image; 0 where captions speak of left and right"
    )
    colour: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="largest relative change of brightness and contrast; saturation changes a third more",
    )


def random_views(
    pixels_BHWC: Tensor, size: int, settings: Augmentation, generator: torch.Generator
) -> Tensor:
    """Turns uint8 (B, H, W, 3) into float views (B, 3, size, size) on the scale 0 to 1.

    After the change of colours, values may lie slightly outside.
    """
    pixels_B3HW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    batch = pixels_B3HW.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    area_B, log_aspect_B = uniform(settings.smallest_area, 1.0), uniform(-1, 1) * math.log(settings.aspect)
    width_B = (area_B * log_aspect_B.exp()).sqrt().clamp(max=1)
    height_B = (area_B * (-log_aspect_B).exp()).sqrt().clamp(max=1)
    sign_B = torch.where(uniform(0, 1) < settings.mirror, -1.0, 1.0)
    theta_B23 = torch.zeros(batch, 2, 3)
    theta_B23[:, 0, 0], theta_B23[:, 0, 2] = width_B * sign_B, uniform(-1, 1) * (1 - width_B)
    theta_B23[:, 1, 1], theta_B23[:, 1, 2] = height_B, uniform(-1, 1) * (1 - height_B)
    grid_BHW2 = affine_grid(theta_B23.to(pixels_B3HW.device), [batch, 3, size, size], align_corners=False)
    views_B3HW = grid_sample(pixels_B3HW, grid_BHW2, padding_mode="reflection", align_corners=False)

    def factor(range_: float) -> Tensor:
        return uniform(1 - range_, 1 + range_).view(-1, 1, 1, 1).to(views_B3HW.device)

    views_B3HW = views_B3HW * factor(settings.colour)
    mean_B111 = views_B3HW.mean((1, 2, 3), keepdim=True)
    views_B3HW = mean_B111 + (views_B3HW - mean_B111) * factor(settings.colour)
    grey_B1HW = views_B3HW.mean(1, keepdim=True)
    return grey_B1HW + (views_B3HW - grey_B1HW) * factor(min(0.99, settings.colour * 4 / 3))
