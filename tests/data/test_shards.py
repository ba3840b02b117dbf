"""Tar shards: where each picture lies, what is left out and why, the order in which they are read."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchword.data.captions import shuffled
from patchword.data.formats.readers import read_captions
from patchword.data.formats.shards import left_out
from patchword.data.isolated import PictureReader
from patchword.data.pictures import open_picture
from patchword.data.shards import index_of, read_member
from patchword.data.store import picture_files
from patchword.errors import DataError, PictureError, StoreError


def png(red):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards of training pictures and one that is held out."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "train-0.tar",
        [
            ("./a.b/1.png", png(10)),
            ("./a.b/1.txt", b"a dog\n\nthe  dog runs\n"),
            ("x.txt", b"a text alone"),
            ("2.json", json.dumps({"caption": "a cat", "url": "http://x"}).encode()),
            ("2.png", png(20)),
            ("3.png", png(30)),
            ("4.png", png(40)),
            ("4.txt", b"... !"),
            ("5.seg.png", png(50)),
            ("5.png", png(51)),
            ("5.json", b"{no json"),
            ("5.txt", "ein Hund \u2013 l\u00e4uft".encode()),
        ],
    )
    write_tar(
        folder / "train-1.tar", [("1.png", png(60)), ("1.json", b'{"captions": ["a red bird", "a bird"]}')]
    )
    write_tar(folder / "val-0.tar", [("1.png", png(70)), ("1.txt", b"a fish")])
    return folder


def test_records_name_pictures_that_open_at_their_place(shards):
    records = read_captions(shards)
    assert [(one.file, one.captions, one.split) for one in records] == [
        ("train-0.tar#a.b/1.png", ("a dog", "the dog runs"), "train"),
        ("train-0.tar#2.png", ("a cat",), "train"),
        ("train-0.tar#5.png", ("ein Hund \u2013 l\u00e4uft",), "train"),
        ("train-1.tar#1.png", ("a red bird", "a bird"), "train"),
        ("val-0.tar#1.png", ("a fish",), "val"),
    ]
    reds = [open_picture(shards / record.file).getpixel((0, 0))[0] for record in records]
    assert reds == [10, 20, 51, 60, 70]
    with PictureReader() as reader:
        assert reader.open(shards / records[1].file).getpixel((0, 0)) == (20, 0, 0)
    reasons = left_out(shards)
    assert [reason.split("#")[1] for reason in reasons] == [
        "x: no picture", "3: a picture without a caption", "4: a picture without a caption",
    ]  # fmt: skip
    heard = []
    assert read_captions(shards, lambda *said: heard.append(said)) == records and len(heard) == 3
    assert read_captions(shards / "train-*.tar") == records[:4]
    assert [one.file for one in read_captions(shards / "val-0.tar")] == ["val-0.tar#1.png"]


def test_the_index_is_made_once_and_again_when_the_shard_changes(shards, monkeypatch):
    shard = shards / "train-1.tar"
    first = index_of(shard)
    beside = Path(f"{shard}.index.json")
    assert beside.is_file()

    def never(*arguments, **options):
        raise AssertionError("the index is there")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", never)
        assert index_of(shard) == first
    beside.write_text("[1, 2")
    assert index_of(shard) == first and json.loads(beside.read_text())["format"] == 1
    listing = picture_files(shards, ["train-1.tar#1.png"])
    write_tar(shard, [("9.png", png(90)), ("9.txt", b"nine"), ("1.png", png(61)), ("1.txt", b"one")])
    os.utime(shard, ns=(1, 1))
    assert [sample.captions for sample in index_of(shard).samples] == [("nine",), ("one",)]
    assert open_picture(shards / "train-1.tar#1.png").getpixel((0, 0))[0] == 61
    assert picture_files(shards, ["train-1.tar#1.png"]) != listing


def test_a_folder_that_cannot_be_written_keeps_its_index_in_the_cache(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHWORD_CACHE", str(tmp_path / "cache"))
    import patchword.data.shards as file
    from patchword.errors import WriteError

    write, places = file.write_json, []

    def refuse(path, content):
        if path.parent == shards:
            raise WriteError("read-only")
        places.append(path)
        write(path, content)

    monkeypatch.setattr(file, "write_json", refuse)
    assert index_of(shards / "val-0.tar") == index_of(shards / "val-0.tar")
    assert len(places) == 1 and places[0].parent == tmp_path / "cache" / "shards"


def test_damage_is_said_and_what_came_before_it_is_kept(shards):
    shard = shards / "train-0.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(png(20)) + 20])
    index = index_of(shard)
    assert [sample.name for sample in index.samples] == ["a.b/1.png"]
    assert "the shard ends" in index.left_out[-1]
    shard.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="train-0.tar: this is no tar file that can be read"):
        read_captions(shards)
    with pytest.raises(PictureError, match="no picture '7.png' in this shard"):
        open_picture(shards / "val-0.tar#7.png")
    with pytest.raises(PictureError, match="No such file"):
        open_picture(shards / "gone.tar#7.png")
    with pytest.raises(StoreError, match="no picture '7.png' in this shard"):
        picture_files(shards, ["val-0.tar#7.png"])
    with pytest.raises(DataError, match="there is no .tar here"):
        read_captions(shards / "gone-*.tar")
    assert len(read_member(shards / "val-0.tar#1.png", 10)) == 11


def test_check_looks_into_shards(shards, patchword):
    write_tar(
        shards / "val-0.tar",
        [("1.png", b"\x89PNG no"), ("1.txt", b"a fish"), ("2.png", png(8)), ("2.txt", b"x y")],
    )
    status, printed, _ = patchword("check", shards, "--images", shards)
    assert status == 1 and "val-0.tar#1.png: " in printed and "val-0.tar#2.png: 8x8 pixels" in printed
    assert "a picture without a caption" in printed


def test_windows_keep_neighbours_near_and_draw_every_number_once():
    generator = np.random.default_rng(3)
    order = shuffled(1003, 80, generator)
    assert sorted(order) == list(range(1003)) and list(order) != list(range(1003))
    for first in range(0, 1003, 80):
        runs = {number // 10 for number in order[first : first + 80]}
        assert len(runs) <= 10  # eight runs of ten numbers, and two that reach over the edges
    assert (np.abs(np.diff(order)) == 1).mean() < 0.2
    again = shuffled(1003, 80, np.random.default_rng(3))
    assert (again == order).all() and (shuffled(1003, 80, np.random.default_rng(4)) != order).any()
    plain = np.random.default_rng(5).permutation(9)
    assert (shuffled(9, 0, np.random.default_rng(5)) == plain).all() and len(shuffled(0, 8, generator)) == 0
