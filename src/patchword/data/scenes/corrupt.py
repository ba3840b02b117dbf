"""Corruptions of drawn pictures in five severities, to measure the robustness of a model.

They follow Hendrycks and Dietterich (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from patchword.data.scenes.world import PURPOSES, Scene
from patchword.errors import DataError

Corruption = Literal["noise", "blur", "contrast", "brightness", "pixelate"]


def corrupt(pixels_BSSC: np.ndarray, scenes: Sequence[Scene], kind: Corruption, severity: int) -> np.ndarray:
    """Returns a corrupted copy of the uint8 pictures (B, S, S, 3); severity is 1 to 5.

    The same scene is always corrupted in the same way. Raises `DataError` for an unknown kind or severity.
    """
    if severity not in range(1, 6):
        raise DataError(f"severity {severity} of {kind!r}: expected a whole number from 1 to 5")
    strength = severity / 5
    if kind == "noise":
        noise = [
            s.generator(PURPOSES["corruption"]).standard_normal(pixels_BSSC.shape[1:], np.float32)
            for s in scenes
        ]
        values = pixels_BSSC + 64 * strength * np.stack(noise)
    elif kind == "contrast":
        mean_B111 = pixels_BSSC.mean(axis=(1, 2, 3), keepdims=True)
        values = mean_B111 + (pixels_BSSC - mean_B111) * (1 - 0.85 * strength)
    elif kind == "brightness":
        values = pixels_BSSC + 128.0 * strength
    elif kind in ("blur", "pixelate"):
        values = np.stack([_smeared(pixels_SSC, kind, strength) for pixels_SSC in pixels_BSSC])
    else:
        raise DataError(
            f"corruption {kind!r} is not known: expected noise, blur, contrast, brightness or pixelate"
        )
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _smeared(pixels_SSC: np.ndarray, kind: str, strength: float) -> np.ndarray:
    image, size = Image.fromarray(pixels_SSC), pixels_SSC.shape[0]
    if kind == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(strength * size / 16)))
    coarse = max(4, round(size * (1 - 0.75 * strength)))
    return np.asarray(
        image.resize((coarse, coarse), Image.Resampling.BOX).resize((size, size), Image.Resampling.NEAREST)
    )
