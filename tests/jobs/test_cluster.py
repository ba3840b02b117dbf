"""A job on two workers of Ray: its driver is killed, a picture kills its worker, and every input is there once."""

import os
import signal
import subprocess
import sys

import pyarrow.parquet as parquet
import pytest
from PIL import Image

from patchword.jobs.part import part_file

pytest.importorskip("ray", reason="the extra `cluster` is not installed")

DRIVER = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from patchword.jobs import cluster, sources
from patchword.jobs.part import Job
sources.PART = 5
photos, out, killed = sys.argv[1:]

class Reds(cluster.Worker):
    '''The mean red; one picture takes its process with it.'''
    def __init__(self, job):
        self._job = Job(**job)
        self._work = self.work
    @staticmethod
    def work(pictures):
        reds = [int(np.asarray(one)[0, 0, 0]) for one in pictures]
        if 130 in reds:
            os._exit(9)
        return [dict(red=float(red)) for red in reds]

def progress(done, parts, pictures):
    if killed == "yes" and done >= 2:
        os.kill(os.getpid(), signal.SIGKILL)

cluster.Worker = Reds
job = Job(out, "none:none", {}, {"red": "double"}, 3)
print(cluster.run_job([photos], job, "local", progress, workers=2))
"""


@pytest.mark.timeout(600)
def test_killed_driver_and_killed_workers_lose_and_double_nothing(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(30):
        Image.new("RGB", (4, 4), (5 * number, 0, 0)).save(photos / f"{number:02d}.png")
    (photos / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")

    def drive(killed):
        command = [sys.executable, "-c", DRIVER, str(photos), str(out), killed]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))

    assert drive("yes").returncode == -signal.SIGKILL
    assert 2 <= sum(part_file(str(out), number).exists() for number in range(6)) < 6
    ended = drive("no")
    assert "JobReport(parts=6, pictures=30, bad=2)" in ended.stdout, ended.stderr[-3000:]
    found = [
        row for number in range(6) for row in parquet.read_table(part_file(str(out), number)).to_pylist()
    ]
    assert [os.path.basename(row["image"]) for row in found] == sorted(os.listdir(photos))
    bad = {os.path.basename(row["image"]): row["problem"] for row in found if row["problem"]}
    assert "its process ended 2 times while it was worked on" in bad["26.png"] and "07.png" in bad["07.png"]
    assert [row["red"] for row in found if not row["problem"]] == [
        5.0 * number for number in range(30) if number not in (7, 26)
    ]
