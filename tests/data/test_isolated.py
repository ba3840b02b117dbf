"""Pictures that are decoded in a process of their own are the same pictures; what takes too long or breaks
the decoder down is a picture that cannot be read, and the next one is read."""

import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from skimage import data as photographs

from patchword.data.headers import Bounds
from patchword.data.isolated import PictureReader
from patchword.data.pictures import open_picture
from patchword.errors import NotAPicture, PictureError, PictureTooLarge


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(photographs.astronaut()).resize((160, 120))


@pytest.fixture(scope="module")
def slow():
    """A progressive JPEG of 5,000 x 5,000 pixels and 90 scans: within the bounds, and seconds of work."""
    content = encoded(Image.new("L", (5_000, 5_000), 90), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 80 + content[-2:]


def test_they_are_the_pictures_that_open_picture_gives(photograph, tmp_path):
    tagged = Image.Exif()
    tagged[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(photograph, "JPEG", exif=tagged))
    contents = [
        encoded(photograph, "PNG"),
        encoded(photograph.convert("LA"), "PNG"),
        encoded(photograph.convert("F"), "TIFF"),
        encoded(photograph, "WEBP"),
        encoded(photograph, "AVIF"),
    ]
    with PictureReader() as reader:
        for source in [tmp_path / "a.jpg", str(tmp_path / "a.jpg"), *contents, io.BytesIO(contents[0])]:
            found = reader.open(source)
            if isinstance(source, io.BytesIO):
                source.seek(0)
            assert np.array_equal(np.asarray(found), np.asarray(open_picture(source)))
            assert found.info == {}
        assert reader.open(photograph) == photograph
        assert reader.open(np.asarray(photograph)) == photograph


def test_errors_are_those_of_open_picture_and_the_process_stays(photograph, tmp_path):
    good = encoded(photograph, "PNG")
    wrong = {b"": PictureError, b"no picture": NotAPicture, good[: len(good) // 2]: PictureError}
    with PictureReader() as reader:
        reader.open(good)
        first = reader._decoder
        for content, kind in wrong.items():
            with pytest.raises(kind) as here:
                reader.open(content, "x\udcff.png")
            with pytest.raises(kind) as there:
                open_picture(content, "x\udcff.png")
            assert str(here.value) == str(there.value)
        assert reader.open(good) == photograph and reader._decoder is first
        with pytest.raises(PictureError, match="does not exist"):
            reader.open(tmp_path / "gone.png")
    with PictureReader(bounds=Bounds(pixels=100)) as reader, pytest.raises(PictureTooLarge):
        reader.open(good)


def test_a_picture_that_takes_too_long_is_given_up_and_the_next_one_is_read(photograph, slow):
    with PictureReader(seconds=30) as reader:
        reader.open(encoded(photograph, "PNG"))  # the process is started
        reader._seconds, began = 0.3, time.monotonic()
        with pytest.raises(PictureError, match="slow.jpg: decoding takes more than 0.3 seconds"):
            reader.open(slow, "slow.jpg")
        assert time.monotonic() - began < 20
        reader._seconds = 30
        assert reader.open(encoded(photograph, "PNG")) == photograph


def test_a_decoder_that_breaks_down_takes_one_picture_with_it(photograph):
    content = encoded(photograph, "PNG")
    with PictureReader() as reader:
        reader.open(content)
        reader._decoder.kill()
        with pytest.raises(PictureError, match="one.png: its decoder broke down"):
            reader.open(content, "one.png")
        assert reader.open(content) == photograph


def test_no_process_stays_behind(photograph):
    with PictureReader() as reader:
        assert reader._decoder is None  # none before there is something to decode
        reader.open(encoded(photograph, "PNG"))
        process = reader._decoder._process
    assert process.returncode is not None
    with PictureReader(isolated=False) as reader:
        assert reader.open(encoded(photograph, "PNG")) == photograph and reader._decoder is None


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is bounded on Linux only")
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_picture_that_is_larger_inside_than_its_header_says_stays_within_its_memory(kind, photograph):
    """The box that tells the size says 64 x 64; the frame has 6,000 x 6,000 pixels."""
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pi_heif")
        assert pillow_heif  # it reads only; the file below is AVIF under the brand that HEIC shares
    content = encoded(Image.new("RGB", (6_000, 6_000), (9, 90, 200)), "AVIF", quality=30, speed=10)
    whole = (6_000).to_bytes(4, "big") * 2
    assert content.count(whole) == 1
    content = content.replace(whole, (64).to_bytes(4, "big") * 2)
    if kind == "HEIF":
        content = content[:8] + b"mif1" + content[12:]
    with PictureReader() as reader:
        reader.open(encoded(photograph, "PNG"))
        try:
            assert reader.open(content, "liar").size in ((64, 64), (6_000, 6_000))
        except PictureError as error:
            assert "liar" in str(error)
        if reader._decoder is not None and reader._decoder._process.poll() is None:
            status = Path(f"/proc/{reader._decoder._process.pid}/status").read_text(encoding="ascii")
            peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            assert peak < 400 * 1024
        assert reader.open(encoded(photograph, "PNG")) == photograph


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are not stopped by a signal here")
def test_a_run_that_is_paused_loses_no_picture(photograph):
    """Ctrl+Z, a scheduler or a starved machine: the clock goes on, and the picture is a good one."""
    content = encoded(photograph, "PNG")
    with PictureReader(seconds=0.4) as reader:
        reader.open(content)
        [decoder] = [child for child in psutil.Process().children() if "worker" in " ".join(child.cmdline())]
        decoder.suspend()
        later = threading.Timer(1.5, decoder.resume)
        later.start()
        assert reader.open(content) == photograph
        later.join()
        assert decoder.is_running()
