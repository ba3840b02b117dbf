"""`patchword train` as a person runs it: the run folder, kill -9 and resume, two processes, losses that are
not finite.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

TIMED = ("seconds", "images_per_second", "captions_per_second", "reward_share")


def events(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_run_folder_holds_everything(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "best",
        "predictions",
        "samples.json",
        "report.html",
    }
    kinds = [row["event"] for row in events(trained)]
    assert kinds.count("step") == 2 * 3 + 15 and kinds.count("validation") == 3
    steps = [row for row in events(trained) if row["event"] == "step"]
    assert steps[0]["learning_rates"] == pytest.approx({"tower": 1e-3 / 3, "captioner": 5e-3 / 3})
    assert "tower" not in steps[-1]["learning_rates"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    validation = [row for row in events(trained) if row["event"] == "validation"][-1]
    assert {"Bleu_4", "CIDEr"} <= set(validation["scores"]) and set(validation["teacher_forced"]) == {
        "loss",
        "top5",
        "bleu4",
    }
    card = (trained / "best" / "README.md").read_text()
    assert "48 training pictures" in card and "patchword train" in card


def test_frozen_tower_does_not_move(trained, config, run_patchword, tmp_path):
    """In the second stage the tower's rate is 0: its weights and its batch statistics stay as they were."""
    (tmp_path / "first.toml").write_text(config.read_text().split('[[stage]]\nname = "second"')[0])
    finished = run_patchword("train", tmp_path / "first.toml", f"out={tmp_path / 'run'}", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    first, last = (weights(run / "checkpoints" / "last") for run in (tmp_path / "run", trained))
    assert first.keys() == last.keys()
    moved = {name.split(".")[0] for name in last if not np.array_equal(first[name], last[name])}
    assert moved == {"captioner"}
    steps = [row for row in events(trained) if row["event"] == "step" and row["stage"] == "first"]
    assert last["tower.stem.1.num_batches_tracked"] == len(steps)


def test_run_folder_is_not_overwritten(trained, config, run_patchword):
    again = run_patchword("train", config, "--device", "cpu")
    assert again.returncode == 2
    assert "holds a run already: add --resume to go on with it" in again.stderr
    other = run_patchword("train", config, "seed=4", "--resume", "--device", "cpu")
    assert "was begun with other settings (seed)" in other.stderr


def test_kill_and_resume_is_the_same_run(trained, config, run_patchword, start_patchword, tmp_path):
    """Killed twice at points that the clock chooses, resumed: same losses, same validations, same weights,
    bit for bit.
    """
    arguments = ("train", config, f"out={tmp_path / 'run'}", "--resume", "--device", "cpu")
    state = tmp_path / "run" / "checkpoints" / "last" / "training.json"
    for wanted in (2, 9):
        process = start_patchword(*arguments)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if state.exists():
                try:
                    if json.loads(state.read_text())["position"]["step"] >= wanted:
                        break
                except (OSError, ValueError):
                    pass  # the folder was being replaced; look again
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = run_patchword(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert "resumed at step" in finished.stderr
    assert events(tmp_path / "run") == events(trained)
    for folder in ("best", "checkpoints/last"):
        ours, theirs = weights(tmp_path / "run" / folder), weights(trained / folder)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


NO_NORM = """
[captioner]
kind = "show_tell"
width = 24
dropout = 0.0
"""


def test_two_processes_equal_one(config, run_patchword, tmp_path):
    """The same global batch on one process and on two (gloo): the same losses to 1e-5.

    Dropout 0, a tower without batch norm, frozen.
    """
    text = config.read_text()
    start, end = text.index("[captioner]"), text.index("[decoding]")
    text = text[:start] + NO_NORM + text[end:]
    text = (
        text.replace("doubly_stochastic = 0.1", "doubly_stochastic = 0.0")
        .replace("[data.augmentation]\nsmallest_area = 0.8\n", "")  # every process draws views of its own
        .replace('"tower" = 1e-3', '"tower" = 0.0')
        .replace("epochs = 2", "epochs = 1")
    )
    (tmp_path / "run.toml").write_text(text)
    common = ("train", tmp_path / "run.toml", "--device", "cpu")
    alone = run_patchword(*common, f"out={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    script = tmp_path / "main.py"
    script.write_text("from patchword.cli import main; main()")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29602",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*torchrun, script, *map(str, common), f"out={tmp_path / 'two'}"],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [row["loss"] for row in events(tmp_path / name) if row["event"] == "step"] for name in ("one", "two")
    )
    assert len(one) == len(two) > 10
    assert one == pytest.approx(two, abs=1e-5)


def test_overflow_is_skipped_then_stops(config, run_patchword, tmp_path):
    """A rate that blows the weights up: steps are skipped and counted, and the third in a row ends the run
    with the image ids.
    """
    out = tmp_path / "run"
    finished = run_patchword(
        "train",
        config,
        f"out={out}",
        "stage.0.learning_rates={'' = 1e30}",
        "stage.0.clip_norm=0",
        "--device",
        "cpu",
    )
    assert finished.returncode == 2
    assert "was not finite in 3 steps in a row" in finished.stderr and "with images [" in finished.stderr
    skipped = [row for row in events(out) if row["event"] == "skipped"]
    assert len(skipped) == 3 and all(len(row["image_ids"]) == 16 for row in skipped)
    assert (out / "report.html").exists()


def test_dry_run_measures_and_writes_nothing(config, run_patchword, tmp_path):
    finished = run_patchword("train", config, f"out={tmp_path / 'run'}", "--dry-run", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    assert "minutes per epoch" in " ".join(finished.stdout.split()) or "first" in finished.stdout
    assert not (tmp_path / "run").exists()


def test_settings_are_listed_and_checked(config, run_patchword):
    listed = run_patchword("train", "--help-config")
    assert (
        "[[stage]] objective(cross_entropy).doubly_stochastic " in listed.stdout
        and "float | tuple[float, float]" in listed.stdout
    )
    wrong = run_patchword("train", config, "stage.0.epochz=3", "--device", "cpu")
    assert wrong.returncode == 2
    assert "epochz: unknown setting" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
