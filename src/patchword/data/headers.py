"""What the first bytes of a picture file tell: its kind, and what decoding it would cost.

A small file can claim gigabytes, and a valid one can take minutes. So a picture is judged by its header
before anything is decoded: its pixels, the bytes that its decoder and our conversions will hold, and the
scans of a JPEG.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import BmpImagePlugin, Image, PngImagePlugin

from patchword.errors import PictureError, PictureTooLarge

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 "
    ".j2k "
    ".jpx .jpc .ico .pcx .sgi .qoi .avif .avifs .heic .heics .heif .hif".split()
)
"""Names of picture files end in one of these, in lower case."""

RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .rw2 .rwl .sr2 .srf "
    ".srw "
    ".x3f".split()
)
"""What cameras write before any picture is made of it; read with the extra `raw`."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif")
_AVIF = (b"avif", b"avis")
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM")
_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"qoif",
)
"""First bytes of kinds that cannot be taken for anything else."""


BAND_PIXELS = 500_000
"""Conversions that need several copies go through a picture in bands of so many pixels."""
_FLOAT_BYTES, _LAYER_BYTES, _COLOUR_BYTES = 32, 16, 8
"""What such a conversion holds for each pixel of its band: of values in floats of 64 bits; of a picture over
white; of other colours."""

WHOLE_PIXELS = 24_000_000
LEAST_SIDE = 2048
"""Far more than a tower looks at."""


@dataclass(frozen=True)
class Bounds:
    """What one picture may cost. These are the values for files on a person's own disk; the service brings
    smaller ones."""

    file_bytes: int = 2**30
    pixels: int = 500_000_000
    """The numbers that the header claims, before any reduction."""
    decoded_bytes: int = 2**31
    """What its decoder and our conversions hold at their peak (`cost`), after a reduction that the decoder
    can make."""
    scans: int = 100
    """Scans of one JPEG. Encoders write a dozen; every further one costs a pass over all pixels, however few
    bytes it has."""
    blocks: int = 2**17
    """Strips or tiles of one TIFF, of which a decoder keeps a list; chunks of one PNG."""
    raw: bool = True
    """Whether camera raw files are read."""
    whole_pixels: int = WHOLE_PIXELS
    """A picture of up to so many pixels is decoded whole. A larger one is reduced by a power of two, as far
    as `least_side` allows."""
    least_side: int = LEAST_SIDE
    """Pixels that stay on the shorter side of a reduced picture."""


_TILE_BYTES = 8192
"""What a decoder of JPEG 2000 holds for each tile, beside its pixels."""


def starts_like_a_picture(start: bytes) -> bool:
    """Whether the first bytes of a file (16 or more) are those of a kind that is read; kinds without a sure
    mark are told by suffix."""
    if start[4:8] == b"ftyp":
        return start[8:12] in _HEIC or start[8:12] in _AVIF
    riff = start.startswith(b"RIFF") and start[8:12] == b"WEBP"
    bitmap = start.startswith(b"BM") and start[6:10] == b"\0\0\0\0"
    return riff or bitmap or start.startswith(_STARTS)


def is_heic(content: bytes) -> bool:
    """Some AVIF files begin with the mark that HEIC shares with them, and name their own behind it."""
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIC:
        return False
    compatible = content[16 : int.from_bytes(content[:4], "big")]
    return not any(mark in compatible for mark in _AVIF)


def is_raw(content: bytes, name: str) -> bool:
    """Whether a file is what a camera writes before any picture is made of it. Most such files are TIFFs
    that begin with a thumbnail."""
    if content.startswith(_RAW_STARTS) or content[6:14] == b"HEAPCCDR" or content[4:12] == b"ftypcrx ":
        return True
    if not content.startswith((b"II*\0", b"MM\0*")):
        return False
    if content[8:10] == b"CR" or name.lower().endswith(tuple(RAW_SUFFIXES)):
        return True
    tags = _first_tags(content)
    thumbnail = tags.get(254, 0) & 1 and 330 in tags  # a reduced picture first, and others elsewhere
    return bool(thumbnail) or 50706 in tags or tags.get(262) in (32803, 34892)


def _first_tags(tiff: bytes) -> dict[int, int]:
    """The tags of a TIFF's first directory with their first value, as far as it stands in the directory
    itself."""
    order, tags = "<" if tiff.startswith(b"II") else ">", {}
    for entry in _first_entries(tiff, order):
        number, kind = struct.unpack(order + "HH", entry[:4])
        (tags[number],) = struct.unpack(order + ("H2x" if kind == 3 else "I"), entry[8:])
    return tags


def _first_counts(tiff: bytes) -> list[tuple[int, int]]:
    """The tags of a TIFF's first directory with how many values each has."""
    order = "<" if tiff.startswith(b"II") else ">"
    return [struct.unpack(order + "H2xI", entry[:8]) for entry in _first_entries(tiff, order)]


