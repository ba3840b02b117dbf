"""What decoding would cost is judged by the header: for every kind, before a pixel is decoded."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image

from patchword.data.decoding import begin, decode
from patchword.data.headers import Bounds
from patchword.data.pictures import open_picture
from patchword.errors import PictureError, PictureTooLarge


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_scans(jpeg, count):
    """The last scan of a progressive JPEG `count` times more."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


@pytest.fixture
def progressive():
    return encoded(Image.effect_noise((64, 48), 60).convert("RGB"), "JPEG", progressive=True)


def test_scans_are_counted(progressive):
    assert open_picture(progressive).size == (64, 48)
    assert open_picture(with_scans(progressive, 50)).size == (64, 48)
    with pytest.raises(PictureTooLarge, match="more than 100 scans"):
        open_picture(with_scans(progressive, 120))
    with pytest.raises(PictureTooLarge, match="more than 5 scans"):
        decode(progressive, "x", Bounds(scans=5))


def test_scans_of_a_thumbnail_and_of_what_follows_are_not_counted(progressive):
    """A photograph carries JPEGs in its metadata, and phones append a film or a second picture."""
    plain = encoded(Image.effect_noise((64, 48), 60).convert("RGB"), "JPEG")
    many = with_scans(progressive, 120)
    comment = (
        plain[:2]
        + b"\xff\xe5"
        + struct.pack(">H", 2 + 60_000)
        + many[:60_000].ljust(60_000, b"\0")
        + plain[2:]
    )
    for content in (comment, plain + many):
        assert decode(content, "x", Bounds(scans=1)).picture.size == (64, 48)


def test_a_sequential_jpeg_may_not_have_many_scans_either(progressive):
    grey = encoded(Image.effect_noise((64, 48), 60), "JPEG")
    with pytest.raises(PictureTooLarge, match="more than 100 scans"):
        three = encoded(Image.effect_noise((64, 48), 60).convert("RGB"), "JPEG")
        place = three.index(b"\xff\xda")
        one_component = b"\xff\xda\x00\x08\x01" + three[place + 5 : place + 7] + b"\x00\x3f\x00" + b"\x00" * 8
        open_picture(three[:place] + one_component * 200 + b"\xff\xd9")
    assert open_picture(grey).size == (64, 48)


def icon(*pictures):
    """An icon that says 16x16 of each picture inside it."""
    content, place = struct.pack("<HHH", 0, 1, len(pictures)), 6 + 16 * len(pictures)
    for picture in pictures:
        content += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), place)
        place += len(picture)
    return content + b"".join(pictures)


def test_pictures_inside_of_icons_are_judged_by_their_own_headers():
    small, large = (encoded(Image.new("RGBA", (side, side), "red"), "PNG") for side in (16, 300))
    assert open_picture(icon(small, small)).size == (16, 16)
    for content in (icon(large), icon(small, large)):
        with pytest.raises(PictureTooLarge, match="300x300"):
            decode(content, "x", Bounds(pixels=80_000))
    with pytest.raises(PictureError, match="cannot be decoded"):
        open_picture(icon(b"\x89PNG\r\n\x1a\n and no more"))
    with pytest.raises(PictureTooLarge, match="an icon of 60000 pictures"):
        open_picture(struct.pack("<HHH", 0, 1, 60_000) + bytes(1000))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF", "QOI", "ICO"]
)
def test_every_kind_is_held_to_its_pixels_and_its_bytes(kind):
    content = encoded(Image.new("RGB", (60, 60), "red"), kind)
    width, height = open_picture(content).size
    with pytest.raises(PictureTooLarge, match=rf"{width}x{height} is .* pixels, more than the limit"):
        decode(content, "x", Bounds(pixels=width * height - 1))
    with begin(content, "x", Bounds()) as opening:
        held = opening.held
    assert held >= 6 * width * height
    with pytest.raises(PictureTooLarge, match="MiB to decode, more than the limit"):
        decode(content, "x", Bounds(decoded_bytes=held - 1))
    assert decode(content, "x", Bounds(decoded_bytes=max(held, 12 * width * height))).picture.size == (
        width,
        height,
    )


def tiled(side, tile):
    """A deflated grey TIFF of one tile, which is nearly empty."""
    body = zlib.compress(bytes(1000))
    values = {
        256: side,
        257: side,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: tile,
        323: tile,
        324: 138,
        325: len(body),
    }
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + bytes(4) + body


def test_a_tile_that_is_larger_than_its_picture_counts():
    with pytest.raises(PictureTooLarge, match="60000x60000 is 3,600,000,000 pixels"):
        open_picture(tiled(64, 60_000))
    with pytest.raises(PictureTooLarge, match="MiB to decode"):
        decode(tiled(64, 512), "x", Bounds(decoded_bytes=512 * 512))


def test_a_webp_that_claims_much_is_refused_before_its_canvas_is_made():
    content = encoded(Image.new("RGB", (60, 60)), "WEBP", lossless=True)
    bits = struct.pack("<I", (16_383 - 1) | (16_383 - 1) << 14)
    place = content.index(b"VP8L") + 9
    with pytest.raises(PictureTooLarge, match="16383x16383"):
        decode(content[:place] + bits + content[place + 4 :], "x", Bounds(pixels=50_000_000))


def test_a_file_of_too_many_bytes_is_not_read_further(tmp_path):
    path = tmp_path / "large.bmp"
    path.write_bytes(encoded(Image.new("RGB", (60, 60)), "BMP"))
    with pytest.raises(PictureTooLarge, match="bytes, more than the limit of 5,000"):
        open_picture(path, bounds=Bounds(file_bytes=5_000))


def test_readers_of_many_files_name_such_a_picture_and_go_on(patchword, progressive, towers, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    (folder / "bomb.jpg").write_bytes(with_scans(progressive, 200))
    two_towers = ("--model", towers)
    for command in (
        ("caption", folder, "--beam", 1, "--device", "cpu"),
        ("label", folder, "--labels", "a dog,a cat", *two_towers, "--device", "cpu"),
        ("index", folder, "--out", tmp_path / "index", *two_towers),
    ):
        status, out, err = patchword(*command)
        assert status == 1 and "bomb.jpg" in err and "more than 100 scans" in err, (out, err)
    found = json.loads(patchword("index", folder, "--out", tmp_path / "index", *two_towers, "--json")[1])
    assert found["pictures"] == 1 and len(found["bad"]) == 1


def test_a_tiff_of_very_many_strips_is_refused_by_its_directory():
    """Pillow would make a list of a million strips before it says how large the picture is."""

    def stripped(rows, order):
        def pack(form, *values):
            return struct.pack(order + form, *values)

        data = bytes(8) + pack(f"{rows}I", *[8] * rows) + pack(f"{rows}I", *[8] * rows)
        tags = [(256, 4, 1, 8), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        tags += [(273, 4, rows, 16), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, rows, 16 + 4 * rows)]
        entries = b"".join(
            pack("HHI", *tag[:3]) + (pack("HH", tag[3], 0) if tag[1] == 3 else pack("I", tag[3]))
            for tag in tags
        )
        mark = b"II" if order == "<" else b"MM"
        start = mark + pack("HI", 42, 8 + len(data))
        return start + data + pack("H", len(tags)) + entries + bytes(4)

    for order in "<>":
        assert open_picture(stripped(300, order)).size == (8, 300)
        with pytest.raises(PictureTooLarge, match="a TIFF of 200,000 strips or tiles"):
            open_picture(stripped(200_000, order), "long.tif")
