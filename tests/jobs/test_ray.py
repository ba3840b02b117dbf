"""A job on Ray itself, with two workers of this machine."""

import json

import pyarrow.parquet as parquet
import pytest
from PIL import Image

from patchword.jobs import sources
from patchword.jobs.part import Job, part_file

pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray uses what Ray deprecates


@pytest.mark.slow
def test_two_workers_make_every_part_once(tmp_path, monkeypatch, towers, run_patchword):
    from patchword.jobs.cluster import run_job

    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default workers yield to every other process
    monkeypatch.setattr(sources, "PART", 3)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (16, 16), (25 * number, 9, 9)).save(folder / f"{number}.png")
    job = Job(
        str(tmp_path / "out"),
        "tasks.retrieve.many:Vectors",
        {"model": str(towers), "device": "cpu"},
        {"vector": "floats"},
    )
    assert run_job([str(folder)], job, "local", workers=2) == (4, 10, 0)
    rows = [row for number in range(4) for row in parquet.read_table(part_file(job.out, number)).to_pylist()]
    assert len({row["image"] for row in rows}) == len(rows) == 10
    # and a command that puts the rows of workers together
    lines = [{"image": f"{number}.png", "caption": "a dog"} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = run_patchword(
        "features", towers, "--data", tmp_path / "rows.jsonl", "--images", folder, "--out", tmp_path / "store",
        "--device", "cpu", "--cluster", "local", "--parts", tmp_path / "parts",
    )  # fmt: skip
    assert done.returncode == 0 and "10 pictures" in done.stdout, done.stderr
