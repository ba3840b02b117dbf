"""The sizes of the EfficientNet-Lite family, for the tower with torch (`efficientnet_lite.py`) and the one
without (`efficientnet_lite_numpy.py`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

STEM_WIDTH = 32
"""Channels after the first convolution, in all members."""


class Scale(NamedTuple):
    """What distinguishes the members of the family.

    It is channels and depth relative to Lite0, and the side of the training pictures.
    """

    width: float
    depth: float
    size: int


SCALES = {
    "efficientnet-lite0": Scale(1.0, 1.0, 224),
    "efficientnet-lite1": Scale(1.0, 1.1, 240),
    "efficientnet-lite2": Scale(1.1, 1.2, 260),
}


class StagePlan(NamedTuple):
    """One stage of Lite0.

    Its filters are kernel x kernel, its first block has the stride, and `expansion` is t.
    """

    kernel: int
    stride: int
    expansion: int
    width: int
    blocks: int


STAGES = (
    StagePlan(3, 1, 1, 16, 1),
    StagePlan(3, 2, 6, 24, 2),
    StagePlan(5, 2, 6, 40, 2),
    StagePlan(3, 2, 6, 80, 3),
    StagePlan(5, 1, 6, 112, 3),
    StagePlan(5, 2, 6, 192, 4),
    StagePlan(3, 1, 6, 320, 1),
)


def scaled_stages(scale: Scale) -> tuple[StagePlan, ...]:
    """Returns the stages of a member of the family.

    Channels are rounded to the nearest multiple of 8 (never 10 % less), and depths are rounded up. The first
    and the last stage of the Lite family keep their depth.
    """
    stages = []
    for number, stage in enumerate(STAGES):
        wanted = stage.width * scale.width
        width = max(8, int(wanted + 4) // 8 * 8)
        width += 8 if width < 0.9 * wanted else 0
        fixed = number in (0, len(STAGES) - 1)
        blocks = stage.blocks if fixed else math.ceil(stage.blocks * scale.depth)
        stages.append(stage._replace(width=width, blocks=blocks))
    return tuple(stages)
