"""From a picture file of any kind to the numbers that a tower takes.

`open_picture` decodes safely and always gives an upright RGB picture; `Preprocessing` is the part that a tower prescribes (size, cut,
normalisation) and is kept in the model folder beside the weights, so that a picture is prepared later exactly as in training.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Annotated, Literal, Union

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from patchword.errors import PictureError

PIXEL_LIMIT = 100_000_000
"""Pictures of more pixels are refused before they are decoded: a file of some kilobytes can claim gigabytes."""

# Only decoders of plain rasters: nothing that starts another program (EPS), draws vectors (WMF) or opens containers (FPX, PSD, HDF5).
_SAFE_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "MPO", "PPM", "TGA", "JPEG2000", "ICO", "PCX", "SGI", "QOI", "AVIF",
)  # fmt: skip

_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif")

# EXIF orientation: how the stored picture must be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


def open_picture(
    source: str | Path | bytes | Image.Image | np.ndarray,
    pixel_limit: int = PIXEL_LIMIT,
    name: str | None = None,
) -> Image.Image:
    """Decode a picture: first frame, upright, transparency over white, 8 bits, RGB, without metadata.

    Opening the result again changes nothing: an orientation in the metadata (EXIF, XMP) is applied and taken off.
    `source` is a path, the bytes of a file, a Pillow image, or an array (H W, H W 1, H W 3 or H W 4; uint8, uint16, bool, or floats
    from 0 to 1). Raises `PictureError` with the name of the file (or `name`) and the reason; pictures of more than `pixel_limit` pixels
    are refused before they are decoded (Pillow itself refuses above 178,956,970 whatever the limit).
    """
    if isinstance(source, np.ndarray):
        return _plain(_composited(_from_array(source, pixel_limit)))
    if isinstance(source, Image.Image):
        return _decoded(source, name or getattr(source, "filename", "") or "<image>", pixel_limit)
    name = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    with open_lazily(source, name) as image:
        return _decoded(image, name, pixel_limit)


def open_lazily(source: str | Path | bytes, name: str) -> Image.Image:
    """Read only the header of a picture, by a safe decoder. Raises `PictureError`. The caller closes the image."""
    stream = io.BytesIO(_content(source, name))
    Image.init()
    formats = [kind for kind in _SAFE_FORMATS if kind in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # complaints about metadata, and the size, which is judged by our own limit
        try:
            return Image.open(stream, formats=formats)
        except Image.UnidentifiedImageError as reason:
            start = stream.getvalue()[:12]
            if start[4:] in _HEIC:
                raise PictureError(
                    f"{name}: not a picture that can be read: it is HEIC, as phones write it. Make it a JPEG."
                ) from reason
            expected = f"Expected {', '.join(formats)}."
            raise PictureError(
                f"{name}: not a picture of a known kind (it starts with {start[:8]!r}). {expected}"
            ) from reason
        except Image.DecompressionBombError as reason:
            limit = f"more than the limit of {2 * Image.MAX_IMAGE_PIXELS:,} that Pillow sets"
            raise PictureError(f"{name}: {limit}. Make it smaller first; it was not decoded.") from reason
        except Exception as reason:  # broken headers raise whatever the decoder trips over
            raise _damaged(name, reason) from reason


def _content(source: str | Path | bytes, name: str) -> bytes:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise PictureError(
            f"{name}: pictures are not fetched from the network. Download it and give the path of the file."
        )
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as reason:
        missing = isinstance(reason, FileNotFoundError)
        found = (
            "does not exist" if missing else f"cannot be read: {getattr(reason, 'strerror', None) or reason}"
        )
        raise PictureError(f"{name}: {found}. Give the path of a picture file.") from reason
    if not content:
        raise PictureError(f"{name}: the file is empty (0 bytes). Fetch it again or leave it out.")
    return content


def _decoded(image: Image.Image, name: str, pixel_limit: int) -> Image.Image:
    width, height = image.size
    if width * height > pixel_limit:
        found = f"{width}x{height} is {width * height:,} pixels"
        raise PictureError(
            f"{name}: {found}, more than the limit of {pixel_limit:,}. Make it smaller first; it was not decoded."
        )
    if width == 0 or height == 0:
        raise PictureError(f"{name}: the picture has no pixels ({width}x{height}).")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # complaints about metadata and palettes, of no use to whoever wants the picture
        try:
            image.load()
            turn = _UPRIGHT.get(orientation(image))
            image = _composited(image)
            return _plain(image.transpose(turn) if turn is not None else image)
        except PictureError as reason:
            raise PictureError(f"{name}: {reason}") from reason
        except (
            Exception
        ) as reason:  # a damaged file makes a decoder raise anything from OSError to IndexError
            raise _damaged(name, reason) from reason


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or where the metadata cannot be read, which harms no pixel."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the EXIF block is parsed by hand in Pillow and raises as many kinds of errors as there are broken cameras
        return 1
    return found if found in _UPRIGHT else 1


def _plain(image: Image.Image) -> Image.Image:
    """The pixels without the file's metadata: an orientation that has been applied must not be there to be applied again."""
    image.info = {}
    return image


