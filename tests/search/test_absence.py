"""Absence is not deletion, and deletion is not unnoticed; a file that moved is recognised by its content."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchword.search.walk as walk_file
from patchword.errors import DataError, StoreError
from patchword.search.check import repair_index
from patchword.search.find import find_by_text
from patchword.search.index import open_index, prune_index, update_index
from patchword.search.records import IndexModel
from patchword.search.walk import is_gone, is_index, prefix_of, walk


class Watched:
    """The mean colour, with a count of the pictures that were embedded."""

    def __init__(self):
        self.count = 0

    def __call__(self, pictures):
        self.count += len(pictures)
        return np.stack(
            [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
        )


@pytest.fixture
def embed():
    return Watched()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for i in range(6):
        place = folder / "trip" if i % 2 else folder
        Image.new("RGB", (5, 5), (40 * i, 10, 250 - 40 * i)).save(place / f"{i}.png")
    return folder


def paths(out):
    with open_index(out) as opened:
        return sorted(match.path for match in opened.search(np.ones(3), 99)) if opened.count else []


def files(*folders):
    return sorted(str(path) for folder in folders for path in folder.rglob("*.png"))


def test_an_empty_folder_is_refused_and_changes_nothing(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    shutil.move(photos, tmp_path / "elsewhere")
    photos.mkdir()
    before = (out / "index.json").read_bytes()
    with pytest.raises(
        StoreError, match=r"the folder is empty, and the index holds 6 pictures.*--allow-empty"
    ):
        update_index(photos, out, IndexModel(embed, "colours"))
    assert (out / "index.json").read_bytes() == before
    report = update_index(photos, out, IndexModel(embed, "colours"), allow_empty=True)
    assert (report.removed, report.pictures) == (6, 0)


def test_a_drive_that_comes_back_is_embedded_once(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    shutil.move(photos, tmp_path / "elsewhere")
    photos.mkdir()
    with pytest.raises(StoreError):
        update_index(photos, out, IndexModel(embed, "colours"))
    photos.rmdir()
    shutil.move(tmp_path / "elsewhere", photos)
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.kept, report.pictures, embed.count) == (6, 6, 6)


def test_a_folder_that_cannot_be_read_keeps_its_pictures(photos, tmp_path, embed, monkeypatch):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    (photos / "0.png").unlink()
    listed = os.scandir

    def refusing(path):
        if os.fspath(path) == str(photos / "trip"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.removed, report.pictures) == (1, 5)
    assert report.absent == {str(photos / "trip"): 3}
    assert report.bad == [(str(photos / "trip"), "Permission denied")]


def test_a_drive_under_the_folder_that_is_not_mounted_keeps_its_pictures(
    photos, tmp_path, embed, monkeypatch
):
    out, trip, really = tmp_path / "out", str(photos / "trip"), os.path.ismount
    monkeypatch.setattr(walk_file.os.path, "ismount", lambda path: os.fsdecode(path) == trip or really(path))
    update_index(photos, out, IndexModel(embed, "colours"))
    monkeypatch.setattr(walk_file.os.path, "ismount", really)
    for file in (photos / "trip").iterdir():
        file.unlink()
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.removed, report.pictures, report.absent) == (0, 6, {trip: 3})
    assert prune_index(out).absent == {trip: 3}, "pruning wants evidence as well"
    report = update_index(photos, out, IndexModel(embed, "colours"), allow_empty=True)
    assert (report.removed, report.pictures) == (3, 3)


def test_a_part_of_the_same_file_system_that_is_mounted_is_a_drive_too(photos, tmp_path, embed, monkeypatch):
    """It has no device number of its own; the system's list of mounts names it, with its spaces escaped."""
    (photos / "trip").rename(photos / "the trip")
    out, trip = tmp_path / "out", str(photos / "the trip")
    listed, list_file = tmp_path / "mountinfo", Path
    escaped = trip.replace(" ", "\\040")
    listed.write_text(f"1 2 3:4 / / rw - ext4 /dev/a rw\n5 1 3:4 /there {escaped} rw - ext4 /dev/a rw\n")
    place = lambda path: listed if path == "/proc/self/mountinfo" else list_file(path)  # noqa: E731
    monkeypatch.setattr(walk_file, "Path", place)
    update_index(photos, out, IndexModel(embed, "colours"))
    listed.write_text("1 2 3:4 / / rw - ext4 /dev/a rw\n")
    for file in (photos / "the trip").iterdir():
        file.unlink()
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.removed, report.pictures, report.absent) == (0, 6, {trip: 3})


