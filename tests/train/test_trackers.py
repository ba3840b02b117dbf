"""`log = ["tensorboard", "wandb"]`: trackers get what metrics.jsonl gets."""

import json

import pytest

import patchword.train.trackers as trackers_file
from patchword.errors import ConfigError
from patchword.train.trackers import Trackers, check_installed

pytest.importorskip("tensorboard", reason="the extra `log` is not installed")


def scalars(folder):
    """(tag, step) -> value of every event file under a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {(tag, event.step): event.value for tag in tags for event in events.Scalars(tag)}


def test_kind_14_tensorboard_holds_what_metrics_jsonl_holds(config, run_patchword, tmp_path):
    """Through the command line: every loss, rate and score, at its step; resuming goes on in the same
    folder."""
    run = tmp_path / "run"
    command = ("train", config, f"out={run}", 'log=["tensorboard"]', "stage.0.epochs=1", "log_steps=1")
    finished = run_patchword(*command, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    validated = {row["step"] for row in rows if row["event"] == "validation"}
    found = scalars(run / "tensorboard")
    assert len(steps) > 1
    for row in steps:
        assert found["step/loss", row["step"]] == pytest.approx(row["loss"], rel=1e-5)
        for name, loss in row["losses"].items():
            assert found[f"step/losses/{name}", row["step"]] == pytest.approx(loss, rel=1e-5)
    names = {tag for tag, step in found if tag.startswith("validation/")}
    assert validated and len(names) > 2 and {step for tag, step in found if tag in names} == validated


class Recorder:
    def __init__(self, *given, **options):
        self.given, self.options, self.written, self.finished = given, options, [], False

    def start(self):
        self.started = True

    def log(self, values, step):
        self.written.append((step, values))

    def finish(self):
        self.finished = True


def test_kind_14_wandb_writes_into_the_run_and_is_offline_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers_file, "WandBTracker", Recorder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trackers = Trackers(["wandb"], tmp_path / "mine", {"seed": 3}, 0)
    event = {"event": "step", "stage": "words", "step": 7, "epoch": 1, "loss": 0.5}
    trackers.write(event | {"losses": {"a": 1.5}, "learning_rates": {"": 0.1}, "best": True, "name": "x"})
    trackers.close()
    (recorder,) = trackers._trackers
    assert recorder.started and recorder.finished and recorder.given == ("patchword",)
    assert recorder.options["mode"] == "offline" and recorder.options["dir"] == str(tmp_path / "mine")
    assert recorder.options["name"] == "mine" and recorder.options["config"] == {"seed": 3}
    expected = {"step/epoch": 1.0, "step/loss": 0.5, "step/losses/a": 1.5, "step/learning_rates/all": 0.1}
    assert recorder.written == [(7, expected)]
    monkeypatch.setenv("WANDB_MODE", "online")
    assert Trackers(["wandb"], tmp_path, {}, 0)._trackers[0].options["mode"] == "online"


def test_kind_14_a_tracker_that_is_not_installed_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr(trackers_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed: pip install 'patchword\[log\]'"):
        check_installed(("tensorboard",))
    check_installed(())


def test_kind_14_an_unknown_tracker_is_named(config, run_patchword, tmp_path):
    finished = run_patchword("train", config, f"out={tmp_path / 'run'}", 'log=["mlflow"]', "--device", "cpu")
    assert finished.returncode == 2 and "tensorboard" in finished.stderr and not (tmp_path / "run").exists()
