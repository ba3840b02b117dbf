"""Camera raw files: a small DNG written here, read with the extra and refused by name without it."""

import struct
import sys

import numpy as np
import pytest

from patchword.data.decoding import decode
from patchword.data.headers import Bounds
from patchword.data.pictures import open_picture
from patchword.errors import NotAPicture, PictureError, PictureTooLarge

SHORT, LONG, RATIONAL, BYTE, TEXT, SIGNED = 3, 4, 5, 1, 2, 10
SIZES = {BYTE: 1, TEXT: 1, SHORT: 2, LONG: 4, RATIONAL: 8, SIGNED: 8}


def dng(orientation=1, width=64, height=48) -> bytes:
    """A sensor of 16 bits behind red, green and blue filters, the left half of which saw red and the right
    half blue."""
    values_HW = np.full((height, width), 2000, "<u2")
    values_HW[0::2, : width // 2 : 2] = 60000  # red filters
    values_HW[1::2, width // 2 + 1 :: 2] = 60000  # blue ones
    one = b"".join(struct.pack("<ii", int(i == j), 1) for i in range(3) for j in range(3))
    tags = [
        (254, LONG, struct.pack("<I", 0)), (256, LONG, struct.pack("<I", width)), (257, LONG, struct.pack("<I", height)),
        (258, SHORT, struct.pack("<H", 16)), (259, SHORT, struct.pack("<H", 1)), (262, SHORT, struct.pack("<H", 32803)),
        (271, TEXT, b"Drawn\0"), (272, TEXT, b"Drawn camera\0"), (273, LONG, b"HERE"), (274, SHORT, struct.pack("<H", orientation)),
        (277, SHORT, struct.pack("<H", 1)), (278, LONG, struct.pack("<I", height)), (279, LONG, struct.pack("<I", values_HW.nbytes)),
        (33421, SHORT, struct.pack("<HH", 2, 2)), (33422, BYTE, bytes([0, 1, 1, 2])), (50706, BYTE, bytes([1, 4, 0, 0])),
        (50721, SIGNED, one), (50728, RATIONAL, struct.pack("<6I", 1, 1, 1, 1, 1, 1)), (50778, SHORT, struct.pack("<H", 21)),
    ]  # fmt: skip
    data_at = 8 + 2 + 12 * len(tags) + 4
    entries, beyond = b"", b""
    for number, kind, value in tags:
        count = len(value) // SIZES[kind]
        if value == b"HERE":
            place = len(entries) + 8
            count = 1
        if len(value) > 4:
            at = data_at + len(beyond)
            beyond += value + b"\0" * (len(value) % 2)
            value = struct.pack("<I", at)
        entries += struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")
    pixels_at = struct.pack("<I", data_at + len(beyond))
    entries = entries[:place] + pixels_at + entries[place + 4 :]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + b"\0\0\0\0" + beyond + values_HW.tobytes()


def halves(picture, first, second):
    """The strongest colour in the middle of each half."""
    return [int(np.argmax(picture.getpixel(place))) for place in (first, second)]


@pytest.mark.parametrize("name", ["photo.dng", "photo", "photo.tif"])
def test_a_raw_file_is_developed_whatever_its_name(tmp_path, name):
    pytest.importorskip("rawpy", reason="the extra 'raw' is not installed")
    (tmp_path / name).write_bytes(dng())
    picture = open_picture(tmp_path / name)
    assert picture.mode == "RGB" and picture.size == (64, 48)
    assert halves(picture, (16, 24), (48, 24)) == [0, 2]
    assert open_picture(picture) == picture


@pytest.mark.parametrize(
    ("orientation", "first", "second"), [(6, (24, 16), (24, 48)), (8, (24, 48), (24, 16))]
)
def test_a_raw_file_held_upright_stands_upright(orientation, first, second):
    pytest.importorskip("rawpy", reason="the extra 'raw' is not installed")
    decoded = decode(dng(orientation), "x.dng", Bounds())
    assert decoded.picture.size == (48, 64) == (decoded.width, decoded.height)
    assert halves(decoded.picture, first, second) == [0, 2]


def test_damaged_and_large_raw_files_are_told_so():
    pytest.importorskip("rawpy", reason="the extra 'raw' is not installed")
    with pytest.raises(PictureError, match="x.dng: cannot be decoded as a camera's raw file"):
        open_picture(b"FUJIFILMCCD-RAW and no more", "x.dng")
    with pytest.raises(PictureTooLarge, match="64x48 is 3,072 pixels"):
        open_picture(dng(), "x.dng", Bounds(pixels=3000))


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(NotAPicture, match=r"reading it needs rawpy: pip install 'patchword\[raw\]'"):
        open_picture(dng(), "x.dng")


def test_where_raw_files_are_not_wanted_they_are_refused():
    with pytest.raises(NotAPicture, match="a camera's raw file. Expected a picture that was made of it"):
        open_picture(dng(), "x.dng", Bounds(raw=False))
