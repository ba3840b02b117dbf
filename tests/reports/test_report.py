import json

import numpy as np
import pytest
from PIL import Image

from patchword.reports.report import training_report


def step(at, stage="joint", **more):
    return {
        "event": "step",
        "stage": stage,
        "step": at,
        "epoch": 0,
        "loss": 4.0 - at / 100,
        "losses": {"loss": 3.0},
        **more,
    }


def validation(at, cider, stage="joint"):
    scores = {"CIDEr": cider, "Bleu_4": 0.1234}
    return {
        "event": "validation",
        "stage": stage,
        "step": at,
        "epoch": 0,
        "scores": scores,
        "teacher_forced": {"top5": 0.6, "loss": 3},
    }


@pytest.fixture
def write(tmp_path):
    def fill(events, torn="", **files):
        (tmp_path / "predictions").mkdir(exist_ok=True)
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + torn)
        for name, value in {"config": {"seed": 1}, "samples": [], **files}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return tmp_path

    return fill


def test_a_finished_run(write, parse):
    events = [
        step(at, gradient_norm=1.5, images_per_second=80.0, seconds=at * 60, learning_rates={"decoder": 1e-4})
        for at in range(100)
    ]
    events += [validation(50, 0.2), validation(100, 0.35)]
    folder = write(events, config={"model": {"width": 512}})
    page = parse(training_report(folder))
    text = " ".join(page.text)
    titles = (
        "Loss",
        "CIDEr of decoded captions",
        "Other scores of decoded captions",
        "Under teacher forcing",
        "Learning rates",
    )
    for title in (
        *titles,
        "Gradient norm",
        "Images per second",
        "model.width",
        "512",
        "0.3500",
        "0.1234",
        "1 h 39 min",
    ):
        assert title in text
    assert "best CIDEr, at step 100" in text and "0.350" in text
    assert "warning" not in training_report(folder).split("</style>")[1], "a sound run shows no warning"
    assert page.tags.count("figure") == 7


@pytest.mark.parametrize("missing", [True, False])
def test_nothing_there(missing, tmp_path, parse):
    text = " ".join(parse(training_report(tmp_path / "nowhere" if missing else tmp_path)).text)
    assert "No step was recorded" in text and "metrics.jsonl is not there." in text
    assert ("There is no folder" in text) == missing


def test_a_damaged_run_is_still_a_page(write, parse):
    folder = write(
        [
            step(1, loss="nan"),
            {"event": "step"},
            [1],
            step(2, losses=None, epoch=None, learning_rates=[1]),
            {"event": "other", "step": 1},
        ],
        torn='{"event": "step", "st',
    )
    (folder / "config.json").write_text("[1]")
    (folder / "samples.json").write_bytes(b"\xff\xfe")
    (folder / "predictions" / "val.json").write_text('[1, {"image_id": 1}]')
    text = " ".join(parse(training_report(folder)).text)
    assert "1 line of metrics.jsonl left out, not JSON (line 6)" in text
    assert "config.json holds a list; expected a dict" in text and "samples.json cannot be read" in text
    assert "1 of 1 captions in predictions/val.json are empty" in text
    assert "There was no validation yet" in text


def test_skipped_steps_and_a_lost_best_are_said(write, parse):
    events = [step(1), validation(1, 0.5), *(validation(at, 0.4) for at in (2, 3, 4))]
    events += [{"event": "skipped", "step": at, "image_ids": [7, 8], "loss": "nan"} for at in (5, 6)]
    text = " ".join(parse(training_report(write(events))).text)
    assert "2 steps skipped for a loss that was not finite, last at step 6 (image ids: 7, 8)" in text
    assert "CIDEr was best at step 1; none of the 3 validations since was better" in text


def test_a_resumed_step_counts_once_and_stages_follow_each_other(write, parse):
    events = [
        step(1),
        step(2, loss=99.0),
        step(2, loss=1.0),
        validation(2, 0.1),
        step(1, "self_critical", loss=0.5),
    ]
    events += [validation(2, 0.3, "self_critical")]
    page = training_report(write(events))
    text = " ".join(parse(page).text)
    assert "99" not in text and "self_critical" in text
    assert "best CIDEr, at step 4" in text, "step 2 of the second stage is the fourth"


def test_long_runs_stay_small(write):
    assert len(training_report(write([step(at) for at in range(3_000)]))) < 60_000


def test_samples_and_pictures(write, parse, tmp_path):
    samples = [
        {"image_id": 1, "file": "ok.png", "caption": "a <dog>", "references": ["it & it"]},
        {"image_id": 2, "file": "../outside.png", "caption": "no"},
        {"image_id": 3, "file": "gone.png", "caption": "no"},
        {"image_id": 4, "file": "text.png", "caption": "no"},
    ]
    folder = write([step(1)], samples=samples)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in (pictures / "ok.png", tmp_path / "outside.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (pictures / "text.png").write_text("no picture")
    assert parse(training_report(folder)).images == [], "no picture unless asked for"
    page = parse(training_report(folder, pictures))
    text = " ".join(page.text)
    assert len(page.images) == 1 and "a <dog>" in text and "it & it" in text
    assert (
        "outside of the folder" in text
        and "gone.png: does not exist" in text
        and "text.png: not a picture of a known kind" in text
    )


def test_kind_14_a_wide_table_scrolls_and_is_whole_on_paper():
    from patchword.html.page import look, page, table

    wide = page("wide", [table([f"column {n}" for n in range(60)], [["x" * 30] * 60])])
    inside = wide.split("<table>")[0].rsplit("<div", 1)[1]
    assert 'class="scroll"' in inside and 'tabindex="0"' in inside  # reached by the keyboard as well
    rules = look().split(".patchword .scroll {")
    assert "overflow-x: auto" in rules[1] and "overflow: visible" in rules[2] and "@media print" in rules[1]
