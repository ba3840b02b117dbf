"""Runs commands on real Ray: workers and the driver are killed, a picture ends its process; then counts.

    python benchmarks/jobs.py drawn --pictures 20000                    # small models, drawn pictures
    python benchmarks/jobs.py photographs PHOTOS --count 5000           # the shipped models
    python benchmarks/jobs.py overhead PHOTOS --count 320 --repeats 3   # one worker beside the plain command

PHOTOS is a folder of photographs. With `--folder PLACE --only caption` what was drawn and made stays, and
the other commands can follow later. `drawn` and `photographs` caption, label and index pictures with
`--cluster local`, on all cores. Three files among them are no pictures, and over one picture each process
ends that works on it, as where the system takes memory back. A worker is killed (SIGKILL) when a quarter of
the parts are done and the driver when half of them are; the same command then goes on. Every picture must be
in the output once, with what the plain command says of it (of the first `--compared`). Memory is the largest
sum over Ray's workers and over the driver in each quarter of the parts. `overhead` runs `caption` and `index`
alternately as plain commands and with one worker, for a quarter of the pictures and for all (512 at most):
what does not grow with the pictures is the start. CPU seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as parquet
import torch
from PIL import Image

import patchword
from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Preprocessing
from patchword.data.scenes import write_scenes
from patchword.models.pairs.two_towers import TwoTowersConfig
from patchword.search.index import open_index
from patchword.tasks.retrieve.load import load_two_towers
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
from patchword.text.words import Vocabulary
from patchword.towers.bert import BertTowerConfig
from patchword.towers.convolutional import ConvolutionalConfig

LABELS = "a red circle, a blue square, a dog, two people"
POISON = (333, 331)
"""Width and height of the picture over which processes end."""
POISONOUS = f"""
import os, signal
from PIL import Image
resized = Image.Image.resize
def resize(self, *given, **named):
    if self.size == {POISON}:
        os.kill(os.getpid(), signal.SIGKILL)
    return resized(self, *given, **named)
