"""From a trained model to captions and scores, through the command line, on real photographs from installed
packages.
"""

import csv
import json
from pathlib import Path

import pytest
import skimage.data
from PIL import Image


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    return folder


def test_caption_prints_one_line_per_picture(trained, photographs, run_patchword):
    finished = run_patchword("caption", photographs, "--model", trained / "best", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [Path(line.split("\t")[0]).stem for line in lines] == ["astronaut", "chelsea", "coffee", "rocket"]


def test_bad_pictures_do_not_stop_the_others(trained, photographs, run_patchword, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    finished = run_patchword(
        "caption",
        tmp_path,
        tmp_path / "missing.jpg",
        photographs / "coffee.jpg",
        "--model",
        trained / "best",
        "--json",
        "--device",
        "cpu",
    )
    assert finished.returncode == 1
    assert len(finished.stderr.strip().splitlines()) == 3
    for name in ("empty.jpg", "text.png", "missing.jpg"):
        assert name in finished.stderr
    row = json.loads(finished.stdout.splitlines()[0])
    assert {"image", "caption", "score", "tokens"} <= set(row) and row["score"] < 0


def test_csv_goes_on_where_it_stopped(trained, photographs, run_patchword, tmp_path):
    out = tmp_path / "captions.csv"
    first = run_patchword(
        "caption", photographs / "coffee.jpg", "--model", trained / "best", "--out", out, "--device", "cpu"
    )
    assert first.returncode == 0, first.stderr
    with open(out, "a") as file:
        file.write('"interrupted')
    second = run_patchword(
        "caption", photographs, "--model", trained / "best", "--out", out, "--sidecar", "--device", "cpu"
    )
    assert len(second.stdout.splitlines()) == 3
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert sorted(Path(row["image"]).stem for row in rows) == ["astronaut", "chelsea", "coffee", "rocket"]
    assert (photographs / "rocket.txt").read_text().strip() == next(
        row["caption"] for row in rows if "rocket" in row["image"]
    )


def test_explained_page(trained, photographs, run_patchword, tmp_path):
    finished = run_patchword(
        "caption",
        photographs / "coffee.jpg",
        "--model",
        trained / "best",
        "--explain",
        tmp_path / "page.html",
        "--device",
        "cpu",
    )
    assert finished.returncode == 0, finished.stderr
    page = (tmp_path / "page.html").read_text()
    assert (
        "coffee.jpg" in page
        and "data:image" in page
        and "http://" not in page.replace("http://www.w3.org", "")
    )


def test_predict_then_score(trained, scenes, run_patchword, tmp_path):
    out = tmp_path / "predictions.json"
    made = run_patchword(
        "predict",
        trained / "best",
        "--data",
        scenes / "dataset.json",
        "--images",
        scenes / "images",
        "--split",
        "val",
        "--out",
        out,
        "--device",
        "cpu",
    )
    assert made.returncode == 0, made.stderr
    assert len(json.loads(out.read_text())) == 12
    scored = run_patchword(
        "score", out, scenes / "dataset.json", "--split", "val", "--out", tmp_path / "scores.json"
    )
    assert scored.returncode == 0, scored.stderr
    corpus = json.loads((tmp_path / "scores.json").read_text())["corpus"]
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = [row for row in steps if row["event"] == "validation" and row["best"]][-1]
    assert corpus["CIDEr"] == pytest.approx(best["scores"]["CIDEr"], abs=1e-9)


def test_unknown_model_names_what_there_is(run_patchword):
    finished = run_patchword("caption", "x.jpg", "--model", "nothing-like-this", "--device", "cpu")
    assert finished.returncode == 2
    assert "no model at nothing-like-this: give a folder with config.json" in finished.stderr


def test_training_from_stored_features(trained, scenes, config, run_patchword, tmp_path):
    """Features of the trained tower, then a decoder on them; a store of another tower is refused, as is
    training what it replaces.
    """
    store = tmp_path / "store"
    where = (
        "--data",
        scenes / "dataset.json",
        "--images",
        scenes / "images",
        "--out",
        store,
        "--device",
        "cpu",
    )
    made = run_patchword("features", trained / "best", *where)
    assert made.returncode == 0 and "60 pictures; grid_BNC (60, 4, 16) float16" in made.stdout, made.stderr
    common = ("train", config, f"data.features={store}", f"out={tmp_path / 'run'}", "--device", "cpu")
    tuned = run_patchword(*common, f"tower_from={trained / 'best'}")
    assert "data.features replaces the whole tower, and a stage trains it" in tuned.stderr
    foreign = run_patchword(*common, "stage.0.learning_rates.tower=0.0")
    assert "is stale: its tower is" in foreign.stderr
    frozen = run_patchword(
        *common, f"tower_from={trained / 'best'}", "stage.0.learning_rates.tower=0.0", "--resume"
    )
    assert frozen.returncode == 0, frozen.stderr
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()