def _first_entries(tiff: bytes, order: str) -> Iterator[bytes]:
    (place,) = struct.unpack(order + "I", tiff[4:8].ljust(4, b"\0"))
    (count,) = struct.unpack(order + "H", tiff[place : place + 2].ljust(2, b"\0"))
    entries = tiff[place + 2 : place + 2 + 12 * count]
    for start in range(0, len(entries) - 11, 12):
        yield entries[start : start + 12]


def check_before_opening(content: bytes, name: str, bounds: Bounds) -> None:
    """Nothing at all, too many bytes, and kinds of which Pillow decodes, or allocates for, all pixels as it
    opens the file."""
    if not content:
        raise PictureError(f"{name}: the file is empty (0 bytes). Fetch it again or leave it out.")
    if len(content) > bounds.file_bytes:
        found = f"the file has {len(content):,} bytes, more than the limit of {bounds.file_bytes:,}"
        raise PictureTooLarge(f"{name}: {found}. It was not decoded.")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        check_pixels(_webp_size(content), name, bounds)
    elif content.startswith(b"\0\0\1\0"):
        for size in _icon_sizes(content, name):
            check_pixels(size, name, bounds)
            check_held(12 * size[0] * size[1], size, name, bounds)
    elif content.startswith((b"II*\0", b"MM\0*")):
        check_blocks(content, name, bounds)
    elif content.startswith(b"\x89PNG"):
        _check_chunks(content, name, bounds)


