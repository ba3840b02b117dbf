"""Trains the untouched recipe `own-data` on small data sets; compares it with one caption for all pictures.

    python benchmarks/own_data.py --data dataset_flickr8k.json --images images --out small

A data set is some pictures of the val split of a Karpathy file, on which the shipped vision tower was not
trained, with one or more captions each and without splits, as a person would give them. Its captioner is
scored on 200 other pictures of that split. The caption for all pictures is the one of the training captions
that scores best on the training pictures. Each line of output is one data set: CIDEr of both, and how many
different captions the model says.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from patchword.metrics import score_captions

SCORED = 200


def main() -> None:
    """Print one line for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Karpathy JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 60], help="pictures")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5], help="captions of each picture")
    parser.add_argument("--seeds", type=int, default=1, help="draws of pictures for each size")
    asked = parser.parse_args()
    rows = [row for row in json.loads(asked.data.read_text())["images"] if row["split"] == "val"]
    for size in asked.sizes:
        for captions in asked.captions:
            for seed in range(asked.seeds):
                drawn = random.Random(seed).sample(rows, size + SCORED)
                measure(
                    drawn[:size],
                    drawn[size:],
                    captions,
                    asked.images,
                    asked.out / f"{size}-{captions}-{seed}",
                )


def measure(train: list[dict], scored: list[dict], captions: int, images: Path, out: Path) -> None:
    """Train on the first pictures, say what the model and one caption reach on the others."""
    out.mkdir(parents=True, exist_ok=True)
    own, others = out / "mine.csv", out / "others.csv"
    write(own, train, captions)
    write(others, scored, 5)
    began = time.monotonic()
    patchword("train", "own-data", f"data.annotations={own}", f"data.images={images}", f"out={out / 'run'}")
    minutes = (time.monotonic() - began) / 60
    where = ("--data", others, "--images", images, "--split", "all", "--out", out / "said.json")
    patchword("predict", out / "run" / "best", *where)
    said = {row["image_id"]: row["caption"] for row in json.loads((out / "said.json").read_text())}
    references = {row["filename"]: told(row, 5) for row in scored}
    known = {row["filename"]: told(row, captions) for row in train}
    best = max((text for texts in known.values() for text in texts), key=lambda text: cider(known, text))
    what = f"{len(train)} pictures, {captions} captions each: CIDEr {cider(references, said):.3f}"
    others = f"one caption for all {cider(references, best):.3f}"
    different = f"{len(set(said.values()))} different captions of {len(said)}"
    print(f"{what}, {others}, {different}, {minutes:.1f} minutes", flush=True)


def cider(references: dict[str, list[str]], said: dict[str, str] | str) -> float:
    """CIDEr of captions, or of one caption for all pictures."""
    predictions = dict.fromkeys(references, said) if isinstance(said, str) else said
    return score_captions(references, predictions, metrics=("cider",))["CIDEr"].value


def told(row: dict, captions: int) -> list[str]:
    """The first captions of a picture."""
    return [sentence["raw"] for sentence in row["sentences"][:captions]]


def write(path: Path, rows: list[dict], captions: int) -> None:
    """A table of pictures and captions, without splits."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        table.writerows([row["filename"], text] for row in rows for text in told(row, captions))


def patchword(*words: object) -> None:
    """Call the command as a person does; its lines go to standard error."""
    command = [sys.executable, "-m", "patchword", *map(str, words), "--device", "cpu"]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
