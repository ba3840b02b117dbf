"""Folders as people have them: every kind of picture is found, and what is left out is counted by its
reason."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from patchword.data import sources
from patchword.data.pictures import open_picture
from patchword.data.sources import BROKEN_LINK, LINKED_FOLDER, NO_PICTURE, RAW, find_pictures, walk

HEIC = Path(__file__).parent / "files" / "stored-turned.heic"

WRITTEN = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP",
    ".webp": "WEBP", ".tif": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".tga": "TGA", ".jp2": "JPEG2000", ".ico": "ICO", ".pcx": "PCX",
    ".sgi": "SGI", ".qoi": "QOI", ".avif": "AVIF",
}  # fmt: skip


@pytest.fixture
def every_kind(tmp_path):
    """A folder with one picture under each suffix, in either case, and one of phones."""
    folder = tmp_path / "all"
    folder.mkdir()
    for number, (suffix, kind) in enumerate(WRITTEN.items()):
        suffix = suffix.upper() if number % 2 else suffix
        Image.new("RGB", (32, 32), (200, 40, 40)).save(folder / f"picture{suffix}", kind)
    shutil.copy(HEIC, folder / "phone.HEIC")
    return folder


def test_every_kind_is_found_and_opened(every_kind):
    found = find_pictures([str(every_kind)])
    assert len(found.pictures) == len(WRITTEN) + 1 and found.left_out == []
    for path in found.pictures:
        assert open_picture(path).mode == "RGB", path


def test_a_photograph_of_a_phone_stands_upright():
    """64x48 as it is seen; its pixels lie turned in the file, as phones write them."""
    picture = open_picture(HEIC)
    assert picture.size == (64, 48) and open_picture(picture) == picture
    colours = [picture.getpixel(place) for place in ((8, 8), (56, 8), (56, 40))]
    assert [colour.index(max(colour)) for colour in colours] == [0, 1, 2]


def test_damaged_heic_is_called_damaged(tmp_path):
    from patchword.errors import NotAPicture, PictureError

    with pytest.raises(PictureError, match="cannot be decoded") as caught:
        open_picture(HEIC.read_bytes()[:300])
    assert not isinstance(caught.value, NotAPicture)


def test_where_the_suffix_says_nothing_the_content_does(tmp_path, every_kind):
    folder = tmp_path / "unnamed"
    folder.mkdir()
    for kind in (".jpg", ".gif", ".webp", ".bmp", ".avif"):
        source = next(path for path in every_kind.iterdir() if path.suffix.lower() == kind)
        shutil.copy(source, folder / f"{kind[1:]}-of-an-export")
    shutil.copy(HEIC, folder / "IMG_0001.original")
    (folder / "BMW dealers.dat").write_text("BMW and others, which is no bitmap")
    (folder / "photo.txt").write_text("a dog")
    found = find_pictures([str(folder)])
    assert len(found.pictures) == 6 and all(open_picture(path) for path in found.pictures)
    assert found.by_reason() == {NO_PICTURE: 2}


def test_what_is_left_out_is_counted_by_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_reads_raw", lambda: False)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    for name in ("notes.txt", "film.mov", "._red.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 nothing to see")
    for name in ("a.NEF", "b.cr2"):
        (tmp_path / name).write_bytes(b"II*\0")
    found = find_pictures([str(tmp_path)])
    assert [path.name for path in found.pictures] == ["red.png"]
    assert found.by_reason() == {NO_PICTURE: 4, RAW: 2, BROKEN_LINK: 1, LINKED_FOLDER: 1}
    assert [one.path.name for one in found.lost()] == ["a.NEF", "b.cr2", "gone.jpg"]
    everything = sum(len(files) + len(folders) for _, folders, files in os.walk(tmp_path))
    assert len(found.pictures) + len(found.left_out) == everything


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """As root every folder can be read: the refusal of the system is given by hand."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    private = tmp_path / "private"
    private.mkdir()
    real = os.scandir

    def refusing(path):
        if os.fspath(path) == str(private):
            raise PermissionError(13, "Permission denied", str(private))
        return real(path)

    monkeypatch.setattr("os.scandir", refusing)
    found = walk(tmp_path)
    assert len(found.pictures) == 1
    assert found.left_out == [(private, "folder that cannot be read")] == found.lost()


def test_folders_without_pictures_say_what_they_hold(tmp_path):
    from patchword.errors import DataError

    with pytest.raises(DataError, match="holds no picture .it is empty"):
        find_pictures([str(tmp_path)])
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(DataError, match="holds no picture .no picture: 1"):
        find_pictures([str(tmp_path)])
    (tmp_path / "within").mkdir()
    with pytest.raises(DataError, match="no file matches .*not looked into: 1"):
        find_pictures([f"{tmp_path}/wi*"])


@pytest.fixture
def mixed(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.jpe", "JPEG")
    shutil.copy(HEIC, folder / "phone.heic")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "notes.txt").write_text("a dog")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_the_last_line_of_caption_and_label_counts(patchword, mixed, towers):
    counted = "1 could not be read; left out 2 (broken link: 1, no picture: 1)"
    for command in (
        ("caption", mixed, "--device", "cpu", "--beam", 1),
        ("label", mixed, "--labels", "a dog,a cat", "--model", towers, "--device", "cpu"),
    ):
        status, out, err = patchword(*command)
        assert status == 1 and len(out.splitlines()) == 2
        assert counted in err.splitlines()[-1] and f"{mixed / 'gone.jpg'}: broken link" in err
        status, out, _ = patchword(*command, "--json")
        *rows, last = map(json.loads, out.splitlines())
        assert status == 1 and [Path(row["image"]).name for row in rows] == ["phone.heic", "red.jpe"]
        assert last == {"image": None, "unreadable": 1, "left_out": {"no picture": 1, "broken link": 1}}


def test_the_last_line_of_index_counts(patchword, mixed, towers, tmp_path):
    command = ("index", mixed, "--out", tmp_path / "index", "--model", towers)
    status, out, err = patchword(*command)
    assert status == 1 and "left out 2 (broken link: 1, no picture: 1)" in out.splitlines()[-1]
    assert out.startswith("2 pictures") and "gone.jpg" in err and "broken.png" in err
    found = json.loads(patchword(*command, "--json")[1])
    assert found["left_out"] == {"no picture": 1, "broken link": 1}
    assert found["pictures"] == 2 and len(found["bad"]) == 2


def test_nothing_is_said_where_nothing_is_left_out(patchword, photos, towers):
    (photos / "broken.jpg").unlink()
    command = ("label", photos, "--labels", "a dog,a cat", "--model", towers, "--device", "cpu", "--json")
    status, out, err = patchword(*command)
    assert status == 0 and err == "" and all(json.loads(row)["image"] for row in out.splitlines())
