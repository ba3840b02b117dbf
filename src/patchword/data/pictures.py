"""From a picture of any kind to the numbers that a tower takes.

`open_picture` decodes safely and always gives an upright RGB picture; `Preprocessing` is the part that a
tower prescribes (size, cut, normalisation) and is kept in the model folder beside the weights, so that a
picture is prepared later exactly as in training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, Annotated, Any, Literal, Union, cast

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from patchword.data.headers import Bounds, check_pixels
from patchword.errors import PictureError
from patchword.lookup import look_up

# Read at run time, by help().
Picture = Union[  # noqa: UP007
    str, os.PathLike, bytes, bytearray, memoryview, IO[bytes], Image.Image, np.ndarray
]

ACCEPTED = "a path, the bytes of a picture file, an open binary file, a PIL image, or an array (H, W, 3)"
"""What messages say is expected."""


def open_picture(
    source: Picture, name: str | None = None, bounds: Bounds | None = None, *, allow_urls: bool = False
) -> Image.Image:
    """Decode a picture: first frame, upright, transparency over white, 8 bits, RGB, without metadata.

    Opening the result again changes nothing: an orientation in the metadata (EXIF, XMP) is applied and
    taken off. A picture of more than `bounds.whole_pixels` comes back reduced by a power of two, with
    `bounds.least_side` pixels or more on its shorter side.

    Args:
        source: a path, the bytes of a file, an open binary file (read from where it stands), a Pillow
            image, or an array (H W, H W 1, H W 3 or H W 4; uint8, uint16, bool, or floats from 0 to 1).
        name: what messages call it; the path, or what it is, where left out.
        bounds: what it may cost; the default is meant for a person's own files.
        allow_urls: whether `source` may be an address (http, https), from which at most 100 MiB are fetched
            within 30 seconds.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        NotAPicture: a file of no kind that is read.
        PictureTooLarge: it would cost more than `bounds` allows; nothing was decoded.
        PictureError: it is missing, damaged, or no picture by its type; the message says what was found and
            what is accepted.
    """
    bounds = bounds or Bounds()
    # Looked up: who reads many files has them decoded in another process (`isolated.py`).
    decoding = look_up("data.decoding")
    opened: Image.Image
    if isinstance(source, np.ndarray):
        check_pixels(source.shape[1::-1] if source.ndim > 1 else (1, 1), name or "<array>", bounds)
        opened = decoding.loaded(_from_array(source), name or "<array>", bounds)
    elif isinstance(source, Image.Image):
        opened = decoding.loaded(source, name or getattr(source, "filename", "") or "<image>", bounds)
    else:
        name = name or name_of(source)
        opened = decoding.decode(read_content(source, name, bounds, allow_urls), name, bounds).picture
    return opened


def one_or_many(pictures: Picture | Sequence[Picture]) -> tuple[list[Picture], bool]:
    """A list of pictures, and whether one was given without a list. Raises PictureError for what is
    neither."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures), False
    if _is_one(pictures):
        return [cast(Picture, pictures)], True
    if isinstance(pictures, Sequence):
        return list(cast("Sequence[Picture]", pictures)), False
    raise _unaccepted(pictures)


def _is_one(source: Any) -> bool:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(source, kinds) or hasattr(source, "read")


