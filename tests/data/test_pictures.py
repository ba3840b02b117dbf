"""Pictures: every kind that is decoded, every fault that is refused, and the preparation for a tower."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from patchword.data import decoding
from patchword.data.decoding import decode
from patchword.data.headers import Bounds
from patchword.data.pictures import Preprocessing, open_picture, seen_box, seen_part
from patchword.errors import PictureError, PictureTooLarge

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(mode="RGB"):
    """8x6, its left half red, with a green top right and a blue bottom right."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4], pixels[:3, 4:], pixels[3:, 4:] = RED, GREEN, BLUE
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(image, expected, tolerance=0):
    assert image.mode == "RGB" and image.size == expected.size
    difference = np.asarray(image).astype(int) - np.asarray(expected.convert("RGB")).astype(int)
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {}), ("PPM", {}), ("TGA", {}), ("PCX", {}), ("SGI", {})]
    + [
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_lossless_kinds_come_out_as_they_were(tmp_path, kind, options):
    content = encoded(corners(), kind, **options)
    path = tmp_path / "picture"
    path.write_bytes(content)
    near(open_picture(path), corners())
    near(open_picture(str(path)), corners())
    near(open_picture(content), corners())


def test_jpeg_and_cmyk_jpeg():
    flat = Image.new("RGB", (32, 32), (200, 60, 30))
    near(open_picture(encoded(flat, "JPEG", quality=95)), flat, 4)
    near(open_picture(encoded(flat.convert("CMYK"), "JPEG", quality=95)), flat, 6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = corners(mode)
    near(open_picture(image), image.convert("RGB"), 1)


# How a camera stores what it marks with each number: decoding must undo it.
STORED = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"}
STORED |= {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_orientation_is_applied(number, kind):
    image = corners().resize((64, 48), Image.Resampling.NEAREST)
    turned = image.transpose(Image.Transpose[STORED[number]]) if STORED[number] else image
    exif = Image.Exif()
    exif[0x0112] = number
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    near(open_picture(encoded(turned, kind, exif=exif, **options)), image, 12 if kind == "JPEG" else 0)


ORIENTATION_99 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", ORIENTATION_99])
def test_broken_or_senseless_exif_harms_no_pixel(exif):
    near(open_picture(encoded(corners(), "PNG", exif=exif)), corners())


def test_transparency_shows_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 0, 128))
    expected = Image.fromarray(np.array([[WHITE, (127, 127, 127)]], np.uint8))
    near(open_picture(encoded(half, "PNG")), expected, 1)
    near(open_picture(half.convert("LA")), expected, 1)
    near(
        open_picture(encoded(Image.new("RGB", (2, 2), RED), "PNG", transparency=RED)),
        Image.new("RGB", (2, 2), WHITE),
    )
    near(
        open_picture(encoded(Image.new("L", (2, 2), 7), "PNG", transparency=7)),
        Image.new("RGB", (2, 2), WHITE),
    )
    palette = corners("P")
    clear = palette.getpixel((0, 0))
    expected = corners()
    expected.paste(WHITE, (0, 0, 4, 6))
    near(open_picture(encoded(palette, "PNG", transparency=clear)), expected)
    near(
        open_picture(
            encoded(palette, "PNG", transparency=bytes([0 if n == clear else 255 for n in range(256)]))
        ),
        expected,
    )


def test_first_frame_of_what_moves():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        near(
            open_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)),
            frames[0],
        )


def test_sixteen_bits_and_floats():
    ramp = np.array([[0, 257 * 100, 65535]], np.uint16)
    expected = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    near(open_picture(encoded(Image.fromarray(ramp), "PNG")), expected)
    near(open_picture(encoded(Image.fromarray(ramp), "TIFF")), expected)
    near(open_picture(Image.fromarray(ramp.astype(np.int32))), expected)
    near(open_picture(Image.fromarray(np.array([[0, 100, 255]], np.int32))), expected)
    near(
        open_picture(Image.fromarray(np.array([[-50, 50]], np.int32))),
        Image.fromarray(np.array([[0, 255]], np.uint8)),
    )
    near(open_picture(Image.fromarray(np.array([[0, 100 / 255, 1]], np.float32))), expected)
    with pytest.raises(PictureError, match="<image>: the picture holds values that are not finite numbers"):
        open_picture(Image.fromarray(np.array([[0, np.nan]], np.float32)))