def test_a_folder_of_which_the_last_picture_is_deleted_is_forgotten(photos, tmp_path, embed):
    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    for file in (photos / "trip").iterdir():
        file.unlink()
    assert update_index(photos, tmp_path / "out", IndexModel(embed, "colours")).removed == 3


def test_renamed_pictures_and_folders_keep_their_vectors(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    (photos / "0.png").rename(photos / "renamed.png")
    (photos / "trip").rename(photos / "journey")
    report = update_index(photos, out, IndexModel(embed, "colours"), batch=2)
    assert (report.moved, report.added, report.removed, report.kept) == (4, 0, 0, 2)
    assert embed.count == 6 and paths(out) == files(photos)


def test_a_moved_root_keeps_its_vectors_under_the_new_one(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    photos.rename(tmp_path / "pictures")
    report = update_index(tmp_path / "pictures", out, IndexModel(embed, "colours"))
    assert (report.moved, report.pictures, embed.count) == (6, 6, 6)
    assert paths(out) == files(tmp_path / "pictures")


def test_pictures_of_a_drive_that_is_away_are_copied_not_moved(photos, tmp_path, embed, monkeypatch):
    out, really = tmp_path / "out", os.path.ismount
    monkeypatch.setattr(
        walk_file.os.path, "ismount", lambda path: os.fsdecode(path) == str(photos) or really(path)
    )
    update_index(photos, out, IndexModel(embed, "colours"))
    monkeypatch.setattr(walk_file.os.path, "ismount", really)
    photos.rename(tmp_path / "copy")
    photos.mkdir()
    report = update_index(tmp_path / "copy", out, IndexModel(embed, "colours"))
    assert (report.added, report.moved, report.pictures, embed.count) == (6, 0, 12, 6)


def test_copies_are_entries_of_their_own_and_share_the_vector(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    shutil.copytree(photos / "trip", photos / "copy")
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.added, report.moved, report.pictures, embed.count) == (3, 0, 9, 6)


def test_two_pictures_that_are_the_same_moved_together(photos, tmp_path, embed):
    shutil.copy(photos / "0.png", photos / "again.png")
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    for name in ("0.png", "again.png"):
        (photos / name).rename(photos / f"new {name}")
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.moved, report.removed, report.added) == (2, 0, 0) and paths(out) == files(photos)


def test_a_new_time_without_new_content_embeds_nothing(photos, tmp_path, embed):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours"))
    os.utime(photos / "0.png", ns=(5, 5))
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.kept, report.changed, embed.count) == (6, 0, 6)
    assert update_index(photos, out, IndexModel(embed, "colours")).kept == 6


def test_other_content_of_the_same_size_is_not_taken_for_the_old(photos, tmp_path, embed):
    out = tmp_path / "out"
    Image.new("RGB", (5, 5), (250, 0, 0)).save(photos / "new.bmp")
    update_index(photos, out, IndexModel(embed, "colours"))
    size = (photos / "new.bmp").stat().st_size
    Image.new("RGB", (5, 5), (0, 250, 0)).save(photos / "new.bmp")
    os.utime(photos / "new.bmp", ns=(5, 5))
    assert (photos / "new.bmp").stat().st_size == size
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.changed, embed.count) == (1, 8)
    with open_index(out) as opened:
        assert opened.search(np.array([0, 1.0, 0]), 1)[0].path == str(photos / "new.bmp")


def test_prune_forgets_dead_paths_of_every_folder(photos, tmp_path, embed):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 5), (9, 99, 9) if name == "a.png" else (99, 9, 99)).save(other / name)
    update_index(photos, out, IndexModel(embed, "colours"))
    update_index(other, out, IndexModel(embed, "colours"))
    shutil.rmtree(photos)
    (other / "a.png").unlink()
    report = prune_index(out)
    assert (report.removed, report.pictures, report.absent) == (7, 1, {})
    assert paths(out) == [str(other / "b.png")]
    (other / "b.png").unlink()
    report = prune_index(out)
    assert (report.removed, report.absent) == (0, {str(other): 1}), (
        "an empty folder may be an unmounted drive"
    )
    assert prune_index(out, allow_empty=True).removed == 1