def name_of(source: Picture) -> str:
    """What messages call a picture that was given without a name."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def _unaccepted(source: Any) -> PictureError:
    found = f"found {'None' if source is None else type(source).__module__ + '.' + type(source).__qualname__}"
    do = f"give {ACCEPTED}"
    if hasattr(source, "numpy") and hasattr(source, "shape"):
        found += f" of shape {tuple(source.shape)}"
        do += "; of a tensor (3, H, W): tensor.permute(1, 2, 0).numpy()"
    return PictureError(f"this is no picture: {found.replace('builtins.', '')}; {do}")


def is_url(source: object) -> bool:
    """Whether this is the address of a picture on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def read_content(source: Picture, name: str, bounds: Bounds, allow_urls: bool = False) -> bytes:
    """The bytes of a picture file, at most one more than `bounds.file_bytes`. Raises PictureError where
    there is nothing to read."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    elif is_url(source):
        if not allow_urls:
            raise PictureError(
                f"{name}: pictures are fetched from the network only where that is allowed: --allow-urls on "
                "the command line, open_picture(..., allow_urls=True) in Python. Or download it."
            )
        content = look_up("data.network:fetch")(source)
    elif isinstance(source, (str, os.PathLike)):
        content = _from_disk(source, name, bounds)
    elif hasattr(source, "read"):
        content = source.read(bounds.file_bytes + 1)
        if not isinstance(content, bytes):
            raise PictureError(f"{name}: it is open as text: open it in binary, with mode 'rb'.")
        if not content and hasattr(source, "tell") and source.tell():
            raise PictureError(
                f"{name}: it was read to its end before: go back with seek(0), or give its bytes."
            )
    else:
        raise _unaccepted(source)
    return content


def _from_disk(source: str | os.PathLike, name: str, bounds: Bounds) -> bytes:
    try:
        with open(source, "rb") as file:
            return file.read(bounds.file_bytes + 1)
    except (OSError, ValueError) as reason:
        if isinstance(reason, FileNotFoundError | NotADirectoryError) and ".tar#" in os.fsdecode(source):
            content: bytes = look_up("data.shards:read_member")(source, bounds.file_bytes)
            return content
        if isinstance(reason, FileNotFoundError):
            found = "does not exist"
            if os.path.islink(source):
                found = f"is a link to {os.readlink(os.fspath(source))}, which does not exist"
        else:
            found = f"cannot be read: {getattr(reason, 'strerror', None) or reason}"
        raise PictureError(f"{name}: {found}. Give the path of a picture file.") from reason


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise PictureError(
            f"<array>: the shape is {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): "
            "channels "
            "come last."
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


Positive = Annotated[int, Field(ge=1, le=8192)]
Channel = Annotated[float, Field(ge=-1000, le=1000)]
Channels = tuple[Channel, Channel, Channel]


class Preprocessing(BaseModel):
    """How a tower wants its pictures: geometry, then normalisation. Round-trips through JSON; recorded in
    the model folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Positive | tuple[Positive, Positive] = Field(description="edge in pixels, or height and width")
    fit: Literal["squash", "short_side_center_crop"] = Field(
        default="squash",
        description="squash: the whole picture, aspect not kept; short_side_center_crop: scaled until it "
        "covers the size, then the middle",
    )
    cover: float = Field(
        default=1.0,
        ge=1,
        le=8,
        description="center crop: the picture is scaled to cover this many times the size (ImageNet "
        "networks: "
        "1 / 0.875)",
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
        """What `apply` keeps of a picture of this size: left, top, right and bottom, in the picture's own
        pixels."""
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
        """Width and height to which a picture is scaled before its middle is cut out, and the cut's left
        and top in it."""
        rows, columns = self.hw
        cover = (round(columns * self.cover), round(rows * self.cover))
        # Rounding as in CLIP's own preparation: the short side exact, the long side rounded down.
        if width * cover[1] <= height * cover[0]:
            scaled = (cover[0], max(cover[1], int(cover[0] * height / width)))
        else:
            scaled = (max(cover[0], int(cover[1] * width / height)), cover[1])
        return scaled, (scaled[0] - columns) // 2, (scaled[1] - rows) // 2

    def normalise(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) to float32 (B, 3, H, W): divided by 255, mean taken off, divided by the
        standard deviation."""
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
    """A strip of 30000x10 pixels would be scaled to a hundred million before the middle is cut out: cut
    roughly first.

    Eight times the wanted aspect is kept, so that the filter of the exact cut never sees the border made
    here. Returns left, top, right and bottom of what is kept.
    """
    longest_w = max(1, 8 * height * columns // rows)
    longest_h = max(1, 8 * width * rows // columns)
    left, top = max(0, width - longest_w) // 2, max(0, height - longest_h) // 2
    return left, top, width - left, height - top


def seen_box(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of a picture that a model sees, as shares of its width and
    height: what an attention grid is to be laid over."""
    left, top, right, bottom = preprocessing.seen(width, height)
    return left / width, top / height, right / width, bottom / height


def seen_part(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The picture cut to what the model sees, to whole pixels; of a strip at least one."""
    left, top, right, bottom = (round(edge) for edge in preprocessing.seen(*picture.size))
    left, top = min(left, picture.width - 1), min(top, picture.height - 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
