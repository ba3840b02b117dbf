import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from patchword.cli import app
from patchword.errors import ConfigError, DataError
from patchword.reports.compare import write_comparison
from patchword.reports.configurations import configurations
from patchword.reports.runs import best_validation, read_run, training_seconds
from patchword.reports.sides import stored_numbers

REFERENCES = {
    "1": ["a dog runs on the grass", "a dog on grass"],
    "2": ["two men play a game", "men playing"],
    "3": ["a red car in a street"],
}


def step(at, **more):
    return {
        "event": "step",
        "stage": "words",
        "step": at,
        "epoch": 0,
        "loss": 4.0 - at / 100,
        "images_per_second": 10.0,
        **more,
    }


def validation(at, epoch, cider, best, **scores):
    forced = {"loss": 3.0 - cider, "top5": cider / 2, "bleu4": 0.05}
    scores = {"CIDEr": cider, "Bleu_4": 0.1, **scores}
    event = {
        "event": "validation",
        "stage": "words",
        "step": at,
        "epoch": epoch,
        "seconds": 6.0,
        "best": best,
    }
    return {**event, "scores": scores, "teacher_forced": forced}


def run_folder(folder, ciders, captions, clocked=True, weights=None, **config):
    """One validation for each CIDEr at steps 50, 100, ...; `captions` by validation, each a list for the
    images 1, 2, 3.
    """
    (folder / "predictions").mkdir(parents=True)
    events = []
    for epoch, cider in enumerate(ciders):
        for at in range(50 * epoch, 50 * epoch + 50, 10):
            events.append(
                step(at, losses={"cross_entropy": 3.0}, **({"seconds": float(at)} if clocked else {}))
            )
        events.append(validation(50 * (epoch + 1), epoch, cider, best=cider > max([-1.0, *ciders[:epoch]])))
        rows = [{"image_id": i, "caption": said} for i, said in enumerate(captions[epoch], 1)]
        (folder / "predictions" / f"words-{epoch + 1:03d}.json").write_text(json.dumps(rows))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "config.json").write_text(json.dumps({"stage": [{"name": "words", "batch": 20}], **config}))
    samples = [
        {"image_id": i, "file": f"{i}.png", "caption": "of the last", "references": REFERENCES[str(i)]}
        for i in (1, 2)
    ]
    (folder / "samples.json").write_text(json.dumps(samples))
    if weights:
        (folder / "best").mkdir()
        save_file(
            {key: np.zeros(shape, kind) for key, (shape, kind) in weights.items()},
            folder / "best" / "model.safetensors",
        )
    return folder


GOOD = ["a dog runs on the grass", "two men play a game", "a red car"]
POOR = ["a man in a shirt", "a man in a shirt", "a man in a shirt"]


@pytest.fixture
def runs(tmp_path):
    weights = {
        "tower.a": ((1000, 100), np.float32),
        "captioner.b": ((500, 100), np.float16),
        "captioner.counter": ((7,), np.int64),
    }
    first = run_folder(tmp_path / "plain", [0.2, 0.1], [POOR, POOR], weights=weights)
    second = run_folder(tmp_path / "fused", [0.3, 0.4, 0.35], [POOR, GOOD, POOR], clocked=False)
    return first, second


def test_the_page_and_the_table(runs, tmp_path, parse):
    page = parse(write_comparison(runs, tmp_path / "out").read_text())
    text = " ".join(page.text)
    for said in (
        "Decoded captions",
        "Under teacher forcing",
        "not comparable with decoded captions",
        "top-5 accuracy",
        "BLEU-4",
    ):
        assert said in text
    assert page.tags.count("figure") == 3 and len(page.images) == 1, "the bars"
    assert "a dog runs on the grass" in text and "a man in a shirt" in text, (
        "captions of the best validation, side by side"
    )
    assert "of the last" not in text
    written = (tmp_path / "out" / "table.md").read_text()
    assert "| plain | 50 | 0.2 | **0.1** | 0.1 | 0.05 | 1.6 |" in written
    assert re.search(r"\| fused \| 100 \| \*\*0.4\*\* \| \*\*0.1\*\* \| – \| – \| ", written)
    assert "Minutes estimated from images per second, not measured: fused." in written
    decoded, forced = written.split("### Under teacher forcing")
    assert "loss" not in decoded.split("\n")[2] and "CIDEr" not in forced
    assert "| fused | **2.6** | **0.2** | **0.05** |" in forced, "a lower loss is better"
    for file, begins in (("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")):
        assert (tmp_path / "out" / file).read_bytes().startswith(begins)


