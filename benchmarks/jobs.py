"""Runs jobs on real Ray: pictures captioned and embedded by workers, one of which is killed; then counts.

    python benchmarks/jobs.py                        # 3,000 drawn pictures, two workers
    python benchmarks/jobs.py --pictures 20000

Pictures are drawn (32 x 32 pixels), with three files among them that are none. The models are small and
hardly trained, as what is measured is the jobs. The work is done by this process alone, and then on Ray,
where a worker is killed (SIGKILL) when three parts are done, and the driver with it when half of them are;
the same call then goes on. Every picture must be in the output once, with the row that this process alone
gives.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as parquet
import torch

import patchword
from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Preprocessing
from patchword.data.scenes import write_scenes
from patchword.jobs import sources
from patchword.jobs.cluster import run_job
from patchword.jobs.part import Job, do_part, make_work, part_file
from patchword.models.pairs.two_towers import TwoTowersConfig
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
from patchword.text.words import Vocabulary
from patchword.towers.bert import BertTowerConfig
from patchword.towers.convolutional import ConvolutionalConfig

PART = 100
CAPTIONER = """
task = "caption"
out = "{folder}/captioner"
[data]
annotations = "{folder}/scenes/dataset.json"
images = "{folder}/scenes/images"
cache = "{folder}/cache"
minimum_count = 1
[tower]
kind = "convolutional"
stem = 8
widths = [8, 16]
blocks = [0, 0]
size = 16
[captioner]
kind = "show_tell"
width = 24
[decoding]
beams = 1
max_length = 12
[[stage]]
epochs = 4
batch = 16
learning_rates = {{ "" = 5e-3 }}
validate_every = 4
"""


def make_models(folder: Path) -> dict[str, Job]:
    """A job of each kind, with a model of its own."""
    for split, count in (("train", 48), ("val", 8)):
        write_scenes(folder / "scenes", count, level=1, size=24, split=split)
    (folder / "captioner.toml").write_text(CAPTIONER.format(folder=folder))
    captioner = patchword.train(folder / "captioner.toml", device="cpu") / "best"
    words = Vocabulary.build(["a red circle on a blue ground"], minimum_count=1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = TwoTowerSettings(
        vision=ConvolutionalConfig(stem=8, widths=(8,), blocks=(0,), size=16, shared_width=32),
        text=BertTowerConfig(architecture={**sizes, "vocab_size": words.size, "max_position_embeddings": 24}),
        two_towers=TwoTowersConfig(width=32),
        preprocessing=Preprocessing(size=16, fit="squash"),
        vocabulary_size=words.size,
    )
    torch.manual_seed(0)
    towers = TwoTowerModel(
        build_two_towers(settings), settings, words, ModelFacts(name="towers"), torch.device("cpu")
    )
    towers.write(folder / "towers")
    captions: dict[str, Any] = {"model": str(captioner), "device": "cpu", "options": {"beams": 1}}
    vectors = {"model": str(folder / "towers"), "device": "cpu"}
    columns = {"caption": "string", "score": "double", "complete": "bool", "model": "string"}
    return {
        "captions": Job(str(folder / "captions"), "tasks.caption.many:Captions", captions, columns, 32),
        "vectors": Job(
            str(folder / "vectors"), "tasks.retrieve.many:Vectors", vectors, {"vector": "floats"}, 32
        ),
    }


def drive(pictures: str, job: Job, workers: int) -> None:
    """A driver of its own: a job on Ray."""
    sources.PART = PART
    run_job([pictures], job, "local", workers=workers)


def started(pictures: Path, job: Job, workers: int) -> Any:
    """The driver in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=drive, args=(str(pictures), job, workers))
    process.start()
    return process


def wait_for(reached: Callable[[], bool], process: Any) -> None:
    """Raises where the driver ends before that."""
    while not reached():
        if not process.is_alive():
            raise SystemExit(f"the driver ended with {process.exitcode} before it was to be killed")
        time.sleep(0.02)


def workers_of(driver: int) -> list[psutil.Process]:
    """Ray's processes in which a model is."""
    found = []
    for one in psutil.Process(driver).children(recursive=True):
        try:
            if " ".join(one.cmdline()).startswith("ray::") and "Worker" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def rows_of(out: str, parts: int) -> list[dict[str, Any]]:
    """Every row of a job, in the order of the source."""
    return [row for number in range(parts) for row in parquet.read_table(part_file(out, number)).to_pylist()]


def close(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers to 1e-5: a batch of other pictures moves their last bits."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) <= 1e-5 if isinstance(one, float) and isinstance(other, float) else one == other


def main() -> None:
    """Prints one JSON object for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    sources.PART = PART
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = make_models(folder)
        write_scenes(folder / "drawn", arguments.pictures, level=1, size=32)
        for number in range(3):
            (folder / "drawn" / "images" / f"broken-{number}.jpg").write_bytes(b"no picture" * number)
        pictures = folder / "drawn" / "images"
        for name, job in jobs.items():
            print(json.dumps(measured(name, job, pictures, arguments.workers)), flush=True)
            shutil.rmtree(job.out)


def measured(name: str, job: Job, pictures: Path, workers: int) -> dict[str, Any]:
    """What one kind of work gave, alone and on Ray."""
    parts = sources.plan([str(pictures)])
    alone = job._replace(out=f"{job.out}-alone")
    Path(alone.out).mkdir()
    began = time.perf_counter()
    work = make_work(alone)
    for number, part in enumerate(parts):
        do_part(alone, number, part, work)
    seconds = time.perf_counter() - began

    def done() -> int:
        return sum(part_file(job.out, number).exists() for number in range(len(parts)))

    began = time.perf_counter()
    process = started(pictures, job, workers)
    killed = []
    wait_for(lambda: done() >= 3 and len(workers_of(process.pid)) > 0, process)
    victim = workers_of(process.pid)[0]
    victim.kill()
    killed.append(f"worker after {done()} parts")
    wait_for(lambda: done() >= len(parts) // 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    killed.append(f"driver after {done()}")
    process.join()
    psutil.wait_procs(family, timeout=60)
    process = started(pictures, job, workers)
    process.join()
    if process.exitcode:
        raise SystemExit(f"the driver that goes on ended with {process.exitcode}")
    on_ray = time.perf_counter() - began
    ours, theirs = rows_of(job.out, len(parts)), rows_of(alone.out, len(parts))
    names = [row["image"] for row in ours]
    wanted = {str(path) for path in pictures.iterdir()}
    return {
        "work": name,
        "pictures": len(wanted),
        "rows": len(names),
        "twice": len(names) - len(set(names)),
        "missing": len(wanted - set(names)),
        "other_rows": sum(
            not all(close(a[key], b[key]) for key in a) for a, b in zip(ours, theirs, strict=True)
        ),
        "with_a_reason": sum(row["problem"] is not None for row in ours),
        "alone_s": round(seconds, 1),
        "ray_s": round(on_ray, 1),
        "killed": killed,
    }


if __name__ == "__main__":
    main()
