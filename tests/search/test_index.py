import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchword.search.index as index_file
import patchword.search.vectors as vectors_file
import patchword.search.writer as writer_file
from patchword.errors import DataError, MissingExtra, StoreError
from patchword.search.index import Concepts, Match, open_index, update_index
from patchword.search.manifest import read
from patchword.search.records import IndexModel
from patchword.search.writer import only_writer


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


def paint(path, colour):
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    paint(folder / "red.png", (250, 0, 0))
    paint(folder / "deep" / "green.PNG", (0, 250, 0))
    paint(folder / "blue\nsky é漢.png", (0, 0, 250))
    (folder / "notes.txt").write_text("no picture")
    return folder


def names(found):
    return [os.path.basename(one.path) for one in found]


def test_pictures_are_found_by_vector_best_first(photos, tmp_path):
    report = update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    assert (report.added, report.pictures, report.bad) == (3, 3, [])
    with open_index(tmp_path / "out", "colours") as opened:
        assert names(opened.search(np.array([1.0, 0.1, 0.2]))) == [
            "red.png",
            "blue\nsky é漢.png",
            "green.PNG",
        ]
        best = opened.search(np.array([0, 0, 5.0]), k=1)[0]
        assert (
            isinstance(best, Match)
            and best.path == str(photos / "blue\nsky é漢.png")
            and best.score == pytest.approx(1.0, abs=1e-3)
        )


def test_a_second_run_embeds_only_what_is_new_or_changed(photos, tmp_path):
    out, seen = tmp_path / "out", []

    def counting(pictures):
        seen.append(len(pictures))
        return embed(pictures)

    update_index(photos, out, IndexModel(counting, "colours"))
    before = (out / "index.json").read_text()
    report = update_index(photos, out, IndexModel(counting, "colours"))
    assert (report.kept, sum(seen), (out / "index.json").read_text()) == (3, 3, before)
    paint(photos / "red.png", (250, 250, 0))
    os.utime(photos / "red.png", ns=(1, 1))
    paint(photos / "new.png", (0, 250, 250))
    (photos / "deep" / "green.PNG").unlink()
    report = update_index(photos, out, IndexModel(counting, "colours"))
    assert (report.added, report.changed, report.removed, report.kept, report.pictures) == (1, 1, 1, 1, 3)
    assert sum(seen) == 5
    with open_index(out) as opened:
        assert names(opened.search(np.array([1.0, 1.0, 0.0]), k=1)) == ["red.png"]
        assert "green.PNG" not in names(opened.search(np.ones(3)))
    named = {name for name in os.listdir(out) if not name.startswith(("pictures-", "vectors-"))}
    assert named == {"index.json", "index.lock", "thumbnails"}
    assert len(os.listdir(out)) == 3 + 2 * len(read(out).segments), "no file is left behind"


def test_large_photographs_reach_the_model_reduced(photos, tmp_path):
    Image.new("RGB", (3100, 2100), "white").save(photos / "large.png")
    sizes = []

    def watching(pictures):
        sizes.extend(picture.size for picture in pictures)
        return embed(pictures)

    update_index(photos, tmp_path / "out", IndexModel(watching, "colours"))
    assert sorted(sizes) == [(8, 8)] * 3 + [(1550, 1050)]