def test_time(runs, tmp_path):
    plain, fused = map(read_run, runs)
    assert training_seconds(plain) == (
        90 + 6,
        True,
    )  # the clock of the last step, and the validation after it
    seconds, measured = training_seconds(fused)
    assert not measured and seconds == pytest.approx(140 * 20 / 10 + 3 * 6)
    events = [
        step(at, seconds=clock) for at, clock in ((0, 1.0), (10, 11.0), (20, 2.0), (30, 12.5))
    ]  # resumed before step 20
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert training_seconds(read_run(tmp_path)) == (11.0 + 12.5, True)
    assert best_validation(plain)["at"] == 50


def test_scored_anew_with_intervals(runs, tmp_path):
    write_comparison(runs, tmp_path / "out", REFERENCES)
    written = (tmp_path / "out" / "table.md").read_text()
    head = written.split("\n")[2]
    assert all(f"| {metric} |" in head for metric in ("Bleu_4", "ROUGE_L", "CIDEr", "length", "vocabulary"))
    assert "### fused against plain" in written and "Paired bootstrap over pictures" in written
    rows = dict(
        zip(head.split(" | "), re.findall(r"^\| fused.*", written, re.M)[0].split(" | "), strict=True)
    )
    assert rows["ROUGE_L"].startswith("**") and not rows["length"].startswith("**")


def test_predictions_of_the_split_go_first(runs, tmp_path):
    rows = [{"image_id": int(image), "caption": captions[0]} for image, captions in REFERENCES.items()]
    (runs[0] / "predictions" / "val.json").write_text(json.dumps(rows))
    write_comparison(runs, tmp_path / "out", REFERENCES)
    assert "| plain | 50 | **1** |" in (tmp_path / "out" / "table.md").read_text()


def test_pictures_are_embedded_only_when_asked(runs, tmp_path, parse):
    Image.new("RGB", (20, 10)).save(tmp_path / "1.png")
    result = CliRunner().invoke(
        app, ["compare", *map(str, runs), "--out", str(tmp_path / "out"), "--images", str(tmp_path)]
    )
    assert result.output.strip() == str(tmp_path / "out" / "compare.html")
    page = parse((tmp_path / "out" / "compare.html").read_text())
    assert len(page.images) == 2 and any("the picture cannot be shown" in piece for piece in page.text)


def test_runs_of_one_name_are_told_apart(tmp_path, parse):
    for place in ("x", "y"):
        run_folder(tmp_path / place / "run", [0.1], [POOR])
    text = " ".join(
        parse(
            write_comparison([tmp_path / "x" / "run", tmp_path / "y" / "run"], tmp_path / "out").read_text()
        ).text
    )
    assert str(tmp_path / "x" / "run") in text and str(tmp_path / "y" / "run") in text


def test_a_run_without_validation(runs, tmp_path, parse):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "metrics.jsonl").write_text(json.dumps(step(0)) + "\n")
    text = " ".join(parse(write_comparison([*runs, tmp_path / "young"], tmp_path / "out").read_text()).text)
    assert "young: there was no validation yet." in text


def test_refusals(runs, tmp_path):
    with pytest.raises(ConfigError, match="is no run folder: it has no metrics.jsonl"):
        write_comparison([tmp_path], tmp_path / "out")
    with pytest.raises(DataError):
        write_comparison(runs, tmp_path / "out", {**REFERENCES, "4": ["more"]})
    save_file(
        {"vision.a": np.zeros(3), "text_projection.b": np.zeros(2), "log_scale": np.zeros(())},
        tmp_path / "two",
    )
    assert stored_numbers(tmp_path / "two") == {"tower": 3, "text": 3}
    (tmp_path / "torn").write_bytes(b"\x08\0\0\0\0\0\0\0{{{")
    with pytest.raises(DataError, match="no readable header"):
        stored_numbers(tmp_path / "torn")


