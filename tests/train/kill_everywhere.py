"""Kills a small training at every operation on its files, resumes it, and compares it with one left alone.

    python tests/train/kill_everywhere.py plain               # two stages of a tiny model, every operation
    python tests/train/kill_everywhere.py captioner --every 7 # memory and self-critical, every seventh
    python tests/train/kill_everywhere.py plain --full-disk   # from there the disk is full, then free again
    python tests/train/kill_everywhere.py captioner --state k.json --seconds 600   # goes on where it stopped

An operation is whatever changes the run folder: a file opened for writing, a half and a whole write to it, a
rename, a removal, a new folder, a truncation. Each training is a fork of this process, so that thousands need
not import torch again, and dies by SIGKILL. What is printed is one JSON object with the number of operations,
runs, stops and differences.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import gc
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import serialize
from torch import nn

from patchword.config import validate
from patchword.errors import PatchwordError
from patchword.train.claim import claimed
from patchword.train.loop import Run
from patchword.train.recipe import Recipe, Validation
from patchword.train.settings import RunSettings, StageSettings

TIMED = ("seconds", "images_per_second", "captions_per_second", "reward_share")
GROWING = ("write", "mkdir")


class Disk:
    """Counts the operations under a folder; at a chosen one the process dies, or the disk is full from then
    on."""

    def __init__(self, root: Path, stop_at: int, full_disk: bool) -> None:
        self.root, self.stop_at, self.full_disk = os.path.abspath(root) + os.sep, stop_at, full_disk
        self.count = 0

    def install(self) -> None:
        """From here on every operation of this process is counted; there is no way back."""
        sys.addaudithook(self._audit)
        opened, serialised = builtins.open, safetensors.torch.serialize_file

        def counted_open(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            handle = opened(file, mode, *more, **named)
            writes = any(letter in mode for letter in "wax+")
            return _HalfWrites(handle, self, file) if writes and self._is_inside(file) else handle

        def counted_serialise(tensors: Any, filename: Any, metadata: Any = None) -> None:
            if not self._is_inside(filename):
                return serialised(tensors, filename, metadata)
            content = serialize(tensors, metadata)
            with opened(filename, "wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                self.touch("write", filename)
                file.write(content[len(content) // 2 :])
            return None

        builtins.open = io.open = counted_open
        safetensors.torch.serialize_file = counted_serialise

    def touch(self, kind: str, path: Any) -> None:
        """One operation is about to happen."""
        self.count += 1
        if self.stop_at and self.count >= self.stop_at:
            if not self.full_disk:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind in GROWING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and self._is_inside(arguments[0]):
                self.touch("write", arguments[0])
        elif event in ("os.mkdir", "os.rename", "os.truncate") and self._is_inside(arguments[0]):
            self.touch(event.removeprefix("os."), arguments[0])
        elif event in ("os.remove", "os.rmdir") and (arguments[1] != -1 or self._is_inside(arguments[0])):
            self.touch("remove", arguments[0])

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        return (os.path.abspath(os.fsdecode(path)) + os.sep).startswith(self.root)


class _HalfWrites:
    """A file whose writes reach the disk in two halves, each an operation."""

    def __init__(self, handle: Any, disk: Disk, path: Any) -> None:
        self._handle, self._disk, self._path = handle, disk, path

    def write(self, content: Any) -> int:
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            self._disk.touch("write", self._path)
            self._handle.write(part)
            self._handle.flush()
        return len(content)

    def truncate(self, size: int) -> int:
        self._disk.touch("truncate", self._path)
        return self._handle.truncate(size)

    def __enter__(self) -> _HalfWrites:
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


# The trainings.


class Line(nn.Module):
    """A squared error with noise, so that random numbers matter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, shares: Any) -> dict[str, torch.Tensor]:
        x_B1, y_B1 = batch.points_B2.split(1, dim=1)
        x_B1 = nn.functional.dropout(x_B1, 0.2, self.training)
        return {"loss": (self.model(x_B1) - y_B1).square().sum() / shares.targets}


def plain_recipe() -> Recipe:
    """Two stages of a tiny model; every epoch is better than the one before, and the second stage starts from
    the best."""
    import test_recipe as tests

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    count = {"steps": torch.zeros(())}

    def counted(step: int, objective: nn.Module) -> dict[str, float]:
        count["steps"] += 1 + step
        return {}

    def validated(stage: int, epoch: int, accelerator: Accelerator) -> Validation:
        return Validation(2 * stage + epoch, {"scores": {"weight": model[0].weight[0, 0].item()}})

    stage = StageSettings(name="first", epochs=1, learning_rates={"": 0.1}, optimiser="adamw")
    return Recipe(
        model,
        (stage, stage.model_copy(update={"name": "second", "epochs": 2, "start_from": "best"})),
        lambda stage, epoch: tests.plan(stage, epoch)[:2],
        tests.points,
        lambda stage: Line(model),
        tests.save(model),
        tests.load(model),
        validate=validated,
        after_step=counted,
        state=lambda: {"steps": count["steps"].clone()},
        load_state=lambda tensors: count.update(tensors),
    )


def train_plain(folder: Path, resume: bool) -> None:
    """As `tasks/start.py` does it, without a configuration file."""
    settings = validate({"out": str(folder)}, RunSettings, "test")
    with claimed(folder, settings, resume) as begin:
        recipe = plain_recipe()
        begin()
        run = Run(recipe, folder, Accelerator(cpu=True), 5, checkpoint_steps=3, log_steps=1)
        if resume:
            run.resume()
        run.train()


