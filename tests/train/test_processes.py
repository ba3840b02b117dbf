"""Several processes (gloo) train what one process trains: the same losses for a captioner with prototypes, for
two towers and for cached gradients, also in bf16 and where the weights are shared out between the processes
(FSDP); a run goes on with another number of processes.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import patchword
from patchword.errors import ConfigError

SCRIPT = Path(__file__).with_name("processes.py")
ALIKE = {"sharded_cached": "cached", "sharded_bf16": "bf16"}
"""Which are the same training in one process."""
NAMES = ("prototypes", "towers", "cached", "bf16", "sharded_stages", *ALIKE)


def here():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folders(scenes, tmp_path_factory):
    """What two processes wrote by torchrun; some trainings are broken off, one was begun by one process."""
    out = tmp_path_factory.mktemp("two")
    here().train(scenes, out, "sharded_resumed", stop_at=1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(scenes), str(out), *NAMES, "resumed", "sharded_resumed"],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def losses(run_folders, scenes, tmp_path_factory):
    """Of one process and of two, by the name of the training."""
    out = tmp_path_factory.mktemp("one")
    one = {name: here().train(scenes, out, name) for name in NAMES if name not in ALIKE}
    one |= {name: one[whole] for name, whole in ALIKE.items()}
    return {1: one, 2: {name: json.loads((run_folders / f"{name}.json").read_text()) for name in NAMES}}


@pytest.mark.parametrize("name", ["prototypes", "towers", "cached", "sharded_stages", "sharded_cached"])
def test_two_processes_have_the_losses_of_one(losses, name):
    one, two = losses[1][name], losses[2][name]
    assert len(one) == 6 and one[-1] < one[0]
    assert two == pytest.approx(one, abs=2e-5)


def test_cached_gradients_are_those_of_the_whole_batch(losses):
    assert losses[2]["cached"] == pytest.approx(losses[1]["towers"], abs=2e-5)


def test_bf16_is_near(losses):
    assert losses[2]["bf16"] == pytest.approx(losses[1]["bf16"], abs=2e-2)
    assert losses[2]["sharded_bf16"] == pytest.approx(losses[1]["bf16"], abs=2e-2)
    assert (
        losses[1]["bf16"] == pytest.approx(losses[1]["cached"], abs=5e-2)
        and losses[1]["bf16"] != losses[1]["cached"]
    )


def test_a_run_goes_on_with_another_number_of_processes(losses, run_folders, scenes):
    """Broken off by two processes after four steps, gone on with by one: the losses of one."""
    assert len(json.loads((run_folders / "resumed.json").read_text())) < 6
    assert here().train(scenes, run_folders, "resumed") == pytest.approx(losses[1]["prototypes"], abs=2e-5)


def test_a_run_in_shares_goes_on_with_another_number_of_processes(losses, run_folders, scenes):
    """Begun by one process, gone on with by two that share the weights out, ended by one: the same losses."""
    assert len(json.loads((run_folders / "sharded_resumed.json").read_text())) == 3
    assert here().train(scenes, run_folders, "sharded_resumed") == pytest.approx(
        losses[1]["prototypes"], abs=2e-5
    )


def test_what_a_training_in_shares_leaves_is_a_whole_model(run_folders):
    """Of both stages, as one process writes it: it is read, and captions."""
    model = patchword.load(run_folders / "sharded_stages" / "best", device="cpu")
    assert model.caption([Image.new("RGB", (24, 24), "red")])[0].log_probability < 0


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_model_in_shards_is_refused_with_the_reason(variable, monkeypatch, config, tmp_path):
    from patchword.tasks.start import start

    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="gives every process a part of the model"):
        start(config, [f"out={tmp_path / 'run'}"], False, False, "cpu", "test")
    assert not (tmp_path / "run").exists()
