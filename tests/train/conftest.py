"""A drawn data set and a training that takes seconds: what the tests of training, prediction and scoring run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
task = "caption"
out = "{out}"
seed = 3
checkpoint_steps = 1
log_steps = 1
[data]
annotations = "{data}/dataset.json"
images = "{data}/images"
cache = "{cache}"
minimum_count = 1
[data.augmentation]
smallest_area = 0.8
[tower]
kind = "convolutional"
stem = 8
widths = [8, 16]
blocks = [0, 0]
size = 16
drop_path = 0.1
[captioner]
kind = "show_attend_tell"
word_width = 16
width = 24
attention_width = 16
dropout = 0.3
[decoding]
beams = 2
max_length = 12
[[stage]]
name = "first"
epochs = 2
batch = 16
captions_per_picture = 2
learning_rates = {{ "tower" = 1e-3, "captioner" = 5e-3 }}
warm_up_steps = 3
[stage.objective]
kind = "cross_entropy"
doubly_stochastic = 0.1
[[stage]]
name = "second"
epochs = 1
batch = 16
learning_rates = {{ "tower" = 0.0, "captioner" = 1e-3 }}
"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    from patchword.data.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 48), ("val", 12)):
        write_scenes(folder, count, level=1, size=24, split=split)
    return folder


@pytest.fixture(scope="session")
def config(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    path = folder / "run.toml"
    path.write_text(CONFIG.format(out=folder / "run", data=scenes, cache=folder / "cache"))
    return path


@pytest.fixture(scope="session")
def patchword():
    """Calls the command line in a process of its own, as a person does; returns the finished process."""

    def call(
        *arguments: object, start_only: bool = False, environment: dict | None = None
    ) -> subprocess.CompletedProcess | subprocess.Popen:
        command = [sys.executable, "-c", "from patchword.cli import main; main()", *map(str, arguments)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "default", **(environment or {})}
        if start_only:
            return subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=240)

    return call


@pytest.fixture(scope="session")
def trained(config, patchword) -> Path:
    """The run folder of a finished training."""
    finished = patchword("train", config, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    return config.parent / "run"