def test_arrays():
    pixels = np.asarray(corners())
    for array in (
        pixels,
        pixels.astype(np.uint16) * 257,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        np.asfortranarray(pixels),
    ):
        near(open_picture(array), corners())
    near(open_picture(pixels[:, :, 0]), corners().getchannel(0))
    near(open_picture(pixels[:, :, :1] > 0), corners().getchannel(0))
    near(open_picture(np.dstack([pixels, np.zeros((6, 8), np.uint8)])), Image.new("RGB", (8, 6), WHITE))
    with pytest.raises(PictureError, match=r"the shape is \(3, 6, 8\), expected .* channels come last"):
        open_picture(pixels.transpose(2, 0, 1))
    with pytest.raises(PictureError, match="the values are float64, expected uint8"):
        open_picture(pixels.astype(float))
    with pytest.raises(PictureError, match="the values are int64"):
        open_picture(pixels.astype(np.int64))
    with pytest.raises(PictureError, match="<array>: 8x6 is 48 pixels, more than the limit of 47"):
        open_picture(pixels, bounds=Bounds(pixels=47))


def test_the_given_picture_is_left_alone_and_ours_outlives_it():
    image = corners()
    ours = open_picture(image)
    ours.putpixel((0, 0), BLUE)
    assert image.getpixel((0, 0)) == RED
    image.close()
    assert ours.getpixel((0, 0)) == BLUE


def png_that_claims(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def jpeg_that_claims(width, height):
    """A small JPEG whose header says another size."""
    content = encoded(corners(), "JPEG")
    place = content.index(b"\xff\xc0")
    return content[: place + 5] + struct.pack(">HH", height, width) + content[place + 9 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (
            b"hello, this is no picture",
            r"not a picture of a known kind \(it starts with b'hello, t'\)\. Expected JPEG, PNG",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known kind"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known kind"),
        (
            encoded(corners().resize((200, 200)), "JPEG")[:700],
            "cannot be decoded: .*truncated.* The file is damaged",
        ),
        (
            encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500],
            "cannot be decoded: .* The file is damaged",
        ),
        (
            jpeg_that_claims(60_000, 50_000),
            r"60000x50000 is 3,000,000,000 pixels, more than the limit of 500,000,000\. .* not decoded",
        ),
        (
            png_that_claims(60_000, 60_000),
            r"more than the limit of 178,956,970 that Pillow sets\. .* not decoded",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "cannot be decoded: .* The file is damaged"),
    ],
)
def test_bad_pictures_are_refused_by_name_and_reason(tmp_path, content, message):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(PictureError, match="^upload 3: "):
        open_picture(content, name="upload 3")


def test_the_limit_can_be_lowered(tmp_path):
    with pytest.raises(PictureError, match="<bytes>: 8x6 is 48 pixels, more than the limit of 47"):
        open_picture(encoded(corners(), "PNG"), bounds=Bounds(pixels=47))
    with pytest.raises(PictureError, match="more than the limit of 47"):
        open_picture(corners(), bounds=Bounds(pixels=47))


def test_places_where_there_is_no_picture(tmp_path):
    with pytest.raises(PictureError, match=r"gone\.jpg: does not exist\. Give the path of a picture file"):
        open_picture(tmp_path / "gone.jpg")
    with pytest.raises(PictureError, match="cannot be read: Is a directory"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match="cannot be read: embedded null"):
        open_picture("a\0b.jpg")
    with pytest.raises(
        PictureError,
        match="https://x.org/a.jpg: pictures are fetched from the network only where that is allowed",
    ):
        open_picture("https://x.org/a.jpg")


