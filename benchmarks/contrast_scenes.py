"""InfoNCE, UniCL and label smoothing where many captions of a batch are the same words: drawn scenes.

python benchmarks/contrast_scenes.py --out runs/contrast

Scenes of one thing are captioned by colour and shape alone, "a red ring": 64 captions, each about twice in a
batch of 128. InfoNCE takes the other picture of the same words for a false one, UniCL for a true one. The
towers are those of eyes-scenes, trained once for each loss and seed; a class is the vector of its caption,
pictures are other ones of the split val.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

import patchword
from patchword.data.scenes import draw, make_scenes, write_scenes
from patchword.data.scenes.world import COLOURS, SHAPES
from patchword.tasks.retrieve.load import load_two_towers

LOSSES = {
    "InfoNCE": {},
    "InfoNCE, smoothing 0.1": {"two_towers.smoothing": 0.1},
    "UniCL": {"two_towers.loss": "unicl"},
}
SIDE, TRAIN, VAL, ASKED = 24, 3000, 100, 1000
FIRST = 50_000
"""Scenes of the split val from here on are asked about; none of them is in the files."""


def named(scene) -> str:
    """The caption of a scene."""
    return f"a {scene.things[0].colour} {scene.things[0].shape}"


def write_data(folder: Path) -> Path:
    """Drawn scenes with one caption each; returns the annotations."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        write_scenes(folder, count, 1, SIDE, split)
    file = folder / "dataset.json"
    found = json.loads(file.read_text())
    for split, count in (("train", TRAIN), ("val", VAL)):
        captions = {f"{scene.name}.png": named(scene) for scene in make_scenes(count, 1, split)}
        for entry in found["images"]:
            if entry["split"] == split:
                text = captions[entry["filename"]]
                entry["sentences"] = [{"raw": text, "tokens": text.split()}]
    file.write_text(json.dumps(found))
    return file


def trained(out: Path, data: Path, loss: str, seed: int, epochs: int) -> Path:
    """The run of a loss and a seed, trained where it is not there."""
    run = out / f"{loss.replace(' ', '-').replace(',', '')}-{seed}"
    if not (run / "report.html").exists():
        settings = {
            "data.annotations": str(data),
            "data.images": str(data.parent / "images"),
            "data.cache": str(out / "cache"),
            "stage.0.epochs": epochs,
            "stage.0.batch": 128,
            "stage.0.captions_per_picture": 1,
            "stage.0.validate_every": epochs,
            "seed": seed,
            "out": str(run),
        }
        patchword.train("eyes-scenes", settings | LOSSES[loss], device="cpu")
    return run


def measured(run: Path) -> tuple[float, float, float]:
    """Share of scenes whose nearest caption is right, the same of their shape, and the last loss."""
    model = load_two_towers(run / "best", "cpu")
    scenes = make_scenes(ASKED, 1, "val", start=FIRST)
    texts = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    pictures = [Image.fromarray(pixels) for pixels in draw(scenes, SIDE)]
    nearest = (model.embed_images(pictures) @ model.embed_texts(texts).T).argmax(1)
    said = [texts[place].split() for place in nearest]
    truth = [named(scene).split() for scene in scenes]
    both = float(np.mean([one == two for one, two in zip(said, truth, strict=True)]))
    shapes = float(np.mean([one[2] == two[2] for one, two in zip(said, truth, strict=True)]))
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [line["losses"]["contrast"] for line in lines if line["event"] == "step"]
    return both, shapes, statistics.fmean(losses[-3:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    data = write_data(given.out / "data")
    print("| loss | colour and shape right | seeds | shape right | last training loss |")
    print("| --- | --: | --- | --: | --: |")
    for loss in LOSSES:
        rows = [measured(trained(given.out, data, loss, seed, given.epochs)) for seed in given.seeds]
        both, shapes, last = zip(*rows, strict=True)
        spread = statistics.stdev(both) if len(both) > 1 else 0.0
        each = ", ".join(f"{value:.3f}" for value in both)
        print(
            f"| {loss} | {statistics.fmean(both):.3f} ± {spread:.3f} | {each} "
            f"| {statistics.fmean(shapes):.3f} | {statistics.fmean(last):.2f} |",
            flush=True,
        )
