"""Trainings that read tar shards: the model of the same data as files, resumed bit for bit, whatever cannot be
decoded listed and counted; processes share the samples.
"""

import json
import os
import signal
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


@pytest.fixture(scope="module")
def damaged(shards, tmp_path_factory):
    """The same with one training picture that cannot be decoded."""
    folder = tmp_path_factory.mktemp("damaged")
    for shard in shards.glob("*.tar"):
        content = shard.read_bytes()
        if shard.name == "train-00016.tar":
            at = content.index(b"IDAT") + 8
            content = content[:at] + bytes(40) + content[at + 40 :]
        (folder / shard.name).write_bytes(content)
    return folder


def of(folder):
    return f"data.annotations={folder}", f"data.images={folder}"


def test_the_same_data_as_files_give_the_same_captioner(shards, config, trained, run_patchword, tmp_path):
    finished = run_patchword("train", config, *of(shards), f"out={tmp_path / 'run'}", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    assert [row["loss"] for row in events(tmp_path / "run") if row["event"] == "step"] == [
        row["loss"] for row in events(trained) if row["event"] == "step"
    ]
    ours, theirs = weights(tmp_path / "run" / "best"), weights(trained / "best")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_killed_in_a_window_it_goes_on_bit_for_bit_and_counts_what_it_left_out(
    damaged, config, run_patchword, start_patchword, tmp_path
):
    arguments = ("train", config, *of(damaged), "data.window=24", "stage.0.epochs=3", "--device", "cpu")
    alone = run_patchword(*arguments, f"out={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    found = [row for row in events(tmp_path / "alone") if row["event"] == "unreadable"]
    assert (
        sum(row["pictures"] for row in found) == found[-1]["unreadable"] == 3 + 5
    )  # once an epoch, then by caption
    assert all("train-00016.tar#000.png" in reason for row in found for reason in row["reasons"])
    assert "train-00016.tar#000.png" in alone.stderr and alone.stderr.count("it is left out") == 1
    resumed = (*arguments, f"out={tmp_path / 'run'}", "--resume")
    state = tmp_path / "run" / "checkpoints" / "last" / "training.json"
    process = start_patchword(*resumed)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads(state.read_text())["position"]["step"] >= 4:
                break
        except (OSError, ValueError):
            pass  # not there yet, or being replaced
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = run_patchword(*resumed)
    assert finished.returncode == 0 and "resumed at step" in finished.stderr, finished.stderr
    assert events(tmp_path / "run") == events(tmp_path / "alone")
    ours, theirs = (weights(tmp_path / name / "checkpoints" / "last") for name in ("run", "alone"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_pictures_of_another_data_set_select_the_model(shards, scenes):
    from patchword.data.pictures import Preprocessing
    from patchword.errors import ConfigError
    from patchword.train.data import DataSettings, pixel_inputs, read_splits

    data = DataSettings(
        annotations=str(shards / "train-*.tar"),
        images=str(shards),
        validation=str(scenes / "dataset.json"),
        validation_images=str(scenes / "images"),
    )
    train, selection = read_splits(data)
    assert len(train) == 48 and len(selection) == 12
    inputs = pixel_inputs(data, Preprocessing(size=16), [record.file for record in (*train, *selection)])
    found = inputs.load([train[0].file, selection[0].file], None).pixels_B3HW
    plain = (
        pixel_inputs(
            DataSettings(annotations="unused", images=str(scenes / "images"), cache=str(shards / "cache")),
            Preprocessing(size=16),
            [os.path.basename(selection[0].file)],
        )
        .load([os.path.basename(selection[0].file)], None)
        .pixels_B3HW
    )
    assert found.shape == (2, 3, 16, 16) and (found[1] == plain[0]).all()
    with pytest.raises(ConfigError, match="both say what selects the model"):
        read_splits(data.model_copy(update={"held_out": 4}))
