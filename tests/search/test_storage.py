"""An index grows in small steps, is killed at any moment, meets full disks and racing searches, and comes
from the format before."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image

import patchword.search.index as index_file
import patchword.search.vectors as vectors_file
import patchword.search.writer as writer_file
from patchword.errors import StoreError
from patchword.search.check import check_index, repair_index
from patchword.search.index import Concepts, open_index, update_index
from patchword.search.manifest import Manifest, read
from patchword.search.records import IndexModel, Row
from patchword.search.writer import open_writer

SOURCE = str(Path(index_file.__file__).parents[2])


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


def rows(first, count, width=8):
    """Pictures that need no file."""
    generator = np.random.default_rng(first)
    vectors_NE = generator.standard_normal((count, width)).astype(np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return [
        Row(b"/p/%d.jpg" % (first + n), first + n, 1, b"%032d" % (first + n), "", (), vector_E)
        for n, vector_E in enumerate(vectors_NE)
    ]


def grown(out, batches, width=8):
    """An index to which rows are added in batches; all of the rows."""
    added = []
    with open_writer(out, "random", "") as index:
        index.describe(width=width)
        for count in batches:
            added += rows(len(added), count, width)
            index.publish(added[-count:])
    return added


def same_as_exact(out, held):
    """Whether every search finds what comparing all vectors finds."""
    by_path = {os.fsdecode(row.path): row.vector_E for row in held}
    with open_index(out) as opened:
        assert opened.count == len(held)
        for query_E in np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32):
            query_E /= np.linalg.norm(query_E)
            exact = sorted(by_path, key=lambda path: -float(by_path[path] @ query_E))[:10]
            assert [match.path for match in opened.search(query_E, 10)] == exact
    return True


def test_many_small_additions_become_few_segments(tmp_path):
    held = grown(tmp_path, [1] * 90 + [30] * 10)
    segments = read(tmp_path).segments
    assert len(segments) < 3 * writer_file.FAN and same_as_exact(tmp_path, held)
    assert len(list(tmp_path.glob("*.npy"))) == len(segments), "merged segments are removed"


def test_removed_pictures_are_never_found_and_their_space_comes_back(tmp_path):
    held = grown(tmp_path, [64, 64])
    with open_writer(tmp_path, "random", "") as index:
        index.publish(gone=[row.path for row in held[:60]])
        assert same_as_exact(tmp_path, held[60:])
        size = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
        index.tidy(0)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) < size
    assert same_as_exact(tmp_path, held[60:]) and check_index(tmp_path).damaged == ()


def test_a_picture_that_changed_has_one_vector(tmp_path):
    held = grown(tmp_path, [20])
    changed = [row._replace(vector_E=-row.vector_E) for row in held[:5]]
    with open_writer(tmp_path, "random", "") as index:
        index.publish(changed, gone=[row.path for row in changed])
    assert same_as_exact(tmp_path, changed + held[5:])


def test_many_pictures_get_cells_and_new_ones_are_found_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_file, "FLAT_LIMIT", 500)
    held = grown(tmp_path, [300, 300])
    with open_writer(tmp_path, "random", "") as index:
        index.tidy(added=1)
        assert not list(tmp_path.glob("cells-*")), "one new picture does not wait for cells"
        index.tidy(added=writer_file.LARGE_RUN)
        index.publish(rows(600, 5))
    with open_index(tmp_path) as opened:
        assert (opened.kind, opened.count) == ("cells", 605)
        for row in [*held[::50], *rows(600, 5)]:
            assert opened.search(row.vector_E, 1)[0].path == os.fsdecode(row.path)


def test_adding_a_picture_does_not_rewrite_the_others(tmp_path):
    grown(tmp_path, [500])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("vectors-*")}
    with open_writer(tmp_path, "random", "") as index:
        index.publish(rows(500, 1))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("vectors-*")}
    assert before.items() < after.items() and len(after) == 2


KILLED = """
import os, sys, threading, time, random
import numpy as np
from patchword.search.index import update_index
from patchword.search.records import IndexModel
def embed(pictures):
    return np.stack([np.asarray(p.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for p in pictures])
def shoot():
    time.sleep(float(sys.argv[3]))
    os.kill(os.getpid(), 9)
def told(done, of):
    if done == 0:
        threading.Thread(target=shoot, daemon=True).start()
    print(done, flush=True)
update_index(sys.argv[1], sys.argv[2], IndexModel(embed, "colours"), batch=1, progress=told)
"""


def test_random_kills_lose_nothing_that_was_published(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(60):
        Image.new("RGB", (4, 4), (4 * i, 255 - 4 * i, 9)).save(photos / f"{i}.png")
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done, kills = 0, 0
    for delay in np.random.default_rng(3).uniform(0.01, 0.12, 6):
        line = [sys.executable, "-c", KILLED, str(photos), str(out), str(delay)]
        finished = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        kills += finished.returncode == -signal.SIGKILL
        done += int((finished.stdout.split() or ["0"])[-1])
        if not done and not (out / "index.json").exists():
            continue  # killed before it began
        with open_index(out) as opened:
            assert opened.count in (done, done + 1), "published, and killed before that was said"
            assert opened.count + opened.waiting == 60
            done = opened.count
    assert kills > 1
    report = update_index(photos, out, IndexModel(embed, "colours"))
    assert (report.pictures, report.kept, report.added) == (60, done, 60 - done)
    assert check_index(out).damaged == ()
    assert len(list(out.glob("vectors-*"))) == len(read(out).segments), "what the killed ones left is removed"


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="Windows has no fork, by which a process ends between two operations"
)
def test_a_process_that_ends_at_any_operation_on_files_leaves_a_whole_index(tmp_path, monkeypatch):
    """The process is ended before every single operation that forces, renames or removes a file, while
    segments are merged too."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(4):
        Image.new("RGB", (4, 4), (9 * i, 9, 9)).save(photos / f"{i}.png")
    monkeypatch.setattr(writer_file, "FAN", 3)
    update_index(photos, out, IndexModel(embed, "colours"), batch=2)
    ended, operation = 0, 0
    while True:
        Image.new("RGB", (4, 4), (9, 9 * operation % 255, operation)).save(photos / f"new{operation}.png")
        before = {path.name for path in photos.iterdir()}
        process = os.fork()
        if process == 0:
            end_at(operation, photos, out)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with open_index(out) as opened:
            found = {os.path.basename(match.path) for match in opened.search(np.ones(3), 99)}
            assert len(before) - 1 - operation <= opened.count <= len(before) and found <= before
        assert check_index(out).damaged == ()
        if status == 0:
            break
        ended, operation = ended + 1, operation + 1
    assert ended > 10 and found == before
    update_index(photos, out, IndexModel(embed, "colours"))
    assert len(list(out.glob("vectors-*"))) == len(read(out).segments), "what ended processes left is removed"


def end_at(operation, photos, out):
    """An update that ends, without any cleaning up, before the operation of that number. Does not return."""
    count = 0

    def counted(really):
        def call(*arguments, **options):
            nonlocal count
            if count == operation:
                os._exit(9)
            count += 1
            return really(*arguments, **options)

        return call

    for place, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        setattr(place, name, counted(getattr(place, name)))
    try:
        update_index(photos, out, IndexModel(embed, "colours"), batch=1)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("budget", [200, 20_000])
def test_a_full_disk_is_said_in_a_line_and_leaves_the_index_as_it_was(tmp_path, budget):
    """A limit on the size of files stands for the disk: it stops SQLite and plain files alike."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (4, 4), "red").save(photos / "old.png")
    update_index(photos, out, IndexModel(embed, "colours"))
    for i in range(150):
        Image.new("RGB", (4, 4), (i % 255, i // 255, 9)).save(
            photos / f"a long name so that rows need space {i}.png"
        )
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({budget}, {budget}))\n"
        "import numpy as np\n"
        "from patchword.errors import PatchwordError\n"
        "from patchword.search.index import update_index\n"
        "from patchword.search.records import IndexModel\n"
        "try:\n"
        "    model = IndexModel(lambda p: np.ones((len(p), 3)), 'colours')\n"
        "    update_index(sys.argv[1], sys.argv[2], model, batch=400)\n"
        "except PatchwordError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    line = [sys.executable, "-c", code, str(photos), str(out)]
    finished = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    said = finished.stdout.strip()
    assert finished.returncode == 0 and "\n" not in said, finished.stderr
    assert said.startswith(str(out)) and "cannot be written" in said and "another process" not in said
    with open_index(out) as opened:
        assert opened.count == 1
    left = {path.name for path in out.iterdir() if path.is_file()} - {"index.json", "index.lock"}
    assert len(left) == 2, "what was begun is removed, so that its space is free"
    assert update_index(photos, out, IndexModel(embed, "colours")).pictures == 151


def test_a_place_that_takes_no_index_is_named(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="this index cannot be written: "):
        update_index(tmp_path / "photos", tmp_path / "file" / "out", IndexModel(embed, "colours"))


def test_searches_that_race_updates_never_fail(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (4, 4), "red").save(photos / "first.png")
    update_index(photos, out, IndexModel(embed, "colours"))
    stop, failures, searches = threading.Event(), [], 0

    def update():
        for i in range(6):  # of seven changes each, one at a time
            for number in range(7):
                Image.new("RGB", (4, 4), (7 * i + number, 9, 200)).save(photos / f"{number}.png")
                os.utime(photos / f"{number}.png", ns=(i + 1, i + 1))
            update_index(photos, out, IndexModel(embed, "colours"), batch=1)
        stop.set()

    writer = threading.Thread(target=update)
    writer.start()
    while not stop.is_set() or searches < 20:
        try:
            with open_index(out) as opened:
                time.sleep(0.002)  # an update has time to take files away
                best = opened.search(np.array([1.0, 0.01, 0.01]), 1)[0].path
                assert best == str(photos / "first.png")
        except Exception as error:  # whatever it is, it is what must not happen
            failures.append(repr(error))
            break
        searches += 1
    writer.join()
    assert failures == [] and searches >= 20


OLD_SCHEMA = """
create table pictures (
    id integer primary key autoincrement, path blob unique not null, size integer, time_ns integer,
    vector blob, problem text);
create table concepts (
    picture integer not null, concept text not null, primary key (concept, picture)) without rowid;
create table settings (name text primary key, value text not null);
"""


def old_index(photos, out, done=None):
    """An index as format 1 wrote it; with `done` a first run that was interrupted after so many pictures."""
    out.mkdir()
    name = "work.sqlite" if done else "pictures-1.sqlite"
    with sqlite3.connect(out / name) as target:
        target.executescript(OLD_SCHEMA)
        settings = {"model": "colours", "name": "two-towers", "width": "3", "concepts": '["light"]'}
        target.executemany("insert into settings values (?, ?)", settings.items())
        vectors = []
        for path in sorted(photos.iterdir())[:done]:
            status, vector_E = path.stat(), None
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    vector_E = embed([picture])[0]
                vector_E /= np.linalg.norm(vector_E)
                vectors.append(vector_E)
            row = (os.fsencode(path), status.st_size, status.st_mtime_ns)
            content = None if vector_E is None else vector_E.tobytes()
            problem = None if vector_E is not None else f"{path}: bad"
            number = target.execute(
                "insert into pictures (path, size, time_ns, vector, problem) values (?, ?, ?, ?, ?)",
                (*row, content, problem),
            ).lastrowid
            target.execute("insert into concepts values (?, 'light')", (number,))
    target.close()
    if not done:
        index = faiss.IndexIDMap(faiss.IndexFlatIP(3))
        index.add_with_ids(np.stack(vectors), np.arange(len(vectors)))
        faiss.write_index(index, str(out / "vectors-1.faiss"))
        content = {
            "format": 1,
            "generation": 1,
            "model": "colours",
            "name": "two-towers",
            "width": 3,
            "kind": "flat",
        }
        (out / "index.json").write_text(json.dumps({**content, "pictures": len(vectors)}))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (4, 4), (50 * i, 250 - 50 * i, 9)).save(folder / f"{i}.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def embed_nothing(pictures):
    raise AssertionError("a picture was embedded again")


CONCEPTS = Concepts(("light",), lambda pictures: [["light"]] * len(pictures))


@pytest.mark.parametrize("begin", [open_index, None], ids=["search", "index"])
def test_an_index_of_the_format_before_is_brought_up_without_embedding(photos, tmp_path, begin):
    out = tmp_path / "out"
    old_index(photos, out)
    if begin is not None:
        begin(out, "colours").close()
    report = update_index(photos, out, IndexModel(embed_nothing, "colours", concepts=CONCEPTS))
    assert (report.kept, report.pictures, len(report.bad)) == (6, 5, 1)
    with open_index(out, "colours") as opened:
        found = opened.search(np.array([1.0, 0, 0]), 9, ["light"])
        assert found[0].path == str(photos / "4.png") and len(found) == 5
        assert opened.name == "two-towers"
    names = {path.name for path in out.iterdir()}
    assert not {"work.sqlite", "lock.sqlite", "vectors-1.faiss", "pictures-1.sqlite"} & names


def test_an_interrupted_first_run_of_the_format_before_goes_on(photos, tmp_path):
    out, embedded = tmp_path / "out", []
    old_index(photos, out, done=3)

    def watching(pictures):
        embedded.extend(pictures)
        return embed(pictures)

    assert update_index(photos, out, IndexModel(watching, "colours", concepts=CONCEPTS)).pictures == 5
    assert len(embedded) == 2


def test_a_damaged_index_of_the_format_before_says_so(photos, tmp_path):
    old_index(photos, tmp_path / "out")
    path = tmp_path / "out" / "pictures-1.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match="an index of format 1 that is damaged"):
        open_index(tmp_path / "out")
    assert repair_index(tmp_path / "out", "colours", "").kept == 0
    assert update_index(photos, tmp_path / "out", IndexModel(embed, "colours")).pictures == 5


def test_a_damaged_manifest_of_the_format_before_is_begun_anew(photos, tmp_path):
    out = tmp_path / "out"
    old_index(photos, out)
    (out / "lock.sqlite").touch()
    (out / "index.json").write_text("{")
    with pytest.raises(StoreError, match="damaged: not JSON"):
        open_index(out)
    assert repair_index(out, "colours", "").kept == 0
    assert update_index(photos, out, IndexModel(embed, "colours")).pictures == 5
    assert not (out / "vectors-1.faiss").exists() and not (out / "lock.sqlite").exists()


def test_the_manifest_carries_names_that_are_no_text():
    name = os.fsdecode(b"/p\xff\xfe")
    manifest = Manifest(model="m", name=name, roots=[name])
    assert Manifest.model_validate(manifest.model_dump()) == manifest


def test_names_that_are_no_text_everywhere(tmp_path):
    """The pictures, one that cannot be read, their folder, and the index itself."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = folder / os.fsdecode(b"index\xfe")
    Image.new("RGB", (4, 4), "red").save(folder / os.fsdecode(b"\xff\xfe.png"))
    (folder / os.fsdecode(b"bad\xfe.jpg")).write_bytes(b"no picture")
    for _ in range(2):
        report = update_index(folder, out, IndexModel(embed, "colours"))
        assert report.pictures == 1 and os.fsencode(report.bad[0][0]).endswith(b"bad\xfe.jpg")
    with open_index(out) as opened:
        assert os.fsencode(opened.search(np.ones(3), 1)[0].path).endswith(b"/\xff\xfe.png")
    assert check_index(out).damaged == ()