KINDS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000"]


HITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), cut=st.integers(1, 2000), hits=HITS)
def test_damage_gives_a_picture_or_a_picture_error(kind, cut, hits):
    content = bytearray(encoded(corners(), kind)[:cut])
    for place, value in hits:
        content[place % len(content)] = value
    try:
        picture = open_picture(bytes(content), bounds=Bounds(pixels=1_000_000))
    except PictureError as error:
        assert str(error).startswith("<bytes>: ")
    else:
        assert picture.mode == "RGB"


def test_squash_keeps_the_whole_picture():
    pixels = Preprocessing(size=(3, 4), interpolation="bilinear").apply(corners())
    assert pixels.shape == (3, 4, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    assert tuple(pixels[0, 0]) == RED and tuple(pixels[0, -1]) == GREEN and tuple(pixels[-1, -1]) == BLUE


def test_short_side_center_crop_takes_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = GREEN
    for array in (wide, wide.transpose(1, 0, 2)):
        pixels = Preprocessing(size=10, fit="short_side_center_crop").apply(open_picture(array))
        assert pixels.shape == (10, 10, 3) and (pixels == GREEN).all()
    pixels = Preprocessing(size=(4, 12), fit="short_side_center_crop").apply(open_picture(wide))
    assert pixels.shape == (4, 12, 3) and (pixels[:, 5:7] == GREEN).all() and not pixels[:, :2].any()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 90)] * 2),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.sampled_from(["squash", "short_side_center_crop"]),
)
def test_any_picture_fits_any_size(source, size, fit):
    assert Preprocessing(size=size, fit=fit).apply(Image.new("RGB", source, RED)).shape == (*size, 3)


def test_a_strip_needs_no_gigabytes():
    strip = Image.new("RGB", (30_000, 2), RED)
    strip.paste(GREEN, (14_990, 0, 15_010, 2))
    pixels = Preprocessing(size=32, fit="short_side_center_crop").apply(strip)
    assert (pixels == GREEN).all()


def test_the_cut_is_that_of_clip():
    from transformers import CLIPImageProcessorPil

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 83, 3), dtype=np.uint8))
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    ours = Preprocessing(
        size=24, fit="short_side_center_crop", mean=tuple(theirs.image_mean), std=tuple(theirs.image_std)
    )
    expected = theirs(noise, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours.normalise(ours.apply(noise)[None]), expected, atol=2e-6)


def test_normalise_by_hand():
    prepare = Preprocessing(size=1, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 0.25))
    result = prepare.normalise(np.array([[[[255, 51, 0]]]], np.uint8))
    assert result.shape == (1, 3, 1, 1) and result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), [1.0, 0.2, -4.0], rtol=1e-6)
    with pytest.raises(
        PictureError, match=r"pixels must be uint8 \(B, H, W, 3\), found float64 \(1, 3, 2, 2\)"
    ):
        prepare.normalise(np.zeros((1, 3, 2, 2)))


def test_preprocessing_round_trips_and_refuses_nonsense():
    for prepare in (
        Preprocessing(size=224),
        Preprocessing(size=(96, 128), fit="short_side_center_crop", interpolation="bilinear"),
    ):
        assert Preprocessing.model_validate_json(prepare.model_dump_json()) == prepare
    assert Preprocessing(size=224).hw == (224, 224) and Preprocessing(size=(96, 128)).hw == (96, 128)
    for wrong in (
        {"size": 0},
        {"size": 9000},
        {"size": 8, "fit": "stretch"},
        {"size": 8, "std": (1, 0, 1)},
        {"size": 8, "colour": 1},
    ):
        with pytest.raises(ValidationError):
            Preprocessing(**wrong)


