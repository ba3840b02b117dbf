"""The same index in milvus-lite as in a folder: what is found, kept, moved, forgotten and refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from patchword.errors import DataError, MissingExtra, StoreError
from patchword.search.index import Concepts, open_index, prune_index, update_index
from patchword.search.milvus import path_of, place_of, text_of
from patchword.search.records import IndexModel

pytest.importorskip("pymilvus", reason="the extra `cluster` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
"""Bindings of gRPC and pymilvus warn of what they themselves will change."""


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


def bright(pictures):
    vectors_N3 = embed(pictures)
    return [[word for word, share in zip("rgb", row, strict=True) if share > 100] for row in vectors_N3]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (
        ("red.png", (250, 0, 0)),
        ("deep/gr_n%.png", (0, 250, 0)),
        ('b"\\lue\né漢.png', (0, 0, 250)),
        ("deep/yellow.png", (250, 240, 0)),
    ):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


@pytest.fixture(params=["folder", "milvus"])
def out(request, tmp_path):
    return tmp_path / ("out" if request.param == "folder" else "photos.milvus.db")


def names(found):
    return [os.path.basename(one.path) for one in found]


def test_both_engines_find_filter_keep_move_and_forget(photos, out):
    concepts = Concepts(("r", "g", "b"), bright)
    report = update_index(
        photos, out, IndexModel(embed, "colours", name="towers", concepts=concepts), batch=2
    )
    assert (report.added, report.pictures) == (4, 4)
    assert [os.path.basename(path) for path, _ in report.bad] == ["broken.jpg"]
    with open_index(out, "colours") as opened:
        assert (opened.count, opened.width, opened.name, opened.waiting) == (4, 3, "towers", 0)
        found = opened.search(np.array([1.0, 0.1, 0.2]))
        assert names(found) == ["red.png", "yellow.png", 'b"\\lue\né漢.png', "gr_n%.png"]
        assert found[2].path == str(photos / 'b"\\lue\né漢.png') and found[0].score > 0.97
        assert len(found[0].content) == 64
        assert names(opened.search(np.ones(3), 9, ["r", "g"])) == ["yellow.png"]
        assert names(opened.search(np.array([0.1, 1, 0]), 9, under=str(photos / "deep"))) == [
            "gr_n%.png",
            "yellow.png",
        ]
        assert opened.search(np.ones(3), 9, under=str(photos / "dee")) == []
        with pytest.raises(DataError, match="knows no concept 'x': it has 3, such as b, g, r"):
            opened.search(np.ones(3), 1, ["x"])
        with pytest.raises(StoreError, match="query of width 2; this index of 'colours' expects 3"):
            opened.search(np.ones(2))

    os.rename(photos / "red.png", photos / "deep" / "rose.png")
    os.remove(photos / "deep" / "yellow.png")

    def never(pictures):
        raise AssertionError("a moved picture is not embedded again")

    report = update_index(
        photos, out, IndexModel(never, "colours", concepts=Concepts(("r", "g", "b"), never))
    )
    assert (report.moved, report.removed, report.kept, report.pictures) == (1, 1, 3, 3)
    with open_index(out) as opened:
        assert names(opened.search(np.array([1.0, 0.1, 0.2])))[0] == "rose.png"
        assert names(opened.search(np.ones(3), 9, ["r"])) == ["rose.png"]
    os.remove(photos / "deep" / "rose.png")
    assert (prune_index(out).removed, prune_index(out).pictures) == (1, 2)
    with pytest.raises(StoreError, match="holds vectors of the model 'colours'.*'other'"):
        update_index(photos, out, IndexModel(embed, "other"))
    with pytest.raises(StoreError, match="0 concepts are given and this index holds pictures with 3"):
        update_index(photos, out, IndexModel(embed, "colours"))


def test_a_run_that_is_killed_goes_on_where_it_was(photos, tmp_path):
    """The process ends at once inside the second batch; every picture is then there once."""
    out = tmp_path / "photos.milvus.db"
    program = f"""
import os, warnings
warnings.simplefilter("ignore")
import numpy as np
from patchword.search.index import update_index
from patchword.search.records import IndexModel
calls = []
def embed(pictures):
    calls.append(1)
    if len(calls) == 2:
        os._exit(9)
    return np.stack([np.asarray(p.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for p in pictures])
update_index({str(photos)!r}, {str(out)!r}, IndexModel(embed, "colours"), batch=2)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 9
    with open_index(out) as opened:
        assert 1 <= opened.count <= 2 and opened.waiting > 0
    report = update_index(photos, out, IndexModel(embed, "colours"), batch=2)
    assert report.pictures == 4 and report.kept >= 1
    with open_index(out) as opened:
        found = names(opened.search(np.ones(3), 99))
        assert len(found) == len(set(found)) == 4 and opened.waiting == 0


def test_the_first_ten_are_those_of_the_embedded_engine(tmp_path):
    from patchword.search.milvus import open_milvus_writer
    from patchword.search.records import Row
    from patchword.search.writer import open_writer

    generator = np.random.default_rng(0)
    vectors_NE = generator.standard_normal((2000, 16), dtype=np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    rows = [
        Row(f"/pictures/{number}.jpg".encode(), number, 0, b"", "", (), vector_E)
        for number, vector_E in enumerate(vectors_NE)
    ]
    for opener, out in ((open_writer, tmp_path / "out"), (open_milvus_writer, tmp_path / "a.milvus.db")):
        with opener(out, "synthetic", "") as index:
            index.describe(width=16)
            index.publish(rows)
            index.publish(gone=[rows[number].path for number in range(0, 2000, 7)])
    with open_index(tmp_path / "out") as flat, open_index(tmp_path / "a.milvus.db") as milvus:
        assert flat.count == milvus.count == 2000 - 286
        for query_E in generator.standard_normal((10, 16), dtype=np.float32):
            ours, theirs = flat.search(query_E), milvus.search(query_E)
            assert [one.path for one in ours] == [one.path for one in theirs]
            np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=1e-5)


@pytest.mark.parametrize("path", [b"/a/b.jpg", b"/\xff\\x41\\\\/\xc3\xa9\n", b"\\", "/漢".encode()])
def test_any_path_comes_back_from_its_text(path):
    assert path_of(text_of(path)) == path
    text_of(path).encode()


def test_what_is_wrong_with_an_address_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="expected milvus://HOST:PORT/NAME"):
        open_index("milvus://nowhere")
    assert place_of("milvus://host:19530/shop")[:2] == ("http://host:19530", "shop")
    with pytest.raises(StoreError, match="no index here; make one with `patchword index FOLDER --out"):
        open_index(tmp_path / "none.milvus.db")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtra, match=r"pip install 'patchword\[cluster\]'"):
        update_index(tmp_path, tmp_path / "a.milvus.db", IndexModel(embed, "colours"))
