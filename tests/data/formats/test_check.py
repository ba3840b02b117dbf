"""The doctor: every kind of trouble is found, named, and sorted into what stops a training and what does not."""

import functools
import io
import json
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from patchword.data.formats.check import examine
from patchword.data.scenes import write_scenes


@pytest.fixture
def folder(tmp_path):
    write_scenes(tmp_path, 3, size=32, split="train", captions=2)
    write_scenes(tmp_path, 2, size=32, split="val", captions=2)
    return tmp_path


def kinds(report, stops):
    return {finding.kind for finding in report.findings if finding.stops == stops}


def change(folder, edit):
    content = json.loads((folder / "dataset.json").read_text())
    edit(content["images"])
    (folder / "dataset.json").write_text(json.dumps(content))
    return examine(folder / "dataset.json")


def picture(folder, number=0):
    return sorted((folder / "images").iterdir())[number]


def test_a_sound_data_set(folder):
    report = examine(folder / "dataset.json")
    assert report.findings == () and not report.stops
    assert (report.pictures, report.captions, report.splits) == (5, 10, {"train": 3, "val": 2})
    assert report.to_text().endswith("Nothing found would stop a training.")


def noisy(mode, size=(40, 40)):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ).convert(mode)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def deep_png(path):
    """A 16-bit colour PNG, which Pillow reads but cannot write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + bytes(40 * 6) for _ in range(40))
    header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def bomb(path):
    deep_png(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (16_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)


PICTURES = {
    "missing": (True, lambda path: path.unlink(), "does not exist"),
    "empty-file": (True, lambda path: path.write_bytes(b""), r"the file is empty \(0 bytes\)"),
    "truncated": (
        True,
        lambda path: path.write_bytes(path.read_bytes()[:600]),
        "cannot be decoded: .*truncated",
    ),
    "not-a-picture": (
        True,
        lambda path: path.write_text("<html>404</html>"),
        r"not a picture of a known kind \(it starts with b'<html>",
    ),
    "too-large": (True, bomb, "more than the limit of 178,956,970 that Pillow sets"),
    "cmyk": (False, lambda path: noisy("CMYK").save(path, "JPEG"), "is CMYK"),
    "16-bit": (False, deep_png, "more than 8 bits per channel"),
    "animated": (
        False,
        lambda path: noisy("RGB").save(path, "GIF", save_all=True, append_images=[noisy("L")]),
        "has 2 frames",
    ),
    "rotated": (False, lambda path: noisy("RGB").save(path, "JPEG", exif=turned()), r"EXIF orientation 6"),
    "small": (False, lambda path: noisy("RGB", (20, 40)).save(path), "20x40 pixels"),
    "stretched": (False, lambda path: noisy("RGB", (400, 40)).save(path), "400x40 pixels"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_troubles_with_pictures(folder, kind):
    stops, spoil, message = PICTURES[kind]
    path = picture(folder)
    spoil(path)
    report = examine(folder / "dataset.json")
    (finding,) = report.findings
    assert (finding.kind, finding.where, finding.stops, report.stops) == (kind, str(path), stops, stops)
    assert re.search(message, finding.message)
    assert f"{kind} (1)" in report.to_text() and str(path) in report.to_text()


@functools.cache
def moving(kind):
    buffer = io.BytesIO()
    noisy("RGB").save(buffer, kind, save_all=True, append_images=[noisy("RGB").rotate(90)] * 2)
    return buffer.getvalue()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GIF", "WEBP", "TIFF", "PNG"]),
    st.integers(20, 4000),
    st.integers(10, 3000),
    st.integers(0, 255),
)
def test_the_doctor_survives_whatever_is_damaged(tmp_path, kind, cut, place, value):
    content = bytearray(moving(kind)[:cut])
    content[place % len(content)] = value
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "a.txt").write_text("a ring")
    assert examine(tmp_path).pictures == 1


def test_grey_pictures_of_sixteen_bits(folder):
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(picture(folder))
    assert kinds(examine(folder / "dataset.json"), False) == {"16-bit"}


def test_a_very_large_but_bearable_picture(folder, monkeypatch):
    monkeypatch.setattr("patchword.data.formats.check.MANY_PIXELS", 90_000)
    noisy("RGB", (320, 320)).save(picture(folder))
    (finding,) = examine(folder / "dataset.json").findings
    assert (finding.kind, finding.stops) == (
        "large",
        False,
    ) and "320x320 pixels: decoding it slows training down" in finding.message


def test_a_missing_picture_gets_a_hint(folder):
    path = picture(folder)
    path.rename(path.with_suffix(".PNG"))
    (finding,) = examine(folder / "dataset.json").findings
    assert finding.message == f"does not exist; is it {path.with_suffix('.PNG').name}?"


def test_no_folder_of_pictures_is_one_finding(folder):
    (finding,) = examine(folder / "dataset.json", folder / "nowhere").findings
    assert (
        finding.kind == "missing"
        and finding.message == "the folder of the pictures does not exist: give it with --images"
    )


def test_the_same_picture_twice(folder):
    train, val = (folder / "images" / f"iid_{split}_000000.png" for split in ("train", "val"))
    shutil.copy(train, folder / "images" / "iid_train_000001.png")
    shutil.copy(train, val)
    report = examine(folder / "dataset.json")
    assert not report.stops and kinds(report, False) == {"duplicate-picture", "split-overlap"}
    (across,) = [finding for finding in report.findings if finding.kind == "split-overlap"]
    assert across.message == "the same picture as iid_train_000000.png, which is in train; this one is in val"


def set_caption(text):
    def edit(images):
        images[0]["sentences"][0]["raw"] = text

    return edit


@pytest.mark.parametrize(
    ("kind", "stops", "edit"),
    [
        ("empty-caption", True, set_caption("  ")),
        ("encoding", True, set_caption("half \ud800")),
        ("long-caption", False, set_caption("very " * 51)),
        ("no-words", False, set_caption("!!! \U0001f436")),
        ("lost-letters", False, set_caption("un \ufffdt\ufffd")),
        ("repeated-caption", False, lambda images: images[0]["sentences"].append(images[0]["sentences"][0])),
        ("duplicate-id", True, lambda images: images[1].update(imgid=images[0]["imgid"])),
        ("overlap", True, lambda images: images[-1].update(filename=images[0]["filename"])),
        ("duplicate-file", False, lambda images: images[1].update(filename=images[0]["filename"])),
        ("split", True, lambda images: images[0].update(split="later")),
        ("no-caption", True, lambda images: images[0].update(sentences=[])),
        ("no-split", False, lambda images: [one.pop("split") for one in images]),
        ("no-split", False, lambda images: [one.update(split="train") for one in images]),
    ],
)
def test_troubles_with_annotations(folder, kind, stops, edit):
    report = change(folder, edit)
    assert kind in kinds(report, stops) and report.stops == stops


def test_annotation_ids_in_place_of_image_ids(folder):
    def one_id_per_caption(images):
        first = images[0]
        images[0] = first | {"imgid": 101, "sentences": first["sentences"][:1]}
        images.append(first | {"imgid": 102, "sentences": first["sentences"][1:]})

    report = change(folder, one_id_per_caption)
    (finding,) = [finding for finding in report.findings if finding.stops]
    assert finding.kind == "annotation-ids"
    assert (
        finding.message
        == "stands under 2 ids with one caption each (101, 102): these look like annotation ids"
    )


def test_annotation_ids_in_coco_captions(folder):
    name = picture(folder).name
    content = {
        "images": [{"id": 1, "file_name": name}],
        "annotations": [
            {"id": 9, "image_id": 9, "caption": "a ring"},
            {"id": 10, "image_id": 1, "caption": "a star"},
        ],
    }
    path = folder / "captions_train2014.json"
    path.write_text(json.dumps(content))
    report = examine(path)
    assert "annotation-ids" in kinds(report, True) and report.captions == 1


def test_ids_that_are_not_those_of_coco(folder):
    def rename(images):
        for number, one in enumerate(images):
            name = f"COCO_val2014_{number + 500:012d}.png"
            os.rename(folder / "images" / one["filename"], folder / "images" / name)
            one["filename"] = name

    report = change(folder, rename)
    (finding,) = report.findings
    assert finding.kind == "foreign-ids" and not finding.stops
    assert finding.message.startswith(
        "in 5 of 5 names the number is not the image id (COCO_val2014_000000000500.png has "
    )


def test_many_troubles_are_all_listed_and_nothing_is_changed(folder):
    table = folder / "mine.csv"
    names = [path.name for path in sorted((folder / "images").iterdir())]
    rows = [
        "image,caption,split",
        f"{names[0]},a ring,train",
        f"{names[1]},,train",
        f"{names[2]},un \xe9t\xe9,train",
    ]
    rows += [
        f"{names[3]},a star,soon",
        "gone.png,a half,val",
        f"{names[0]},a dome,val",
        f"{names[4]},a, b,val",
    ]
    table.write_bytes("\n".join(rows).encode("latin-1"))
    (folder / "images" / names[2]).write_bytes(b"")
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    }
    report = examine(table)
    found = [
        (finding.kind, finding.where.removeprefix(f"{table}, "))
        for finding in report.findings
        if finding.stops
    ]
    assert found == [
        ("encoding", "line 4"),
        ("empty-caption", "line 3"),
        ("split", "line 5"),
        ("overlap", "line 7"),
        ("layout", "line 8"),
        ("empty-file", str(folder / "images" / names[2])),
        ("missing", str(folder / "images" / "gone.png")),
    ]
    assert json.loads(report.to_json())["stops"] is True and len(
        json.loads(report.to_json())["findings"]
    ) == len(report.findings)
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_of_photos_beside_texts(tmp_path):
    for number in range(2):
        noisy("RGB").rotate(90 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a photo")
    report = examine(tmp_path)
    assert [(finding.kind, finding.stops) for finding in report.findings] == [
        ("no-caption", True),
        ("no-split", False),
    ]


@pytest.mark.skipif(
    os.name != "posix", reason="file names of bytes that are no text exist on POSIX systems only"
)
def test_names_that_are_no_text_can_be_printed(tmp_path):
    noisy("RGB").save(tmp_path / "ok.png")
    (tmp_path / "ok.txt").write_text("a photo")
    os.rename(os.fsencode(tmp_path / "ok.png"), os.fsencode(tmp_path) + b"/\xff.png")
    report = examine(tmp_path)
    assert report.stops
    report.to_text().encode("utf-8")
