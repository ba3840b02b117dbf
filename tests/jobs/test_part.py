"""A part of a job: sources, one row per input, and what a killed process leaves."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from patchword.errors import ConfigError, DataError
from patchword.jobs import cluster, sources
from patchword.jobs.part import Done, Job, do_part, part_file
from patchword.jobs.sources import plan, read_part

COLUMNS = {"red": "double", "size": "string", "mean": "floats", "wide": "bool"}


def work(pictures, names):
    """The mean red and the size of a picture."""
    return [
        {"red": float(np.asarray(one)[..., 0].mean()), "size": f"{one.width}x{one.height}"}
        | {"mean": [0.5, float(one.width)], "wide": one.width > one.height}
        for one in pictures
    ]


def png(red, width=3):
    file = io.BytesIO()
    Image.new("RGB", (width, 3), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def job(folder, **changes):
    folder.mkdir(exist_ok=True)
    return Job(str(folder), "none:none", {}, COLUMNS, 4)._replace(**changes)


def rows(out, number=0):
    return parquet.read_table(part_file(str(out), number)).to_pylist()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(png(10 * number))
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff no")
    (folder / "notes.md").write_text("no picture")
    return folder


def test_a_part_has_one_row_per_input_in_order_with_reasons(photos, tmp_path):
    parts = plan([str(photos), str(tmp_path / "gone.png")])
    assert [part.kind for part in parts] == ["paths"]
    done = do_part(job(tmp_path / "out"), 0, parts[0], work)
    assert done == Done(0, 12, 2)
    found = rows(tmp_path / "out")
    assert [os.path.basename(row["image"]) for row in found] == [
        *(f"{number}.png" for number in range(10)),
        "bad.jpg",
        "gone.png",
    ]
    assert [row["red"] for row in found] == [*(10.0 * number for number in range(10)), None, None]
    assert found[3]["size"] == "3x3" and found[3]["mean"] == [0.5, 3.0] and found[3]["wide"] is False
    assert "bad.jpg" in found[10]["problem"] and "No such file" in found[11]["problem"]
    assert [row["problem"] for row in found[:10]] == [None] * 10

    def never(pictures, names):
        raise AssertionError("a part that is done is not worked on again")

    assert do_part(job(tmp_path / "out"), 0, parts[0], never) == done
    assert os.listdir(tmp_path / "out" / "journal") == []


def test_tar_parquet_lists_globs_and_urls_are_sources(photos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, content in (("a/1.png", png(7)), ("a/1.txt", b"words"), ("a/2.png", b"broken")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    table = pyarrow.table(
        {
            "image": [
                {"bytes": png(1), "path": "x"},
                {"bytes": None, "path": "y"},
                {"bytes": png(3), "path": "z"},
            ]
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    named = pyarrow.table({"jpg": [png(5)], "url": ["http://shop/5"], "text": ["five"]})
    parquet.write_table(named, tmp_path / "u.parquet")
    (tmp_path / "list.txt").write_text(f"{photos / '9.png'}\nfile://{photos / '8.png'}\n")
    names = [tmp_path / "shard.tar", tmp_path / "t.parquet", tmp_path / "u.parquet"]
    names += [tmp_path / "list.txt", photos / "[01].png"]
    parts = plan(map(str, names))
    assert [part.kind for part in parts] == ["paths", "tar", "parquet", "parquet", "parquet"]
    given = [[(one.name, one.content) for one in read_part(part)] for part in parts]
    assert [os.path.basename(name) for name, _ in given[0]] == ["9.png", "8.png", "0.png", "1.png"]
    assert all(content is not None for _, content in given[0])
    shard, t, u = (str(name) for name in names[:3])
    assert given[1] == [(f"{shard}#a/1.png", png(7)), (f"{shard}#a/2.png", b"broken")]
    assert given[2] == [(f"{t}#x", png(1)), (f"{t}#y", None)] and given[3] == [(f"{t}#z", png(3))]
    assert given[4] == [(f"{u}#http://shop/5", png(5))]
    assert plan(map(str, names)) == parts
    folder = tmp_path / "shards"
    folder.mkdir()
    os.rename(shard, folder / "shard.tar")
    assert [part.kind for part in plan([f"file://{folder}"])] == ["tar"]


def test_what_holds_no_pictures_is_said(tmp_path):
    with pytest.raises(DataError, match="nothing here that a job can read"):
        plan([str(tmp_path)])
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no column of pictures: expected one of image, jpg, png, picture"):
        list(read_part(plan([str(tmp_path / "t.parquet")])[0]))
    (tmp_path / "cut.tar").write_bytes(b"x" * 1500)
    assert "the shard ends here" in next(read_part(plan([str(tmp_path / "cut.tar")])[0])).problem


KILLER = """
import os, sys
sys.path.insert(0, {tests!r})
import numpy as np
from patchword.jobs.part import Job, do_part
from patchword.jobs.sources import plan
def work(pictures, names):
    if any(np.asarray(one)[0, 0, 0] == 50 for one in pictures):
        os._exit(9)
    return [dict(red=float(np.asarray(one)[0, 0, 0])) for one in pictures]