def test_several_folders_share_an_index(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    paint(other / "white.png", (250, 250, 250))
    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    report = update_index(other, tmp_path / "out", IndexModel(embed, "colours"))
    assert (report.added, report.removed, report.pictures) == (1, 0, 4)


def test_bad_pictures_are_listed_with_the_reason_and_not_tried_twice(photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "torn.png").write_bytes((photos / "red.png").read_bytes()[:40])
    for _ in range(2):
        report = update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
        assert report.pictures == 3 and sorted(os.path.basename(path) for path, _ in report.bad) == [
            "empty.jpg",
            "torn.png",
        ]
        assert all(reason for _, reason in report.bad)
    assert report.kept == 5
    os.utime(photos / "torn.png", ns=(1, 1))
    paint(photos / "torn.png", (9, 9, 9))
    report = update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    assert (report.pictures, len(report.bad)) == (4, 1)


def test_names_that_are_no_text(photos, tmp_path):
    name = os.fsencode(photos) + b"/\xff\xfe.png"
    try:
        (photos / "red.png").rename(os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    with open_index(tmp_path / "out") as opened:
        assert os.fsencode(opened.search(np.array([1.0, 0, 0]), k=1)[0].path) == name


def test_an_index_of_another_model_is_refused(photos, tmp_path):
    out = tmp_path / "out"
    update_index(photos, out, IndexModel(embed, "colours v1"))
    with pytest.raises(
        StoreError, match="holds vectors of the model 'colours v1', but the model at hand is 'colours v2'"
    ):
        update_index(photos, out, IndexModel(embed, "colours v2"))
    with pytest.raises(StoreError, match="make a new index in another folder"):
        open_index(out, "colours v2")
    with (
        open_index(out) as opened,
        pytest.raises(StoreError, match="query of width 2; this index of 'colours v1' expects 3"),
    ):
        opened.search(np.ones(2))


def test_an_interruption_keeps_what_was_done_and_shows_only_what_is_complete(photos, tmp_path):
    out, calls = tmp_path / "out", []

    def failing(pictures):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return embed(pictures)

    with pytest.raises(KeyboardInterrupt):
        update_index(photos, out, IndexModel(failing, "colours"), batch=1)
    with open_index(out) as opened:
        assert (opened.count, opened.waiting) == (1, 2), "a search sees each finished batch"
    with pytest.raises(StoreError, match="holds vectors of the model 'colours'"):
        update_index(photos, out, IndexModel(embed, "others"))
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.added, report.kept, report.pictures) == (2, 1, 3)
    paint(photos / "more.png", (1, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        update_index(photos, out, IndexModel(failing, "colours"), batch=1)
    with open_index(out) as opened:
        assert (opened.count, opened.waiting) == (3, 1)


KILLED = """
import sys, time
import numpy as np
from patchword.search.index import update_index
from patchword.search.records import IndexModel
def embed(pictures):
    time.sleep(0.05)
    return np.ones((len(pictures), 3), dtype=np.float32)
def told(done, of):
    print(done, flush=True)
update_index(sys.argv[1], sys.argv[2], IndexModel(embed, "colours"), batch=1, progress=told)
"""


def test_kill_9_loses_nothing_that_was_indexed(photos, tmp_path):
    for i in range(30):
        paint(photos / f"{i}.png", (i, i, i))
    source = str(Path(index_file.__file__).parents[2])
    line = [sys.executable, "-c", KILLED, str(photos), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for printed in process.stdout:
            if int(printed) >= 5:
                break
        process.send_signal(signal.SIGKILL)
    report = update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))
    assert report.kept >= 5 and report.added < 29 and report.pictures == 33


def test_two_writers_and_strange_folders_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        only_writer(out),
        pytest.raises(StoreError, match="another process is writing this index; wait until it has finished"),
    ):
        update_index(photos, out, IndexModel(embed, "colours"))
    with pytest.raises(StoreError, match="no index here"):
        open_index(out)
    with pytest.raises(DataError, match="no such folder"):
        update_index(tmp_path / "nowhere", out, IndexModel(embed, "colours"))
    (out / "index.json").write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        open_index(out)
    (out / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match="an index of format 99; this version reads 2"):
        open_index(out)


def test_an_empty_folder_makes_an_empty_index(tmp_path):
    (tmp_path / "none").mkdir()
    assert update_index(tmp_path / "none", tmp_path / "out", IndexModel(embed, "colours")).pictures == 0
    with open_index(tmp_path / "out") as opened:
        assert opened.search(np.ones(3)) == []
        with pytest.raises(DataError, match="at least one"):
            opened.search(np.ones(3), k=0)


@pytest.mark.parametrize("limit", [100_000, 20])
def test_many_pictures_in_cells_and_concepts_filter(photos, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(vectors_file, "FLAT_LIMIT", limit)
    monkeypatch.setattr(writer_file, "LARGE_RUN", 1)
    for i in range(60):
        paint(photos / f"{i}.png", (4 * i, 0, 250 - 4 * i))

    def concepts_of(pictures):
        return [["dog"] if picture.getpixel((0, 0))[0] < 9 else ["cat", "dog"] for picture in pictures]

    concepts = Concepts(("cat", "dog", "bird"), concepts_of)
    assert (
        update_index(photos, tmp_path / "out", IndexModel(embed, "colours", concepts=concepts)).pictures == 63
    )
    with open_index(tmp_path / "out") as opened:
        assert opened.kind == ("cells" if limit == 20 else "flat")
        assert names(opened.search(np.array([121.0, 1.0, 131.0]), k=3))[0] == "30.png"
        assert len(opened.search(np.ones(3), k=99, concepts=["dog", "cat"])) == 63 - 5
        assert opened.search(np.array([0, 0, 1.0]), k=1, concepts=["cat"])[0].path.endswith("/3.png")
        assert opened.search(np.ones(3), concepts=["bird"]) == []
        with pytest.raises(DataError, match="knows no concept 'fish': it has 3, such as bird, cat, dog"):
            opened.search(np.ones(3), concepts=["dog", "fish"])
    with pytest.raises(StoreError, match="0 concepts are given and this index holds pictures with 3 others"):
        update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))


def test_what_the_embedding_gives_is_checked(photos, tmp_path):
    with pytest.raises(StoreError, match=r"gave shape \(2, 3\) for 3 pictures"):
        update_index(photos, tmp_path / "a", IndexModel(lambda pictures: np.ones((2, 3)), "colours"))
    with pytest.raises(StoreError, match="zero or not finite"):
        update_index(
            photos,
            tmp_path / "b",
            IndexModel(lambda pictures: np.full((len(pictures), 3), np.nan), "colours"),
        )


def test_without_faiss_the_pip_line_is_given(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"pip install 'patchword\[search\]'"):
        update_index(photos, tmp_path / "out", IndexModel(embed, "colours"))


def test_progress_reaches_the_end(photos, tmp_path):
    seen = []
    update_index(
        photos,
        tmp_path / "out",
        IndexModel(embed, "colours"),
        batch=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 3), (2, 3), (3, 3)]
