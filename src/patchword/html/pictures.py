"""Pictures and attention maps as data URIs, so that a page is a single file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_DIM = 205  # darkness (of 255) of a patch without attention; the picture stays visible under it
_MAP_SIDE = 112  # longer side of an attention map in pixels after smoothing


SIDE = 360
"""Longer side of a picture in a report, in pixels."""


def small_jpeg(picture: Image.Image, longest: int = SIDE) -> bytes:
    """Encodes the picture as a JPEG of at most `longest` pixels, without the file's own metadata.

    Transparent parts become white.
    """
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if small.mode in ("RGBA", "LA", "PA", "P"):
        rgba = small.convert("RGBA")
        small = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _encoded(small.convert("RGB"), "JPEG", quality=85, optimize=True)


def picture_uri(picture: Image.Image, longest: int = SIDE) -> str:
    """Returns `small_jpeg` as a data URI."""
    return _uri(small_jpeg(picture, longest), "jpeg")


def opened(jpeg: bytes) -> Image.Image:
    """Opens the picture that `small_jpeg` wrote."""
    return Image.open(io.BytesIO(jpeg))


def smoothed(weights_hw: np.ndarray, longest: int = _MAP_SIDE) -> np.ndarray:
    """Divides an attention map by its maximum and enlarges it with cell centres in place: float32 in [0, 1].

    Only the maximum is used, so that an even map stays evenly bright; stretching it from its minimum would
    invent a pattern. Values that are not finite count as 0.
    """
    weights = np.nan_to_num(np.asarray(weights_hw, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    weights = weights / max(float(weights.max(initial=0.0)), 1e-12)
    rows, columns = weights.shape
    factor = max(1, longest // max(rows, columns))
    large = Image.fromarray(weights).resize((columns * factor, rows * factor), Image.Resampling.BICUBIC)
    return np.asarray(large).clip(0, 1)


def shade_uri(weights_hw: np.ndarray) -> str:
    """A PNG data URI to lay over the picture: clear where the weight is largest, dark where it is 0."""
    alpha = np.rint(_DIM * (1 - smoothed(weights_hw))).astype(np.uint8)
    shade = Image.merge("LA", (Image.new("L", alpha.shape[::-1], 8), Image.fromarray(alpha)))
    return _uri(_encoded(shade, "PNG", optimize=True), "png")


def blocks_uri(weights_hw: np.ndarray, side: int = 16) -> str:
    """Returns a PNG data URI as `shade_uri` does, but with sharp edges.

    Every patch is a block of `side` pixels, so that a reader can count patches.
    """
    weights = np.nan_to_num(np.asarray(weights_hw, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    alpha = np.rint(_DIM * (1 - weights / max(float(weights.max(initial=0.0)), 1e-12))).astype(np.uint8)
    alpha = alpha.repeat(side, axis=0).repeat(side, axis=1)
    shade = Image.merge("LA", (Image.new("L", alpha.shape[::-1], 8), Image.fromarray(alpha)))
    return _uri(_encoded(shade, "PNG", optimize=True), "png")


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
