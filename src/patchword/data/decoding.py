"""From the bytes of a picture file to upright RGB pixels, by safe decoders and within bounds
(`headers.Bounds`).

Large photographs are decoded at a reduced scale where their kind allows it, for no model looks at a hundred
megapixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, Jpeg2KImagePlugin, JpegImagePlugin

from patchword.data.headers import (
    BAND_PIXELS,
    Bounds,
    check_before_opening,
    check_held,
    check_pixels,
    check_scans,
    check_tiles,
    cost,
    damaged,
    is_heic,
    is_raw,
    png_chunks,
    quiet,
    starts_like_a_picture,
)
from patchword.errors import NotAPicture, PictureError, PictureTooLarge
from patchword.lookup import look_up

# Only decoders of plain rasters: nothing that starts another program (EPS), draws vectors (WMF) or opens
# containers (FPX, PSD, HDF5).
_SAFE_FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "MPO", "PPM", "TGA", "JPEG2000", "ICO", "PCX", "SGI",
    "QOI", "AVIF",
)  # fmt: skip

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
_SIDEWAYS = (5, 6, 7, 8)
_TEXTS, _MOST_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP"), 16
_ORIENTATION_TAG = 0x0112


class DecodedPicture(NamedTuple):
    """An upright RGB picture without metadata, and the size at which it was stored."""

    picture: Image.Image
    width: int
    height: int


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    kind: str
    """JPEG, PNG, ..."""
    size: tuple[int, int]
    """Width and height of the upright picture, before any reduction."""


class _NoNumbers(ValueError):
    """Pixels of which no colours can be made."""


def decode(content: bytes, name: str, bounds: Bounds) -> DecodedPicture:
    """The first frame of a picture file. Raises `PictureError` with `name` and the reason."""
    if is_raw(content, name):
        return _decoded_raw(content, name, bounds)
    with begin(content, name, bounds) as opening:
        return opening.finish()


@dataclass
class Opening:
    """A picture of which only the header was read and judged. To be used in a `with`, or closed."""

    image: Image.Image
    name: str
    size: tuple[int, int]
    """Width and height as stored."""
    factor: int
    """Factor by which the picture is to be reduced."""
    drafted: int
    """The part of that factor that the decoder itself reduces by."""
    held: int
    """Bytes that `finish` will hold at its peak (`headers.cost`)."""

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, *_: object) -> None:
        self.image.close()

    def finish(self) -> DecodedPicture:
        """Decode it. Raises `PictureError`."""
        width, height = self.size
        with _told(self.name):
            self.image.load()
            if self.drafted == 1:  # a TIFF turns itself, others may know better than their headers
                width, height = self.image.size
            sideways = orientation(self.image) in _SIDEWAYS
            picture = upright(self.image, self.factor // self.drafted)
        return DecodedPicture(picture, *((height, width) if sideways else (width, height)))


def begin(content: bytes, name: str, bounds: Bounds) -> Opening:
    """Read the header and judge what decoding will cost. Raises `PictureError`, as `open_lazily`."""
    image = open_lazily(content, name, bounds)
    try:
        size = image.size
        factor = reduction(*size, bounds)
        drafted = _draft(image, content, factor)
        with _told(name):
            check_tiles(image, name, bounds)
            held = cost(image, size, content, factor // drafted)
            check_held(held, size, name, bounds)
    except PictureError:
        image.close()
        raise
    return Opening(image, name, size, factor, drafted, held)


def loaded(image: Image.Image, name: str, bounds: Bounds) -> Image.Image:
    """The same of a picture that somebody else opened: it is left as it is, but for being loaded. Raises
    `PictureError`."""
    check_pixels(image.size, name, bounds)
    with _told(name):
        image.load()
        return upright(image, reduction(*image.size, bounds))


def open_lazily(content: bytes, name: str, bounds: Bounds | None = None) -> Image.Image:
    """Read only the header of a picture, by a safe decoder, and judge it. The caller closes the image.

    Raises:
        NotAPicture: of no kind that is read.
        PictureTooLarge: more pixels, scans or bytes than `bounds` allows; nothing was decoded.
        PictureError: a header that is damaged.
    """
    bounds = bounds or Bounds()
    check_before_opening(content, name, bounds)
    with quiet():
        try:
            image = _opened(content, name)
        except PictureError:
            raise
        except Image.UnidentifiedImageError as reason:
            if starts_like_a_picture(content[:16]):
                raise damaged(name, ValueError("its header is broken")) from reason
            raise NotAPicture(
                f"{name}: not a picture of a known kind (it starts with {content[:8]!r}). "
                f"Expected {', '.join(_formats())}, HEIC."
            ) from reason
        except Image.DecompressionBombError as reason:
            limit = f"more than the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that Pillow sets"
            raise PictureTooLarge(f"{name}: {limit}. Make it smaller first; it was not decoded.") from reason
        except Exception as reason:  # broken headers raise whatever the decoder trips over
            raise damaged(name, reason) from reason
    try:
        check_pixels(image.size, name, bounds)
        check_scans(image, content, name, bounds)
    except PictureError:
        image.close()
        raise
    return image


def read_header(content: bytes, name: str) -> Header:
    """What the header of a picture file tells, without decoding it. Raises what `open_lazily` raises."""
    if is_raw(content, name):
        picture = decode(content, name, Bounds())  # the size of what is made of it stands nowhere
        return Header("RAW", (picture.width, picture.height))
    with open_lazily(content, name) as image, _told(name):
        width, height = image.size
        size = (height, width) if orientation(image) in _SIDEWAYS else (width, height)
        # Phones write a JPEG with a second picture behind it, which is another kind to Pillow alone.
        return Header("JPEG" if image.format == "MPO" else str(image.format), size)


def _formats() -> list[str]:
    Image.init()
    return [kind for kind in _SAFE_FORMATS if kind in Image.OPEN]


def _opened(content: bytes, name: str) -> Image.Image:
    """Opens as `Image.open`, but also what that refuses and can be decoded at a reduced scale."""
    if content.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.jpeg_factory(io.BytesIO(content))
    if content.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
        return Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(content))
    if is_heic(content):
        return _heic(content, name)
    is_png = content.startswith(b"\x89PNG")
    # The texts and the colour profile of a PNG are no part of the picture: of many only the first are
    # unpacked (Pillow would unpack 64 MB), and where one is more than Pillow takes, the picture is read
    # without them.
    if is_png:
        content = _with_few_texts(content, _MOST_TEXTS)
    try:
        return Image.open(io.BytesIO(content), formats=_formats())
    except ValueError as reason:
        said = str(reason).lower()
        if not is_png or not ("too large" in said or "too much memory" in said):
            raise
        return Image.open(io.BytesIO(_with_few_texts(content, 0)), formats=["PNG"])


def _heic(content: bytes, name: str) -> Image.Image:
    try:
        from pi_heif import HeifImageFile
    except ImportError as reason:
        raise NotAPicture(
            f"{name}: it is HEIC, as phones write it, and what reads it is not installed: pip install pi-heif"
        ) from reason
    return HeifImageFile(io.BytesIO(content))


def _with_few_texts(png: bytes, most: int) -> bytes:
    """A PNG with the first `most` of its texts and colour profiles."""
    texts = [(begin, end) for kind, begin, end in png_chunks(png) if kind in _TEXTS][most:]
    if not texts:
        return png
    kept, place = [], 0
    for begin, end in texts:
        kept.append(png[place:begin])
        place = end
    return b"".join([*kept, png[place:]])


def reduction(width: int, height: int, bounds: Bounds) -> int:
    """The power of two by which a picture of this size is reduced; 1 up to `bounds.whole_pixels`."""
    factor = 1
    while width * height > bounds.whole_pixels and min(width, height) // (2 * factor) >= bounds.least_side:
        factor *= 2
    return factor


def _draft(image: Image.Image, content: bytes, factor: int) -> int:
    """Tell the decoder to reduce while it decodes, where its kind can; returns by how much it will."""
    if factor == 1:
        return 1
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        done = min(factor, 8)
        image.draft(image.mode, (width // done, height // done))
        return done if image.size != (width, height) else 1
    if image.format == "JPEG2000":
        found = content.find(b"\xff\x52", content.find(b"\xff\x4f\xff\x51"))
        levels = content[found + 9] if 0 <= found < len(content) - 9 else 0
        power = min(factor.bit_length() - 1, levels)
        # The decoder of this kind reads its reduction from here, where others have a method.
        setattr(image, "reduce", power)  # noqa: B010
        return 1 << power
    return 1


def upright(image: Image.Image, factor: int = 1) -> Image.Image:
    """A loaded picture as upright RGB of 8 bits, transparency over white, `factor` times smaller, without
    metadata: an orientation that has been applied must not be there to be applied again."""
    turn = _UPRIGHT.get(orientation(image))
    image = _composited(image, factor)
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or where the metadata cannot be read, which
    harms no pixel."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    # The EXIF block is parsed by hand in Pillow: it raises as many kinds of errors as there are broken
    # cameras.
    except Exception:
        return 1
    return found if found in _UPRIGHT else 1


def _composited(image: Image.Image, factor: int) -> Image.Image:
    """8-bit RGB, `factor` times smaller; what is transparent shows white. A copy in every case: what we
    return must not close, or change, with what was given."""
    if image.mode.startswith(("I", "F")):
        return _in_bands(image, factor, _to_eight_bits(image))
    if image.has_transparency_data:
        return _in_bands(image, factor, _over_white)
    if image.mode == "RGB":
        return image.reduce(factor) if factor > 1 else image.copy()
    return _in_bands(image, factor, lambda band: band.convert("RGB"))


def _bands(image: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The picture in strips of some rows, a multiple of `factor`, each with its first row."""
    rows = max(1, BAND_PIXELS // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_bands(image: Image.Image, factor: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """RGB by a function that needs several copies of what it is given, `factor` times smaller: neither these
    copies nor the colours of all pixels are ever in memory at once."""
    whole = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, band in _bands(image, factor):
        colours = convert(band)
        whole.paste(colours.reduce(factor) if factor > 1 else colours, (0, top // factor))
    return whole


def _over_white(image: Image.Image) -> Image.Image:
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colours).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How a grey picture of any depth becomes 8 bits: 16-bit values are divided by 257; 32-bit integers and
    floats of another range are stretched. Raises _NoNumbers for values that are not finite."""
    lows, highs = [], []
    for _, band in _bands(image):
        values_HW = np.asarray(band)
        if not np.isfinite(values_HW).all():
            raise _NoNumbers("the picture holds values that are not finite numbers")
        lows.append(float(values_HW.min()))
        highs.append(float(values_HW.max()))
    low, high = min(lows), max(highs)
    if values_HW.dtype == np.uint16 or (values_HW.dtype.kind in "iu" and low >= 0 and 255 < high <= 65535):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 255 and values_HW.dtype.kind in "iu":
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0

    def convert(band: Image.Image) -> Image.Image:
        scaled_HW = (np.asarray(band).astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
        return Image.fromarray(np.rint(scaled_HW).astype(np.uint8)).convert("RGB")

    return convert


def _decoded_raw(content: bytes, name: str, bounds: Bounds) -> DecodedPicture:
    if not bounds.raw:
        raise NotAPicture(
            f"{name}: it is a camera's raw file. Expected a picture that was made of it, such as a JPEG."
        )
    picture, width, height = look_up("data.raw:develop")(content, name, bounds)
    left = reduction(picture.size[0], picture.size[1], bounds)
    return DecodedPicture(picture.reduce(left) if left > 1 else picture, width, height)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever decoding raises, as a `PictureError` with the picture's name."""
    with quiet():
        try:
            yield
        except PictureError:
            raise
        except _NoNumbers as reason:
            raise PictureError(f"{name}: {reason}") from reason
        except MemoryError as reason:
            raise PictureTooLarge(f"{name}: decoding it takes more memory than there is.") from reason
        except (
            Exception
        ) as reason:  # a damaged file makes a decoder raise anything from OSError to IndexError
            raise damaged(name, reason) from reason