def _composited(image: Image.Image) -> Image.Image:
    """8-bit RGB; what is transparent shows white."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(np.asarray(image))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    # A copy in every case: what we return must not close, or change, with the image that was given.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bits(values_HW: np.ndarray) -> Image.Image:
    """Grey picture of any depth: 16-bit values are divided by 257; 32-bit integers and floats of another range are stretched."""
    if not np.isfinite(values_HW).all():
        raise PictureError("the picture holds values that are not finite numbers")
    low, high = float(values_HW.min()), float(values_HW.max())
    if values_HW.dtype == np.uint16 or (values_HW.dtype.kind in "iu" and low >= 0 and 255 < high <= 65535):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 255 and values_HW.dtype.kind in "iu":
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled_HW = (values_HW.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled_HW).astype(np.uint8))


def _from_array(array: np.ndarray, pixel_limit: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise PictureError(
            f"<array>: the shape is {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): channels come last."
        )
    if array.shape[0] * array.shape[1] > pixel_limit:
        size = f"{array.shape[1]}x{array.shape[0]}"
        raise PictureError(
            f"<array>: {size} is more than the limit of {pixel_limit:,} pixels. Make it smaller first."
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == bool:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if array.dtype == np.uint16:
        return Image.fromarray(np.rint(array / 257.0).astype(np.uint8))
    if array.dtype.kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return Image.fromarray(np.rint(array * 255.0).astype(np.uint8))
    raise PictureError(
        f"<array>: the values are {array.dtype}, expected uint8, uint16, bool, or finite floats from 0 to 1."
    )


def _damaged(name: str, reason: BaseException) -> PictureError:
    said = " ".join(str(reason).split()) or type(reason).__name__
    return PictureError(
        f"{name}: cannot be decoded: {said}. The file is damaged: fetch it again or leave it out."
    )


Positive = Annotated[int, Field(ge=1, le=8192)]
Channel = Annotated[float, Field(ge=-1000, le=1000)]
Channels = tuple[Channel, Channel, Channel]


class Preprocessing(BaseModel):
    """How a tower wants its pictures: geometry, then normalisation. Round-trips through JSON; recorded in the model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Positive | tuple[Positive, Positive] = Field(description="edge in pixels, or height and width")
    fit: Literal["squash", "short_side_center_crop"] = Field(
        default="squash",
        description="squash: the whole picture, aspect not kept; short_side_center_crop: scaled until it covers the size, then the middle",
    )
    cover: float = Field(
        default=1.0,
        ge=1,
        le=8,
        description="center crop: the picture is scaled to cover this many times the size (ImageNet networks: 1 / 0.875)",
    )
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Channels = Field(default=(0.485, 0.456, 0.406), description="per channel, on the scale 0 to 1")
    std: Channels = Field(default=(0.229, 0.224, 0.225), description="per channel, on the scale 0 to 1")

    @model_validator(mode="after")
    def _can_divide(self) -> Preprocessing:
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0 in every channel, found {self.std}")
        return self

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width after `apply`."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def apply(self, image: Image.Image) -> np.ndarray:
        """The geometry: an RGB picture to uint8 (H, W, 3)."""
        height, width = self.hw
        resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        if self.fit == "squash":
            return np.array(image.resize((width, height), resample))
        image = image.crop(_without_far_ends(image.width, image.height, height, width))
        scaled, left, top = self._scaled(image.width, image.height)
        return np.array(image.resize(scaled, resample).crop((left, top, left + width, top + height)))

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What `apply` keeps of a picture of this size: left, top, right and bottom, in the picture's own pixels."""
        if self.fit == "squash":
            return 0.0, 0.0, float(width), float(height)
        rows, columns = self.hw
        cut_left, cut_top, cut_right, cut_bottom = _without_far_ends(width, height, rows, columns)
        scaled, left, top = self._scaled(cut_right - cut_left, cut_bottom - cut_top)
        across, down = (cut_right - cut_left) / scaled[0], (cut_bottom - cut_top) / scaled[1]
        return (
            cut_left + left * across,
            cut_top + top * down,
            cut_left + (left + columns) * across,
            cut_top + (top + rows) * down,
        )

    def _scaled(self, width: int, height: int) -> tuple[tuple[int, int], int, int]:
        """Width and height to which a picture is scaled before its middle is cut out, and the cut's left and top in it."""
        rows, columns = self.hw
        cover = (round(columns * self.cover), round(rows * self.cover))
        # Rounding as in CLIP's own preparation: the short side exact, the long side rounded down.
        if width * cover[1] <= height * cover[0]:
            scaled = (cover[0], max(cover[1], int(cover[0] * height / width)))
        else:
            scaled = (max(cover[0], int(cover[1] * width / height)), cover[1])
        return scaled, (scaled[0] - columns) // 2, (scaled[1] - rows) // 2

    def normalise(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) to float32 (B, 3, H, W): divided by 255, mean taken off, divided by the standard deviation."""
        if pixels_BHWC.dtype != np.uint8 or pixels_BHWC.ndim != 4 or pixels_BHWC.shape[3] != 3:
            raise PictureError(
                f"pixels must be uint8 (B, H, W, 3), found {pixels_BHWC.dtype} {pixels_BHWC.shape}"
            )
        scale_C = 1.0 / (255.0 * np.asarray(self.std, dtype=np.float32))
        offset_C = np.asarray(self.mean, dtype=np.float32) / np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(
            (pixels_BHWC * scale_C - offset_C).transpose(0, 3, 1, 2), dtype=np.float32
        )


def _without_far_ends(width: int, height: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """A strip of 30000x10 pixels would be scaled to a hundred million before the middle is cut out: cut roughly first.

    Eight times the wanted aspect is kept, so that the filter of the exact cut never sees the border made here. Returns left, top, right and
    bottom of what is kept.
    """
    longest_w = max(1, 8 * height * columns // rows)
    longest_h = max(1, 8 * width * rows // columns)
    left, top = max(0, width - longest_w) // 2, max(0, height - longest_h) // 2
    return left, top, width - left, height - top


Picture = Union[str, Path, Image.Image, np.ndarray]  # noqa: UP007 - read at run time by help()


def seen_box(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of a picture that a model sees, as shares of its width and height: what an attention grid is
    to be laid over."""
    left, top, right, bottom = preprocessing.seen(width, height)
    return left / width, top / height, right / width, bottom / height


def seen_part(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The picture cut to what the model sees, to whole pixels; of a strip at least one."""
    left, top, right, bottom = (round(edge) for edge in preprocessing.seen(*picture.size))
    left, top = min(left, picture.width - 1), min(top, picture.height - 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
