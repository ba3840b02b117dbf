"""Trains the untouched recipe `own-data` on small data sets; compares it with one caption for all pictures.

    python benchmarks/own_data.py --data dataset_flickr8k.json --images images --out small --seconds 3600
    python benchmarks/own_data.py --out small --table

A data set is some pictures of the val split of a Karpathy file, on which the shipped vision tower was not
trained, with the first captions of each and without splits, as a person would give them: by default sixty, of
20, 60 and 200 pictures, with one to five captions each, in English and in Spanish, each drawn twice. The
Spanish is Apertium's translation (`apt install apertium-eng-spa`), of references as well. A captioner is
scored on 200 pictures of that split which no data set holds, as `patchword predict` captions them; what the
frozen tower makes of these is computed once. The caption for all pictures is the one of the training
captions that scores best on the training pictures. A run that is ended goes on with the next call.

A caption is broken that says nothing, or up to four words twice in a row. A model counts as degenerate that
scores no better than one caption for all, says fewer than ten different captions, or has more than one broken
caption of five.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

import patchword
from patchword.data.pictures import open_picture
from patchword.metrics import score_captions
from patchword.metrics.cider import CiderReward
from patchword.types import VisualFeatures

SCORED = 200
LEAST_DIFFERENT, MOST_BROKEN, LONGEST_LOOP = 10, 0.2, 4
TRANSLATIONS = {"en": None, "es": "eng-spa"}
"""By language: the pair of Apertium that makes it of the English captions."""

Row = dict
"""A picture of the Karpathy file."""


def main() -> None:
    """Train and score what is not yet among the results, or print them as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="Karpathy JSON")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings and results")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 60, 200], help="pictures")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5, 3, 2, 4], help="of each picture")
    parser.add_argument("--languages", nargs="+", choices=TRANSLATIONS, default=list(TRANSLATIONS))
    parser.add_argument("--seeds", type=int, default=2, help="draws of pictures for each kind of data set")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no training begins after them")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    asked = parser.parse_args()
    results = asked.out / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if asked.table:
        print(table(done))
        return
    began, known = time.monotonic(), {row["name"] for row in done}
    rows = [row for row in json.loads(asked.data.read_text())["images"] if row["split"] == "val"]
    random.Random(0).shuffle(rows)
    scored, pool = rows[:SCORED], rows[SCORED:]
    asked.out.mkdir(parents=True, exist_ok=True)
    looked = Looked(scored, asked.images)
    told = {
        language: in_language(rows, pair)
        for language, pair in TRANSLATIONS.items()
        if language in asked.languages
    }
    kinds = itertools.product(range(asked.seeds), asked.captions, asked.sizes, asked.languages)
    for seed, captions, size, language in kinds:
        name = f"{size}-{captions}-{language}-{seed}"
        if name in known:
            continue
        if time.monotonic() - began > asked.seconds:
            break
        drawn = random.Random(seed).sample(pool, size)
        train = {row["filename"]: told[language][row["filename"]][:captions] for row in drawn}
        references = {row["filename"]: told[language][row["filename"]] for row in scored}
        found = measure(train, references, asked.images, asked.out / name, looked)
        found = {"name": name, "pictures": size, "captions": captions, "language": language, **found}
        with open(results, "a") as file:
            file.write(json.dumps(found) + "\n")
        print(found, flush=True)


class Looked:
    """What the frozen tower of `own-data` makes of the scored pictures, computed with the first model: all
    have the same tower."""

    def __init__(self, rows: list[Row], images: Path) -> None:
        self.names, self._images = [row["filename"] for row in rows], images
        self._batches: list[VisualFeatures] = []

    def captions(self, folder: Path) -> dict[str, str]:
        """What the model in a folder says of each picture."""
        model = patchword.load(folder, "cpu")
        if not self._batches:
            for first in range(0, len(self.names), 25):
                names = self.names[first : first + 25]
                pictures = [open_picture(self._images / name) for name in names]
                pixels = np.stack([model.settings.preprocessing.apply(picture) for picture in pictures])
                self._batches.append(model.look(pixels).features)
        with torch.inference_mode():
            said = [one for batch in self._batches for one in model.caption_features(batch, trace=False)]
        return {name: caption.text for name, caption in zip(self.names, said, strict=True)}


