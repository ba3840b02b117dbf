"""Where each word of a prompt lies on a painted picture, as one figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchword.html.pictures import smoothed
from patchword.tasks.paint.sheet import CELL, sheet


def words_sheet(pixels_HWC: np.ndarray, words: Sequence[str], maps_Lhw: np.ndarray) -> Image.Image:
    """The picture, then once for every word with the cells dimmed that attended to it less."""
    height, width = pixels_HWC.shape[:2]
    factor = max(1, -(-CELL // max(height, width)))
    large = np.asarray(
        Image.fromarray(pixels_HWC).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    )
    shown = [large]
    for map_hw in maps_Lhw:
        light = Image.fromarray(smoothed(map_hw - map_hw.min()).astype(np.float32))
        light_HW = np.asarray(light.resize((width * factor, height * factor), Image.Resampling.BILINEAR))
        shown.append(np.rint(large * (0.2 + 0.8 * light_HW.clip(0, 1)[..., None])).astype(np.uint8))
    return sheet(np.stack(shown), ["the picture", *words], columns=min(len(shown), 6))
