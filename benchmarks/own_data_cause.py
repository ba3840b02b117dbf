"""Why a captioner of a small data set scores less than one caption for all pictures.

    python benchmarks/own_data_cause.py --data dataset_flickr8k.json --images images --out small

`--out` is the folder that `own_data.py` filled. Of each degenerate model: the difference to the one caption
for all, with a 95 % interval (2,000 bootstrap resamples over the scored pictures, seed 0); how far the model
is ahead on pictures whose English captions say the first word of `--word`, and on the others; how often it
says that word of either (the second one is the Spanish word); and what training captions score as one caption
for all. Then, of every draw of 20 pictures, what the first English caption of the nearest training picture
scores: nearest by the cosine of mean patches of the same frozen tower, less their mean over the training
pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

import numpy as np
import torch
from own_data import SCORED, TRANSLATIONS, Row, cider, in_language, is_degenerate

import patchword
from patchword.data.pictures import open_picture
from patchword.metrics import score_captions

RESAMPLES, DRAW = 2000, 20


def main() -> None:
    """Print what is said above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Karpathy JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of own_data.py")
    parser.add_argument("--word", nargs=2, default=["dog", "perro"], help="in English and in Spanish")
    asked = parser.parse_args()
    rows = [row for row in json.loads(asked.data.read_text())["images"] if row["split"] == "val"]
    random.Random(0).shuffle(rows)
    scored, pool = rows[:SCORED], rows[SCORED:]
    references = {language: in_language(scored, pair) for language, pair in TRANSLATIONS.items()}
    shown = np.array(
        [any(asked.word[0] in text.lower() for text in texts) for texts in references["en"].values()]
    )
    print(f"{shown.sum()} of {SCORED} scored pictures: {asked.word[0]}")
    results = [json.loads(line) for line in (asked.out / "results.jsonl").read_text().splitlines()]
    for row in filter(is_degenerate, results):
        word = dict(zip(TRANSLATIONS, asked.word, strict=True))[row["language"]]
        print(row["name"], cause(row, asked.out / row["name"], references[row["language"]], shown, word))
    best = asked.out / results[0]["name"] / "run" / "best"
    for seed in sorted({int(row["name"].rsplit("-", 1)[1]) for row in results}):
        drawn = random.Random(seed).sample(pool, DRAW)
        print(f"nearest of {DRAW} pictures, draw {seed}: {nearest(best, drawn, scored, asked.images):.3f}")


def cause(row: dict, folder: Path, references: dict[str, list[str]], shown: np.ndarray, word: str) -> str:
    """One degenerate model beside its caption for all."""
    said = json.loads((folder / "said.json").read_text())
    one, other = (
        np.array([*score_captions(references, captions, metrics=("cider",))["CIDEr"].per_item.values()])
        for captions in (said, dict.fromkeys(references, row["constant_caption"]))
    )
    ahead, generator = one - other, np.random.default_rng(0)
    means = [ahead[generator.integers(0, len(ahead), len(ahead))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    names = np.array([word in said[name].lower() for name in references])
    with open(folder / "mine.csv", encoding="utf-8", newline="") as file:
        own = list(csv.DictReader(file))
    alone = [cider(references, dict.fromkeys(references, line["caption"])) for line in own]
    training = len({line["image"] for line in own if word in line["caption"].lower()})
    return (
        f"ahead {ahead.mean():+.3f} [{low:+.3f}, {high:+.3f}], with {word} {ahead[shown].mean():+.3f}, "
        f"without {ahead[~shown].mean():+.3f}; said of {names[shown].mean():.0%} with, "
        f"{names[~shown].mean():.0%} without, "
        f"in {training} training pictures; training captions alone {np.mean(alone):.3f} in the mean"
    )


def nearest(model: Path, drawn: list[Row], scored: list[Row], images: Path) -> float:
    """CIDEr of the first caption of the nearest drawn picture."""
    captioner = patchword.load(model, "cpu")

    def seen(rows: list[Row]) -> torch.Tensor:
        parts = []
        for first in range(0, len(rows), 25):
            pictures = [open_picture(images / row["filename"]) for row in rows[first : first + 25]]
            pixels = np.stack([captioner.settings.preprocessing.apply(picture) for picture in pictures])
            parts.append(captioner.look(pixels).features.grid_BNC.float().mean(1))
        return torch.cat(parts)

    known_KC = seen(drawn)
    cosines = [
        torch.nn.functional.normalize(one - known_KC.mean(0), dim=1) for one in (seen(scored), known_KC)
    ]
    best = (cosines[0] @ cosines[1].T).argmax(1).tolist()
    said = {
        row["filename"]: drawn[place]["sentences"][0]["raw"] for row, place in zip(scored, best, strict=True)
    }
    return cider({row["filename"]: [one["raw"] for one in row["sentences"]] for row in scored}, said)


if __name__ == "__main__":
    main()