Image.Image.resize = resize
"""
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


class Models(NamedTuple):
    """Names or folders of models."""

    captioner: str
    towers: str


def small_models(folder: Path) -> Models:
    """Models that cost little and are hardly trained, as what is measured is the jobs."""
    for split, count in (("train", 48), ("val", 8)):
        write_scenes(folder / "scenes", count, level=1, size=24, split=split)
    (folder / "captioner.toml").write_text(CAPTIONER.format(folder=folder))
    captioner = patchword.train(folder / "captioner.toml", device="cpu") / "best"
    words = Vocabulary.build([LABELS.replace(",", "")], minimum_count=1)
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
    return Models(str(captioner), str(folder / "towers"))


class Family:
    """What a process and all that it started take: memory by quarters of the work, and processor seconds."""

    def __init__(self, process: int, share: Callable[[], float] = lambda: 0.0, memory: bool = True) -> None:
        """`memory` False: it is not looked at, which takes a hundredth of a second for each worker."""
        self._process, self._share = psutil.Process(process), share
        self.workers, self.driver = [0.0] * 4, [0.0] * 4
        """MiB; what processes share is counted once."""
        self._seconds: dict[int, float] = {}
        self._of_workers: set[int] = set()
        self._memory = memory
        self._stop = Event()
        self._thread = Thread(target=self._watch)

    @property
    def seconds(self) -> float:
        """Processor seconds of all of them, but for what one took since the last look before its end."""
        return sum(self._seconds.values())

    @property
    def worker_seconds(self) -> float:
        """Those of Ray's workers among them."""
        return sum(self._seconds[number] for number in self._of_workers)

    def _watch(self) -> None:
        while not self._stop.wait(1.0 if self._memory else 0.25):
            quarter, workers = min(3, int(4 * self._share())), 0.0
            for one in self._everyone():
                try:
                    times = one.cpu_times()
                    self._seconds[one.pid] = times.user + times.system
                    if is_worker(one):
                        self._of_workers.add(one.pid)
                    if not self._memory:
                        continue
                    if is_worker(one):
                        workers += one.memory_full_info().pss / 2**20
                    elif one.pid == self._process.pid:
                        mib = one.memory_full_info().pss / 2**20
                        self.driver[quarter] = max(self.driver[quarter], mib)
                except psutil.Error:
                    continue
            self.workers[quarter] = max(self.workers[quarter], workers)

    def _everyone(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return []

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def is_worker(process: psutil.Process) -> bool:
    """Whether it is one of Ray's in which a model is."""
    said = " ".join(process.cmdline())
    return said.startswith("ray::") and "Worker" in said


class Command:
    """A command of `patchword` in a process of its own."""

    def __init__(self, words: Sequence[str], folder: Path, poison: bool = False) -> None:
        environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        if poison:
            (folder / "poison").mkdir(exist_ok=True)
            (folder / "poison" / "sitecustomize.py").write_text(POISONOUS)
            paths = [str(folder / "poison"), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.said = open(folder / "said.txt", "a+", encoding="utf-8")  # noqa: SIM115 - kept while it runs
        program = [sys.executable, "-m", "patchword", *words]
        self.process = subprocess.Popen(program, env=environment, stdout=self.said, stderr=self.said)

    def until(self, reached: Callable[[], bool]) -> None:
        """Raises where the command ends before that."""
        while not reached():
            if self.process.poll() is not None:
                raise SystemExit(f"ended with {self.process.returncode} before it was to be killed")
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """Those of Ray that are there."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            try:
                found += [one] if is_worker(one) else []
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """The driver; wait until Ray has ended its workers."""
        workers = self.workers()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for one in psutil.wait_procs(workers, timeout=60)[1]:
            print(f"still there after a minute: {one}", file=sys.stderr)

    def end(self) -> None:
        """Wait for it; 1 says that pictures could not be read."""
        if self.process.wait() not in (0, 1):
            raise SystemExit(f"ended with {self.process.returncode}, see said.txt")


def killed(words: Sequence[str], parts: Path, count: int, folder: Path) -> dict[str, Any]:
    """One command on Ray, with both kills; `parts`: where its parts appear, of which there are `count`."""

    def done() -> int:
        return len(list(parts.glob("part-*.parquet")))

    memory: list[Family] = []
    kills = []
    began = time.perf_counter()
    command = Command(words, folder, poison=True)
    with Family(command.process.pid, lambda: done() / count) as family:
        command.until(lambda: done() >= count // 4 and len(command.workers()) > 0)
        command.workers()[0].kill()
        kills.append(f"worker after {done()} of {count} parts")
        command.until(lambda: done() >= count // 2)
        kills.append(f"driver after {done()}")
        command.kill()
    memory.append(family)
    command = Command(words, folder, poison=True)
    # Parts are gone when an index is written of them.
    with Family(command.process.pid, lambda: done() / count if parts.exists() else 0.99) as family:
        command.end()
    memory.append(family)
    return {
        "killed": kills,
        "seconds": round(time.perf_counter() - began),
        "worker_mib": [round(max(one.workers[at] for one in memory)) for at in range(4)],
        "driver_mib": [round(max(one.driver[at] for one in memory)) for at in range(4)],
    }


def counted(names: Iterator[str], wanted: Sequence[Path]) -> dict[str, Any]:
    """How often each input came out."""
    found = Counter(names)
    return {
        "inputs": len(wanted),
        "rows": found.total(),
        "twice": found.total() - len(found),
        "missing": sum(str(path) not in found for path in wanted),
    }


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Every row of a job."""
    return [
        row for file in sorted(out.glob("part-*.parquet")) for row in parquet.read_table(file).to_pylist()
    ]


def plain_captions(model: str, some: Sequence[Path], folder: Path) -> dict[str, tuple[str, float]]:
    """What the plain command says of pictures."""
    out = folder / "plain.csv"
    Command(["caption", *map(str, some), "--model", model, "--out", str(out), "--overwrite"], folder).end()
    with open(out, encoding="utf-8", newline="") as file:
        return {row["image"]: (row["caption"], float(row["score"])) for row in csv.DictReader(file)}


def captioned(models: Models, pictures: Path, given: Sequence[Path], some: int, folder: Path) -> dict:
    """`caption`, on Ray and plain."""
    out = folder / "captions"
    words = ["caption", str(pictures), "--model", models.captioner, "--cluster", "local", "--out", str(out)]
    found = killed(words, out, -(-len(given) // 512), folder)
    rows = {row["image"]: row for row in rows_of(out)}
    plain = plain_captions(models.captioner, given[:some], folder)
    other = [
        name
        for name, (text, score) in plain.items()
        if rows[name]["problem"] is None
        and not (rows[name]["caption"] == text and abs(rows[name]["score"] - score) <= 1e-3)
    ]
    return {"work": "caption"} | counted((row["image"] for row in rows_of(out)), given) | _reasons(rows) | {
        "compared": len(plain),
        "other": len(other),
        **found,
    }  # fmt: skip


def labelled(models: Models, pictures: Path, given: Sequence[Path], some: int, folder: Path) -> dict:
    """`label`, on Ray and by the model in this process."""
    out = folder / "labels"
    words = ["label", str(pictures), "--model", models.towers, "--labels", LABELS]
    found = killed([*words, "--cluster", "local", "--out", str(out)], out, -(-len(given) // 512), folder)
    rows = {row["image"]: row for row in rows_of(out)}
    good = [path for path in given[:some] if rows[str(path)]["problem"] is None]
    shares_BL = load_two_towers(models.towers, "cpu").label(good, LABELS.split(", "))
    close = [
        np.allclose(rows[str(path)]["probabilities"], shares_L, atol=1e-4)
        for path, shares_L in zip(good, shares_BL, strict=True)
    ]
    return {"work": "label"} | counted((row["image"] for row in rows_of(out)), given) | _reasons(rows) | {
        "compared": len(good),
        "other": len(good) - sum(close),
        **found,
    }  # fmt: skip


def indexed(models: Models, pictures: Path, given: Sequence[Path], some: int, folder: Path) -> dict:
    """`index`, on Ray and by the model in this process. Pictures without a vector are not in an index."""
    out, parts = folder / "index", folder / "parts"
    words = ["index", str(pictures), "--out", str(out), "--model", models.towers, "--cluster", "local"]
    count = -(-len(given) // 512)
    found = killed([*words, "--parts", str(parts)], parts / "vectors", count, folder)
    towers = load_two_towers(models.towers, "cpu")
    with open_index(out, towers.identity) as index:
        vectors = {path: vector_E for path, vector_E in index.pictures()}
        names = [path for path, _ in index.pictures()]
    good = [path for path in given if _is_good(path)]
    compared = good[:some]
    mine = towers.embed_images(compared)
    other = sum(
        not np.allclose(vectors[str(path)], vector_E, atol=2e-3)
        for path, vector_E in zip(compared, mine, strict=True)
    )
    return {"work": "index"} | counted(iter(names), good) | {
        "compared": len(compared), "other": other, **found
    }  # fmt: skip


def _is_good(path: Path) -> bool:
    return not path.name.startswith(("broken-", "poison-"))


def _reasons(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    reasons = {name: row["problem"] for name, row in rows.items() if row["problem"] is not None}
    ended = [name for name, reason in reasons.items() if "its process ended" in reason]
    return {"with_a_reason": len(reasons), "poisoned": [Path(name).name for name in ended]}


def draw(pictures: Path, count: int) -> None:
    """Scenes, each in its eight turns and mirror images."""
    write_scenes(pictures.parent, -(-count // 8), level=1, size=32)
    for path in sorted(pictures.iterdir()):
        scene = Image.open(path)
        for turn in Image.Transpose:
            scene.transpose(turn).save(path.with_stem(f"{path.stem}-{turn.name.lower()}"))
    for path in sorted(pictures.iterdir())[count:]:
        path.unlink()


def add_bad_ones(pictures: Path) -> None:
    """Three files that are no pictures, and one that ends its process; in the middle by name."""
    for number in range(3):
        (pictures / f"broken-{number}.jpg").write_bytes(b"no picture" * number)
    Image.new("RGB", POISON, (9, 9, 9)).save(pictures / "poison-0.png")


def all_kinds(models: Models, pictures: Path, asked: argparse.Namespace, folder: Path) -> None:
    """Prints one JSON object for each command."""
    add_bad_ones(pictures)
    given, some = sorted(pictures.iterdir()), asked.compared
    kinds = {"caption": captioned, "label": labelled, "index": indexed}
    for measured in [kinds[asked.only]] if asked.only else kinds.values():
        print(json.dumps(measured(models, pictures, given, some, folder)), flush=True)


# One worker beside the plain command.


def overhead(photos: Path, asked: argparse.Namespace, kinds: Sequence[str], folder: Path) -> None:
    """Prints one JSON object for each run, then medians, and what a further picture takes: what does not grow
    with the pictures is the start."""
    numbers = (asked.count // 4, asked.count)
    for number in numbers:
        (folder / str(number)).mkdir()
        for path in sorted(photos.iterdir())[:number]:
            shutil.copyfile(path, folder / str(number) / path.name)
    for kind in kinds:
        runs: dict[tuple[bool, int], list[dict[str, Any]]] = {}
        for repeat in range(asked.repeats):
            for number in numbers:
                for ray in (False, True):
                    place = folder / f"{kind}-{number}-{ray}-{repeat}"
                    found = timed(kind, folder / str(number), place, ray)
                    runs.setdefault((ray, number), []).append(found)
                    print(json.dumps(found | {"pictures": number}), flush=True)
        for ray in (False, True):
            print(json.dumps({"work": kind, "ray": ray, "medians": summary(runs, ray, numbers)}), flush=True)


def summary(
    runs: dict[tuple[bool, int], list[dict[str, Any]]], ray: bool, numbers: tuple[int, int]
) -> dict[str, Any]:
    """Medians over the repeats, and milliseconds of a further picture."""
    found: dict[str, Any] = {}
    for name in ("seconds", "cpu", "worker_cpu"):
        few, many = (statistics.median(one[name] for one in runs[ray, number]) for number in numbers)
        further = 1000 * (many - few) / (numbers[1] - numbers[0])
        found[name] = {"few": few, "all": many, "further_ms": round(further, 1)}
    return found


def timed(kind: str, pictures: Path, place: Path, ray: bool) -> dict[str, Any]:
    """One run of a command; up to 512 pictures are one part, which one worker does."""
    place.mkdir()
    words = [sys.executable, "-m", "patchword", kind, str(pictures)]
    words += ["--out", str(place / ("out" if ray or kind == "index" else "out.csv"))]
    words += ["--cluster", "local"] if ray else []
    words += ["--parts", str(place / "parts")] if ray and kind == "index" else []
    began = time.perf_counter()
    environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    with Family(process.pid, memory=False) as family:
        status = process.wait()
    seconds = round(time.perf_counter() - began, 1)
    cpu, worker = round(family.seconds, 1), round(family.worker_seconds, 1)
    return {"work": kind, "ray": ray, "seconds": seconds, "cpu": cpu, "worker_cpu": worker, "status": status}


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("drawn", "photographs", "overhead"))
    parser.add_argument("photos", type=Path, nargs="?", help="a folder of photographs")
    parser.add_argument("--pictures", type=int, default=3000, help="drawn: how many")
    parser.add_argument("--count", type=int, default=512, help="photographs, overhead: how many")
    parser.add_argument("--compared", type=int, default=512, help="with the plain command")
    parser.add_argument("--only", choices=("caption", "label", "index"), help="one of the commands")
    parser.add_argument("--repeats", type=int, default=3, help="overhead: how often")
    parser.add_argument("--folder", type=Path, help="where everything is written, and stays")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = asked.folder or Path(place)
        folder.mkdir(exist_ok=True)
        if asked.what == "overhead":
            overhead(asked.photos, asked, [asked.only] if asked.only else ("caption", "index"), folder)
            return
        pictures, models = folder / "given" / "images", Models("flickr8k", "two-towers")
        if asked.what == "drawn":
            there = Models(str(folder / "captioner" / "best"), str(folder / "towers"))
            models = there if pictures.exists() else small_models(folder)
        if not pictures.exists():
            pictures.mkdir(parents=True)
            if asked.what == "drawn":
                draw(pictures, asked.pictures)
            for path in sorted(asked.photos.iterdir())[: asked.count] if asked.photos else ():
                shutil.copyfile(path, pictures / path.name)
        all_kinds(models, pictures, asked, folder)


if __name__ == "__main__":
    main()