@pytest.fixture
def seeded(tmp_path):
    """Two configurations: small with seeds 1 and 2 (CIDEr 0.2 and 0.4), large with one seed; captions/s of
    the first alone.
    """
    folders = [
        run_folder(tmp_path / "small-1", [0.2], [POOR], seed=1, out="a", width=8),
        run_folder(tmp_path / "large-1", [0.5], [GOOD], seed=1, out="b", width=16),
        run_folder(tmp_path / "small-2", [0.4], [GOOD], seed=2, out="c", width=8),
    ]
    path = folders[0] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"best": true', '"captions_per_second": 31.25, "best": true'))
    return folders


def test_seeds_of_one_configuration_are_taken_together(seeded, tmp_path, parse):
    page = parse(write_comparison(seeded, tmp_path / "out").read_text())
    written = (tmp_path / "out" / "table.md").read_text()
    # mean 0.3; standard deviation of 0.2 and 0.4 is 0.1 * sqrt(2)
    assert (
        "| small | 2 | 0.3 ± 0.14 | 0.1 ± 0 |" in written.replace("\u00a0", " ")
        and "| large-1 | 1 | 0.5 | 0.1 |" in written
    )
    assert re.search(r"^\| small-1 .*\| 31.25 \|$", written, re.M) and re.search(
        r"^\| large-1 .*\| – \|$", written, re.M
    )
    assert "Captions per second: encoder and search" in written and "Configurations against" not in written
    text = " ".join(page.text)
    assert "Of several seeds of one configuration, the first." in text
    assert (tmp_path / "out" / "bars.png").read_bytes().startswith(b"\x89PNG") and len(page.images) == 1


def test_configurations_are_compared_over_seeds(seeded, tmp_path):
    """A picture's score is the mean of its seeds: small says POOR and GOOD, large GOOD, so large gains half
    of their difference.
    """
    write_comparison(seeded, tmp_path / "out", REFERENCES)
    written = (tmp_path / "out" / "table.md").read_text()
    place = written.split("\n")[2].split(" | ").index("CIDEr")
    rows = [
        re.search(rf"^\| {name} \|.*", written, re.M)[0].split(" | ")
        for name in ("small-1", "small-2", "large-1")
    ]
    poor, good, large = (float(row[place].strip("*")) for row in rows)
    row = re.search(r"^\| large-1 \| CIDEr \| (.*) \|$", written, re.M)[1].split(" | ")
    assert "### Configurations against small" in written and "small-2 against" not in written
    assert float(row[0]) == pytest.approx(large - (poor + good) / 2, rel=1e-3)
    assert float(row[1]) <= float(row[0]) <= float(row[2])


def test_what_is_one_configuration():
    """Runs are one where all but seed, out and description agree, and none is where no seed stands in the
    configuration.
    """
    configs = [{"seed": 1, "out": "x"}, {"seed": 2, "description": "again"}, {"seed": 1, "width": 3}, {}, {}]
    names = ["fused-m32-10", "fused-m32-11", "wide", "p", "q"]
    assert configurations(names, configs) == [("fused-m32", (0, 1)), ("wide", (2,)), ("p", (3,)), ("q", (4,))]
    both = configurations(["a-1", "a-2", "a-3", "a-4"], [{"seed": n, "width": n // 2} for n in (2, 3, 4, 5)])
    assert [one.name for one in both] == ["a-1", "a-3"]  # both would be called a


def test_bars_of_one_configuration_are_not_drawn(tmp_path):
    write_comparison([run_folder(tmp_path / "one", [0.2], [POOR])], tmp_path / "out")
    assert not (tmp_path / "out" / "bars.png").exists()