do_part(Job({out!r}, "none:none", {{}}, {{"red": "double"}}, 4), 0, plan([{photos!r}])[0], work)
"""


def test_a_picture_that_kills_its_process_gets_a_row_with_the_reason(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    program = KILLER.format(tests="tests", out=str(out), photos=str(photos))
    codes = []
    while not part_file(str(out), 0).exists():
        codes.append(subprocess.run([sys.executable, "-c", program], timeout=60).returncode)
        assert len(codes) < 6
        assert not list(out.glob("part-*")) or codes[-1] == 0
    assert codes == [9, 9, 9, 0]  # once among others, then alone as often as it may, then without it
    found = rows(out)
    assert [row["red"] for row in found] == [0, 10, 20, 30, 40, None, 60, 70, 80, 90, None]
    assert "its process ended 2 times while it was worked on" in found[5]["problem"]


def test_a_job_goes_on_only_with_its_own_command_and_source(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART", 4)
    made = []

    def here(job, parts, pending, address, workers):
        """In place of Ray: this process, which ends after two parts."""
        for number in pending:
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append(number)
            yield do_part(job, number, parts[number], work)

    monkeypatch.setattr(cluster, "_on_ray", here)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        cluster.run_job([str(photos)], job(tmp_path / "out"), "local", lambda *said: seen.append(said))
    assert made == [0, 1] and seen == [(0, 3, 0), (1, 3, 4), (2, 3, 8)]
    made.clear()
    assert cluster.run_job([str(photos)], job(tmp_path / "out"), "local") == (3, 11, 1)
    assert made == [2]
    names = [row["image"] for number in range(3) for row in rows(tmp_path / "out", number)]
    assert len(names) == len(set(names)) == 11
    assert "bad.jpg" in next(cluster.problems(str(tmp_path / "out"), 3))
    with pytest.raises(ConfigError, match="holds a job with other settings: repeat the command"):
        cluster.run_job([str(photos)], job(tmp_path / "out", settings={"a": 1}), "local")
    (photos / "new.png").write_bytes(png(1))
    with pytest.raises(ConfigError, match="other source"):
        cluster.run_job([str(photos)], job(tmp_path / "out"), "local")
    with pytest.raises(ConfigError, match="is a folder of something else"):
        cluster.run_job([str(photos)], job(photos), "local")
    assert json.loads((tmp_path / "out" / "job.json").read_text())["parts"] == 3


def test_a_wrong_address_is_refused():
    with pytest.raises(ConfigError, match="--cluster everywhere: expected auto, local or ray://HOST:PORT"):
        cluster.connect(None, "everywhere")
