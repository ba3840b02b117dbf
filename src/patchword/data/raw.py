"""Camera raw files, by LibRaw through rawpy (extra `raw`)."""

from __future__ import annotations

import io

from PIL import Image

from patchword.data.headers import Bounds
from patchword.errors import NotAPicture, PictureError, PictureTooLarge

_BYTES_A_PIXEL = 14
"""Bytes for each value of the sensor: LibRaw's four channels of 16 bits, and the picture made of them."""


def develop(content: bytes, name: str, bounds: Bounds) -> tuple[Image.Image, int, int]:
    """The picture that a camera's raw file becomes with the camera's own white balance, upright, with its
    full width and height; large ones at half the size, which needs no interpolation between colours.

    Raises:
        NotAPicture: rawpy is not installed; the message names the extra.
        PictureTooLarge: more pixels or bytes than `bounds` allows.
        PictureError: a file that LibRaw cannot read.
    """
    try:
        import rawpy
    except ImportError as error:
        raise NotAPicture(
            f"{name}: it is a camera's raw file; reading it needs rawpy: pip install 'patchword[raw]'"
        ) from error
    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            width, height = raw.sizes.width, raw.sizes.height
            if width * height > min(bounds.pixels, bounds.decoded_bytes // _BYTES_A_PIXEL):
                found = f"{width}x{height} is {width * height:,} pixels"
                raise PictureTooLarge(f"{name}: {found}, too large for a raw file. It was not decoded.")
            half = width * height > bounds.whole_pixels and min(width, height) >= 2 * bounds.least_side
            if raw.sizes.flip in (5, 6):  # the camera was held upright
                width, height = height, width
            pixels_HW3 = raw.postprocess(use_camera_wb=True, half_size=half)
    except rawpy.LibRawError as error:
        raise PictureError(
            f"{name}: cannot be decoded as a camera's raw file: {error}. Fetch it again or leave it out."
        ) from error
    return Image.fromarray(pixels_HW3), width, height
