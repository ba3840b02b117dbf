"""Several processes (gloo) train what one process trains: the same losses for a captioner with prototypes, for
two towers and for cached gradients, also in bf16; a run goes on with another number of processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchword.errors import ConfigError

SCRIPT = Path(__file__).with_name("processes.py")


def run(processes, *words):
    """The script on so many processes; by torchrun where there are several."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else ()), str(SCRIPT), *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def losses(scenes, tmp_path_factory):
    """Of one process and of two, by the name of the training."""
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for processes in (1, 2):
        out = folder / str(processes)
        out.mkdir()
        run(processes, scenes, out, "prototypes", "towers", "cached", "bf16")
        found[processes] = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    return found


@pytest.mark.parametrize("name", ["prototypes", "towers", "cached"])
def test_two_processes_have_the_losses_of_one(losses, name):
    one, two = losses[1][name], losses[2][name]
    assert len(one) == 6 and one[-1] < one[0]
    assert two == pytest.approx(one, abs=2e-5)


def test_cached_gradients_are_those_of_the_whole_batch(losses):
    assert losses[2]["cached"] == pytest.approx(losses[1]["towers"], abs=2e-5)


def test_bf16_is_near(losses):
    assert losses[2]["bf16"] == pytest.approx(losses[1]["bf16"], abs=2e-2)
    assert losses[1]["bf16"] == pytest.approx(losses[1]["cached"], abs=5e-2) and losses[1]["bf16"] != losses[1]["cached"]


def test_a_run_goes_on_with_another_number_of_processes(losses, scenes, tmp_path):
    """Broken off by two processes after four steps, gone on with by one: the losses of one, and the prototypes."""
    run(2, scenes, tmp_path, "resumed")
    assert len(json.loads((tmp_path / "resumed.json").read_text())) < 6
    (tmp_path / "resumed.json").unlink()
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import processes, pathlib, json\n"
    code += f"out = pathlib.Path({str(tmp_path)!r})\n"
    code += f"print(json.dumps(processes.train(pathlib.Path({str(scenes)!r}), out, 'resumed')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(losses[1]["prototypes"], abs=2e-5)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_model_in_shards_is_refused_with_the_reason(variable, monkeypatch, config, tmp_path):
    from patchword.tasks.start import start

    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="gives every process a part of the model"):
        start(config, [f"out={tmp_path / 'run'}"], False, False, "cpu", "test")
    assert not (tmp_path / "run").exists()