def measure(
    train: dict[str, list[str]],
    references: dict[str, list[str]],
    images: Path,
    out: Path,
    looked: Looked,
) -> dict[str, object]:
    """Train on some pictures; what the model, and one caption, reach on the others."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with open(out / "mine.csv", "w", encoding="utf-8", newline="") as file:
        own = csv.writer(file)
        own.writerow(["image", "caption"])
        own.writerows([name, text] for name, texts in train.items() for text in texts)
    began = time.process_time()
    settings = {
        "data.annotations": str(out / "mine.csv"),
        "data.images": str(images),
        "out": str(out / "run"),
    }
    patchword.train("own-data", settings, device="cpu")
    seconds = time.process_time() - began
    shutil.rmtree(out / "run" / "checkpoints")
    said = looked.captions(out / "run" / "best")
    (out / "said.json").write_text(json.dumps(said, ensure_ascii=False, indent=0))
    events = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["event"] == "validation"]
    best = max(validations, key=lambda event: event["scores"]["CIDEr"])
    constant = best_for_all(train)
    return {
        "cider": cider(references, said),
        "constant": cider(references, dict.fromkeys(references, constant)),
        "constant_caption": constant,
        "different": len(set(said.values())),
        "broken": sum(is_broken(text) for text in said.values()) / len(said),
        "steps": validations[-1]["step"],
        "best_step": best["step"],
        "cpu_seconds": round(seconds, 1),
    }


def cider(references: dict[str, list[str]], said: dict[str, str]) -> float:
    """CIDEr-D, with the tokenizer of coco-caption."""
    return score_captions(references, said, metrics=("cider",))["CIDEr"].value


def best_for_all(train: dict[str, list[str]]) -> str:
    """Of the captions the one whose mean CIDEr-D over the pictures is best."""
    words = [[text.lower().split() for text in texts] for texts in train.values()]
    reward = CiderReward(words, end_token=False)
    texts = [text for of_picture in train.values() for text in of_picture]
    means = [reward.reward([text.lower().split()] * len(words), range(len(words))).mean() for text in texts]
    return texts[int(np.argmax(means))]


def is_broken(text: str) -> bool:
    """Nothing said, or the same words twice in a row."""
    words = text.split()
    pieces = ((n, i) for n in range(1, LONGEST_LOOP + 1) for i in range(len(words) - 2 * n + 1))
    return not words or any(words[i : i + n] == words[i + n : i + 2 * n] for n, i in pieces)


def is_degenerate(row: dict) -> bool:
    """See the head of this file."""
    few = row["different"] < LEAST_DIFFERENT
    return few or row["broken"] > MOST_BROKEN or row["cider"] <= row["constant"]


def in_language(rows: list[Row], pair: str | None) -> dict[str, list[str]]:
    """The captions of each picture by its file, translated where a pair of languages is given."""
    texts = [" ".join(sentence["raw"].split()) for row in rows for sentence in row["sentences"]]
    if pair is not None:
        command = ["apertium", "-u", pair]
        answer = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=True)
        translated = answer.stdout.splitlines()
        assert len(translated) == len(texts), f"{len(translated)} lines of {len(texts)}"
        texts = [" ".join(line.split()) for line in translated]
    left = iter(texts)
    return {row["filename"]: list(itertools.islice(left, len(row["sentences"]))) for row in rows}


def table(rows: list[dict]) -> str:
    """Markdown: a line for each kind of data set, the mean and the worst of its draws."""
    head = (
        "| pictures | captions each | language | data sets | CIDEr | worst | one caption for all | "
        "different of 200 | broken | steps | CPU |"
    )
    lines = [head, "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    keys = sorted({(row["pictures"], row["captions"], row["language"]) for row in rows})
    for key in keys:
        of_kind = [row for row in rows if (row["pictures"], row["captions"], row["language"]) == key]
        mean = {
            name: np.mean([row[name] for row in of_kind])
            for name in ("cider", "constant", "steps", "cpu_seconds")
        }
        worst = min(row["cider"] for row in of_kind)
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {len(of_kind)} | {mean['cider']:.3f} | {worst:.3f} | "
            f"{mean['constant']:.3f} | {min(row['different'] for row in of_kind)} | "
            f"{max(row['broken'] for row in of_kind):.0%} | {mean['steps']:.0f} | "
            f"{mean['cpu_seconds']:.0f} s |"
        )
    bad = [row["name"] for row in rows if is_degenerate(row)]
    lines += ["", f"{len(rows)} data sets, degenerate: {', '.join(bad) or 'none'}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