def test_imagenet_crop_takes_the_middle_seven_eighths():
    """Scaled to 256 on the short side, then the middle 224: a frame of a sixteenth of the picture is cut off
    on each side.
    """
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    image[32:-32, 32:-32] = 255
    inner = Preprocessing(size=224, fit="short_side_center_crop", cover=256 / 224).apply(
        Image.fromarray(image)
    )
    assert inner.shape == (224, 224, 3) and inner[2:-2, 2:-2].min() == 255
    whole = Preprocessing(size=224, fit="short_side_center_crop").apply(Image.fromarray(image))
    assert whole[:10].max() < 128


RESNET = Preprocessing(size=224, fit="short_side_center_crop", cover=256 / 224)


def test_what_a_resnet_sees_by_hand():
    """500x375 is scaled to 341x256 (the short side to 256), of which columns 58 to 282 and rows 16 to 240 are
    cut out.
    """
    left, top, right, bottom = seen_box(500, 375, RESNET)
    assert (left, right) == pytest.approx((58 / 341, 282 / 341))
    assert (top, bottom) == pytest.approx((16 / 256, 240 / 256))
    assert (round(left, 3), round(right, 3)) == (0.170, 0.827)
    turned = seen_box(375, 500, RESNET)
    assert turned == pytest.approx((top, left, bottom, right))
    assert seen_box(500, 375, Preprocessing(size=224)) == (0, 0, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(*[st.integers(60, 400)] * 2),
    hw=st.tuples(*[st.integers(8, 60)] * 2),
    cover=st.floats(1, 1.5),
    fit=st.sampled_from(["squash", "short_side_center_crop"]),
)
def test_the_box_is_what_the_model_is_given(size, hw, cover, fit):
    """A picture that tells each place by its colour: what `apply` keeps at its edges lies at the edges of the
    box.
    """
    width, height = size
    places = np.zeros((height, width, 3), np.uint8)
    places[:, :, 0] = np.linspace(0, 255, width)
    places[:, :, 1] = np.linspace(0, 255, height)[:, None]
    prepare = Preprocessing(size=hw, fit=fit, cover=cover, interpolation="bilinear")
    pixels = prepare.apply(Image.fromarray(places)).astype(float) / 255
    left, top, right, bottom = seen_box(width, height, prepare)
    half_cell = (right - left) / hw[1] / 2 + 0.01, (bottom - top) / hw[0] / 2 + 0.01
    seen = pixels[0, 0, 0], pixels[0, 0, 1], pixels[-1, -1, 0], pixels[-1, -1, 1]
    expected = left + half_cell[0], top + half_cell[1], right - half_cell[0], bottom - half_cell[1]
    assert seen == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (3, 2)])
def test_of_a_strip_something_is_left_to_show(size):
    shown = seen_part(Image.new("RGB", size, RED), RESNET)
    assert min(shown.size) >= 1 and shown.getpixel((0, 0)) == RED