def png_chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind, the begin and the end of each chunk of a PNG."""
    place = 8
    while place + 8 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], place, end
        place = end


def _check_chunks(png: bytes, name: str, bounds: Bounds) -> None:
    count = sum(1 for _ in islice(png_chunks(png), bounds.blocks + 1))
    if count > bounds.blocks:
        raise PictureTooLarge(
            f"{name}: a PNG of more than {bounds.blocks:,} chunks, where programs write one for some "
            "kilobytes. Save it again; it was not decoded."
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height of the canvas; 1x1 where the header is broken, which its decoder will say."""
    kind, head = content[12:16], content[16:34].ljust(18, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(head[8:11], "little") + 1, int.from_bytes(head[11:14], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", head[5:9])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[10:14]) if kind == b"VP8 " else (1, 1)
    return width & 0x3FFF, height & 0x3FFF


def _icon_sizes(content: bytes, name: str) -> Iterator[tuple[int, int]]:
    """The size of each picture in an icon, by its own header: the list at the beginning may be wrong."""
    (count,) = struct.unpack("<H", content[4:6].ljust(2, b"\0"))
    if count > 256:
        raise PictureTooLarge(
            f"{name}: an icon of {count} pictures, expected at most 256. It was not decoded."
        )
    for place in range(6, 6 + 16 * count, 16):
        (offset,) = struct.unpack("<I", content[place + 12 : place + 16].ljust(4, b"\0"))
        inner = content[offset : offset + 2**20]
        kind = PngImagePlugin.PngImageFile if inner.startswith(b"\x89PNG") else BmpImagePlugin.DibImageFile
        try:
            with quiet(), kind(io.BytesIO(inner)) as image:
                size = image.size
        except Exception as reason:  # broken headers raise whatever the decoder trips over
            raise damaged(name, reason) from reason
        yield size


def check_pixels(size: tuple[int, int], name: str, bounds: Bounds) -> None:
    """Raises PictureTooLarge for more pixels than `bounds` allows, PictureError for none."""
    width, height = size
    if width * height > bounds.pixels:
        found = f"{width}x{height} is {width * height:,} pixels"
        raise PictureTooLarge(
            f"{name}: {found}, more than the limit of {bounds.pixels:,}. Make it smaller first; it was not "
            "decoded."
        )
    if width == 0 or height == 0:
        raise PictureError(f"{name}: the picture has no pixels ({width}x{height}).")


def check_held(held: int, size: tuple[int, int], name: str, bounds: Bounds) -> None:
    """Raises PictureTooLarge where decoding would hold more bytes than `bounds` allows."""
    if held > bounds.decoded_bytes:
        found = f"{size[0]}x{size[1]} pixels of its kind take {held / 2**20:,.0f} MiB to decode"
        raise PictureTooLarge(
            f"{name}: {found}, more than the limit of {bounds.decoded_bytes / 2**20:,.0f} MiB. "
            "Make it smaller first; it was not decoded."
        )


def check_scans(image: Image.Image, content: bytes, name: str, bounds: Bounds) -> None:
    """Raises PictureTooLarge for a JPEG that would be gone through more often than `bounds` allows."""
    if image.format in ("JPEG", "MPO") and _scans(content, bounds.scans) > bounds.scans:
        raise PictureTooLarge(
            f"{name}: a JPEG of more than {bounds.scans} scans, where cameras and programs write a dozen. "
            "Save it again; it was not decoded."
        )


def check_blocks(tiff: bytes, name: str, bounds: Bounds) -> None:
    """Raises PictureTooLarge for a TIFF of more strips or tiles than `bounds` allows."""
    blocks = max((count for number, count in _first_counts(tiff) if number in (273, 324)), default=0)
    if blocks > bounds.blocks:
        raise PictureTooLarge(
            f"{name}: a TIFF of {blocks:,} strips or tiles, more than the limit of {bounds.blocks:,}. "
            "Save it again; it was not decoded."
        )


def check_tiles(image: Image.Image, name: str, bounds: Bounds) -> None:
    """Raises PictureTooLarge for a TIFF whose tiles have more pixels than `bounds` allows."""
    if image.format == "TIFF":
        check_pixels(_block(image), name, bounds)


def cost(image: Image.Image, stored: tuple[int, int], content: bytes, left: int) -> int:
    """Bytes that decoding and converting hold at their peak: an upper bound for headers that say the truth.

    `stored` is the size before a reduction by the decoder, which `image` knows of already; `left` is by how
    much the picture is reduced once more after it has been decoded.
    """
    pixels, whole = image.size[0] * image.size[1], stored[0] * stored[1]
    core = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    held = pixels * core + pixels // left**2 * 8  # as it is decoded, reduced, turned upright
    if image.mode != "RGB" or image.has_transparency_data:
        layers = _LAYER_BYTES if image.has_transparency_data else _COLOUR_BYTES
        held += min(pixels, BAND_PIXELS) * (_FLOAT_BYTES if image.mode.startswith(("I", "F")) else layers)
    tiles: Any = getattr(image, "tile", None)  # of pictures that are read from a file
    if tiles and tiles[0][0] in Image.DECODERS:
        held += 5 * pixels  # decoders of Pillow that are written in Python collect all bytes first
    if image.format in ("JPEG", "MPO") and _scans(content, 1) > 1:
        held += int(_coefficient_bytes(image) * whole)  # they are kept until the last scan
    elif image.format == "JPEG2000":
        held += 5 * len(image.getbands()) * pixels + _TILE_BYTES * _tiles_2000(content)
    elif image.format in ("AVIF", "HEIF", "WEBP"):
        held += 12 * whole  # planes or canvases of the decoder, and its bytes on their way
    elif image.format == "TIFF":
        width, height = _block(image)
        held += width * height * _sample_bytes(image)
    return held


def _tiles_2000(content: bytes) -> int:
    """How many tiles a JPEG 2000 has, by the first of its segments (ISO 15444-1, A.5.1)."""
    place = content.find(b"\xff\x4f\xff\x51")
    if place < 0 or len(content) < place + 40:
        return 0
    right, bottom, _, _, width, height, left, top = struct.unpack(">8I", content[place + 8 : place + 40])
    return -(-max(right - left, 0) // max(width, 1)) * -(-max(bottom - top, 0) // max(height, 1))


def _coefficient_bytes(image: Image.Image) -> float:
    """Bytes of a JPEG's coefficients for each pixel: two for each component, fewer where its colours are
    coarser."""
    layers: Any = getattr(image, "layer")  # noqa: B009  # only Pillow's class for JPEG declares it
    parts = [horizontal * vertical for _, horizontal, vertical, *_ in layers]
    return 2 * sum(parts) / max(parts)


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF by number."""
    return getattr(image, "tag_v2")  # noqa: B009  # only Pillow's class for TIFF declares it


def _block(image: Image.Image) -> tuple[int, int]:
    """What a TIFF is decoded by: its tile or its strip, which may be larger than the picture."""
    tags = _tags(image)
    if 322 in tags and 323 in tags:
        return int(tags[322]), int(tags[323])
    return image.size[0], min(int(tags.get(278, image.size[1]) or 1), image.size[1])


def _sample_bytes(image: Image.Image) -> int:
    tags = _tags(image)
    bits = tags.get(258, 1)
    bits = max(bits) if isinstance(bits, tuple) else bits
    return max(1, int(bits) * int(tags.get(277, 1)) // 8)


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _scans(jpeg: bytes, most: int) -> int:
    """How many scans a JPEG has, counted up to `most` + 1; of a file with several pictures those of the
    first."""
    place, scans, components, progressive = 2, 0, 0, False
    while found := _MARKER.search(jpeg, place):
        marker, place = jpeg[found.start() + 1], found.end()
        segment = jpeg[place : place + 8].ljust(8, b"\0")
        if marker == 0xD9:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components, progressive = segment[7], marker not in (0xC0, 0xC1)
        elif marker == 0xDA:
            scans += 1
            whole = not progressive and segment[2] >= components
            if scans > most or whole:  # the one scan of most photographs, which are not searched any further
                break
        if marker not in (0xD8, 0x01):
            place += max(int.from_bytes(segment[:2], "big"), 2)
    return scans


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings about metadata and palettes, of no use to whoever wants the picture, and about the
    size, which is judged here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def damaged(name: str, reason: BaseException) -> PictureError:
    """The error for a file that a decoder tripped over."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    return PictureError(
        f"{name}: cannot be decoded: {said}. The file is damaged: fetch it again or leave it out."
    )
