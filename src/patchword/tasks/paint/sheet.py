"""A sheet of painted pictures: a grid, each with a line or two below it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 144
"""Least side of a picture on a sheet: small pictures are enlarged by whole numbers, so that pixels stay."""
_GAP, _LINE = 8, 12


def sheet(
    pixels_NHWC: np.ndarray, labels: Sequence[str], columns: int | None = None, title: str = ""
) -> Image.Image:
    """Pictures uint8 (n, H, W, 3) with their labels, row by row; by default about as wide as high."""
    count, height, width = pixels_NHWC.shape[:3]
    columns = columns or max(1, min(count, round(count**0.5 * 1.25)))
    factor = max(1, -(-CELL // max(height, width)))
    cell_width, cell_height = width * factor, height * factor
    per_line = max(8, cell_width // 6)
    lines = [textwrap.wrap(label, per_line)[:3] or [""] for label in labels]
    label_height = _LINE * max(map(len, lines)) + 4
    top = _LINE * 2 if title else 0
    rows = -(-count // columns)
    size = (
        _GAP + columns * (cell_width + _GAP),
        top + _GAP + rows * (cell_height + label_height + _GAP),
    )
    made = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(size=11)
    if title:
        pen.text((_GAP, _GAP), title, fill="black", font=font)
    for number, (pixels_HWC, said) in enumerate(zip(pixels_NHWC, lines, strict=True)):
        left = _GAP + number % columns * (cell_width + _GAP)
        upper = top + _GAP + number // columns * (cell_height + label_height + _GAP)
        enlarged = Image.fromarray(pixels_HWC).resize((cell_width, cell_height), Image.Resampling.NEAREST)
        made.paste(enlarged, (left, upper))
        for place, line in enumerate(said):
            pen.text((left, upper + cell_height + 2 + place * _LINE), line, fill="black", font=font)
    return made


def png_of(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