def test_the_root_of_the_file_system_works():
    assert prefix_of(walk_file.Path("/")) == b"/" and prefix_of(walk_file.Path("/a")) == b"/a/"


def test_a_folder_beside_one_with_a_longer_name_keeps_its_own(tmp_path, embed):
    for name in ("trip", "trip 2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(tmp_path / name / "a.png")
        update_index(tmp_path / name, tmp_path / "out", IndexModel(embed, "colours"))
    (tmp_path / "trip" / "a.png").unlink()
    (tmp_path / "trip" / "b.txt").write_text("no picture")
    report = update_index(tmp_path / "trip", tmp_path / "out", IndexModel(embed, "colours"))
    assert (report.removed, report.pictures) == (1, 1)


def test_an_index_inside_its_folder_is_not_indexed(photos, embed):
    assert update_index(photos, photos / "index", IndexModel(embed, "colours")).pictures == 6
    report = update_index(photos, photos / "index", IndexModel(embed, "colours"))
    assert (report.added, report.pictures, walk(photos).empty) == (0, 6, False)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_folder_by_another_name_brings_no_picture_twice(photos, tmp_path, embed):
    """Through a link, through a link above it, or one of its folders: the names that were there first stay."""
    out, model = tmp_path / "out", IndexModel(embed, "colours")
    update_index(photos, out, model)
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "above").symlink_to(tmp_path)
    for other in (tmp_path / "link", tmp_path / "above" / "photos", tmp_path / "link" / "trip"):
        report = update_index(other, out, model)
        assert (report.added, report.moved, report.removed, report.pictures) == (0, 0, 0, 6)
    assert paths(out) == files(photos) and embed.count == 6
    (photos / "trip" / "1.png").unlink()
    assert update_index(tmp_path / "link", out, model).removed == 1
    first = tmp_path / "by-link"
    update_index(tmp_path / "link", first, model)  # a link that comes first keeps its name as well
    assert update_index(photos, first, model).added == 0
    assert paths(first) == files(tmp_path / "link")


def test_an_index_and_its_pictures_have_folders_of_their_own(photos, tmp_path, embed):
    model = IndexModel(embed, "colours")
    with pytest.raises(DataError, match="an index lies in a folder of its own"):
        update_index(photos, photos, model)
    assert not is_index(photos)
    update_index(photos, tmp_path / "out", model)
    with pytest.raises(DataError, match="this folder is an index, which holds no pictures"):
        update_index(tmp_path / "out", tmp_path / "other", model)
    assert not (tmp_path / "other").exists()


def test_a_search_below_a_folder_that_is_not_there_says_so(photos, tmp_path, embed):
    from types import SimpleNamespace

    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    towers = SimpleNamespace(embed_texts=lambda texts: np.ones((1, 3)) / 3**0.5, remarks=lambda text: [])
    with open_index(tmp_path / "out") as opened:
        found = find_by_text(opened, towers, "red", under=str(photos / "nowhere"))
        assert not found.matches and "nothing was found in" in found.remarks[0]
        found = find_by_text(opened, towers, "red", under=str(photos / "trip"))
        assert len(found.matches) == 3 and not found.remarks


def test_what_is_there_is_not_gone(photos):
    here = os.fsencode(photos / "0.png")
    assert not is_gone(here, []) and is_gone(here + b"x", [])
    assert not is_gone(here + b"x", [os.fsencode(photos)]), "the drive is not mounted"
    (photos / "empty").mkdir()
    assert not is_gone(os.fsencode(photos / "empty" / "sub" / "a.png"), [])


def test_an_index_json_of_a_person_is_never_overwritten(photos, tmp_path, embed):
    (photos / "index.json").write_text('{"gallery": []}')
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text('{"gallery": []}')
    assert not is_index(photos)
    for work in (
        lambda: update_index(photos, tmp_path / "site", IndexModel(embed, "colours")),
        lambda: repair_index(photos, "colours", ""),
    ):
        with pytest.raises(
            StoreError, match="none of an index, which would be overwritten: choose another folder"
        ):
            work()
    for place in (photos, tmp_path / "site"):
        assert (place / "index.json").read_text() == '{"gallery": []}' and embed.count == 0
    assert update_index(photos, photos / "index", IndexModel(embed, "colours")).pictures == 6
    assert is_index(photos / "index")