def halves(width, height, kind, **options):
    """A large grey picture, dark on the left and light on the right."""
    image = Image.new("L", (width, height), 40)
    image.paste(200, (width // 2, 0, width, height))
    return encoded(image, kind, **options)


def dark_and_light(picture):
    middle = picture.height // 2
    return picture.getpixel((picture.width // 4, middle)), picture.getpixel((picture.width * 3 // 4, middle))


def test_a_phone_photograph_of_108_megapixels_is_decoded_at_a_quarter(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "phone.jpg"
    path.write_bytes(halves(12_000, 9_000, "JPEG", exif=exif))
    picture = open_picture(path)
    assert picture.size == (12_000 // 4, 9_000 // 4) and min(picture.size) >= Bounds().least_side
    assert dark_and_light(picture) == ((200,) * 3, (40,) * 3)
    assert decode(path.read_bytes(), "x", Bounds())[1:] == (12_000, 9_000)


@pytest.fixture
def small_bounds():
    """Reduction begins at 3,000 pixels and leaves 24 on the shorter side, so that small pictures show what
    large ones meet.
    """
    return Bounds(whole_pixels=3_000, least_side=24)


LARGE = [
    ("PNG", {}), ("TIFF", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}),
    ("JPEG2000", {"num_resolutions": 3}), ("JPEG2000", {"num_resolutions": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), LARGE)
def test_every_kind_of_large_picture_is_reduced_alike(small_bounds, kind, options):
    content = halves(160, 112, kind, **options)
    picture, *stored = decode(content, "x", small_bounds)
    assert picture.size == (160 // 4, 112 // 4) and stored == [160, 112]
    assert dark_and_light(picture) == ((40,) * 3, (200,) * 3)
    with Image.open(io.BytesIO(content)) as image:  # as Python programs hand it over
        near(open_picture(image, bounds=small_bounds), picture, 40 if kind in ("JPEG", "JPEG2000") else 0)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_a_turned_large_picture_is_told_as_it_is_seen(small_bounds, stored_turned, kind):
    decoded = decode(stored_turned(Image.new("RGB", (160, 112)), 6, kind), "x", small_bounds)
    assert decoded[1:] == (160, 112) and decoded.picture.size == (40, 28)


@pytest.mark.parametrize("size", [(60, 50), (54, 55), (900, 47), (3, 2)])
def test_pictures_of_ordinary_size_are_decoded_whole(small_bounds, size):
    """Up to the threshold, and longer ones that would become narrow, nothing changes."""
    content = encoded(Image.effect_noise(size, 60).convert("RGB"), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        near(open_picture(content, bounds=small_bounds), image)


def test_much_text_in_a_png_is_no_damage():
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", "a dog " * 400_000, zip=True)
    near(open_picture(encoded(corners(), "PNG", pnginfo=text)), corners())
    near(open_picture(encoded(corners(), "PNG", icc_profile=bytes(3_000_000))), corners())
    many = PngInfo()
    for number in range(100):
        many.add_text(f"part {number}", "a" * 1_000_000, zip=True)
    near(open_picture(encoded(corners(), "PNG", pnginfo=many)), corners())


def test_a_png_of_very_many_chunks_is_refused_before_it_is_read():
    content = encoded(corners(), "PNG")
    empty = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
    near(open_picture(content[:33] + empty * 1000 + content[33:]), corners())
    with pytest.raises(PictureTooLarge, match="chunks"):
        open_picture(content[:33] + empty * 200_000 + content[33:])


def test_the_tiles_of_a_jpeg_2000_are_counted_as_memory():
    plain = Image.new("RGB", (256, 256), (9, 90, 200))
    content = encoded(plain, "JPEG2000", tile_size=(2, 2), num_resolutions=1)
    with pytest.raises(PictureTooLarge, match="MiB to decode"):
        decode(content, "x.jp2", Bounds(decoded_bytes=100 * 2**20))
    whole = encoded(plain, "JPEG2000")
    assert decode(whole, "x.jp2", Bounds(decoded_bytes=100 * 2**20)).picture.size == (256, 256)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_bands_make_no_difference(monkeypatch, mode, factor):
    """A picture that goes through the conversions in pieces comes out as one that goes through as a whole."""
    random = np.random.default_rng(3)
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray((random.random((45, 61)) * 60_000).astype(kinds[mode]))
    else:
        image = Image.fromarray(random.integers(0, 256, (45, 61, 4), np.uint8), "RGBA")
        image = image.convert("RGB").convert(mode) if mode in ("1", "P", "CMYK") else image.convert(mode)
    assert image.mode == mode
    whole = decoding.upright(image.copy(), factor)
    monkeypatch.setattr(decoding, "BAND_PIXELS", 61 * 7)
    pieces = decoding.upright(image.copy(), factor)
    assert whole.size == (-(-61 // factor), -(-45 // factor))
    assert np.array_equal(np.asarray(whole), np.asarray(pieces))