def captioner(workshop: Path) -> Callable[[Path, bool], None]:
    """The fused model on drawn scenes: a stage without memory, one in which it fills, a self-critical one
    from the best."""
    from patchword.data.scenes import write_scenes
    from patchword.tasks.start import start

    for split, count in (("train", 8), ("val", 3)):
        write_scenes(workshop / "scenes", count, level=1, size=16, split=split)
    config = workshop / "run.toml"
    config.write_text(CAPTIONER.format(folder=workshop), encoding="utf-8")

    def train(folder: Path, resume: bool) -> None:
        start(config, [f'out="{folder}"'], resume, False, "cpu", "test")

    return train


CAPTIONER = """
task = "caption"
out = "run"
log_steps = 1
checkpoint_steps = 3
[data]
annotations = "{folder}/scenes/dataset.json"
images = "{folder}/scenes/images"
cache = "{folder}/cache"
minimum_count = 1
[tower]
kind = "convolutional"
stem = 8
widths = [8]
blocks = [0]
size = 16
[captioner]
kind = "caption_transformer"
width = 8
heads = 2
hidden = 8
encoder_layers = 0
decoder_layers = 1
dropout = 0.1
memory = {{ count = 2, neighbours = 2, bank = 128, bank_at_most = 64, cluster_every = 2, effect_after = 1 }}
[decoding]
beams = 1
max_length = 6
[[stage]]
name = "words"
epochs = 1
batch = 4
captions_per_picture = 2
memory = "off"
learning_rates = {{ tower = 1e-3, captioner = 1e-2 }}
[[stage]]
name = "memory"
epochs = 2
batch = 4
captions_per_picture = 2
memory = "ramp"
learning_rates = {{ tower = 0.0, captioner = 1e-2 }}
[[stage]]
name = "reward"
epochs = 2
batch = 4
start_from = "best"
learning_rates = {{ tower = 0.0, captioner = 1e-3 }}
objective = {{ kind = "self_critical", samples = 2, max_length = 6 }}
"""


# What is compared.


def content(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must be equal, by name."""
    found: dict[str, Any] = {"names": sorted(path.name for path in folder.iterdir())}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for path in [*sorted(folder.glob("predictions/*.json")), *folder.glob("samples.json")]:
        found[str(path.relative_to(folder))] = path.read_text(encoding="utf-8")
    state = json.loads((folder / "checkpoints/last/training.json").read_text(encoding="utf-8"))
    found["state"] = {key: state[key] for key in ("position", "past")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{key: row[key] for key in row if key not in TIMED} for row in rows]
    return found


def differences(whole: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in sorted({*whole, *resumed}) if whole.get(name) != resumed.get(name)]


# The kills.


def forked(train: Callable[[], None]) -> tuple[int, str]:
    """Run in a child; gives its exit status (negative: the signal that ended it) and what it said at the
    end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status, said = 1, ""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            train()
            status = 0
        except PatchwordError as error:
            status, said = 2, str(error)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def full(said: str) -> bool:
    """Whether a message names the true cause of a full disk."""
    return "No space left" in said or "disk is full" in said


def trial(
    train: Callable[[Path, bool], None], folder: Path, stop_at: int, full_disk: bool, resume: bool = False
) -> tuple[int, int, str]:
    """One training that is stopped at an operation (0: never). Exit status, operations counted, last
    words."""
    counter = folder.with_name("operations")

    def run() -> None:
        disk = Disk(folder, stop_at, full_disk)
        disk.install()
        try:
            train(folder, resume)
        finally:
            counter.write_text(str(disk.count))

    status, said = forked(run)
    return status, int(counter.read_text()) if counter.exists() else 0, said


def kill_everywhere(
    kind: str, every: int, full_disk: bool, state: Path | None = None, seconds: float = math.inf
) -> dict[str, Any]:
    """All trials of one training. See the head of this file."""
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        train = train_plain if kind == "plain" else captioner(Path(place))
        folder = Path(place) / "run"
        train(
            Path(place) / "warm", False
        )  # what is imported late, and cached on the disk, is there for all forks
        gc.collect()
        gc.freeze()  # a collection in a child would copy all of this process
        status, operations, said = trial(train, folder, 0, False)
        assert status == 0, said
        whole = content(folder)
        result: dict[str, Any] = {"training": kind, "operations": operations, "runs": 0, "stopped": 0}
        result |= {"differences": [], "wrong_endings": []}
        if state is not None and state.exists():
            result = json.loads(state.read_text(encoding="utf-8"))
            assert (result["training"], result["operations"]) == (kind, operations), state
        for stop_at in range(1 + every * result["runs"], operations + 1, every):
            if time.monotonic() - began > seconds:
                break
            shutil.rmtree(folder, ignore_errors=True)
            status, _, said = trial(train, folder, stop_at, full_disk)
            result["stopped"] += status == (2 if full_disk else -signal.SIGKILL)
            if full_disk and (status not in (0, 2) or (status == 2 and not full(said))):
                result["wrong_endings"].append({"operation": stop_at, "status": status, "said": said})
            begun = (folder / "config.json").exists()
            status, said = forked(lambda begun=begun: train(folder, begun))
            result["runs"] += 1
            if status != 0:
                result["wrong_endings"].append({"operation": stop_at, "status": status, "said": said})
            elif found := differences(whole, content(folder)):
                result["differences"].append({"operation": stop_at, "differ": found})
            if state is not None:
                state.write_text(json.dumps(result), encoding="utf-8")
        return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", choices=("plain", "captioner"))
    parser.add_argument("--every", type=int, default=1, help="stop at every n-th operation")
    parser.add_argument("--full-disk", action="store_true", help="a full disk in place of a kill")
    parser.add_argument("--state", type=Path, help="file of the trials that are done, to go on from")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no trial begins after so long")
    asked = parser.parse_args()
    found = kill_everywhere(asked.training, asked.every, asked.full_disk, asked.state, asked.seconds)
    print(json.dumps(found))
