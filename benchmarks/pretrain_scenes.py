"""What pre-trained and few-shot models reach on drawn scenes: tables from runs that are there.

python benchmarks/pretrain_scenes.py flamingo RUN... --documents data/documents
python benchmarks/pretrain_scenes.py vilbert RUN...
python benchmarks/pretrain_scenes.py data2vec RUN...

One run per seed; each row is the mean and the standard deviation over the runs. The commands that make the runs
stand in the configurations flamingo-scenes, vilbert-scenes and data2vec-scenes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FIRST = 50_000
"""Scenes of the split val from here on are in no file that the configurations write."""


def row(name: str, values: Sequence[float]) -> str:
    """A line of the table."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"| {name} | {statistics.fmean(values):.3f} ± {spread:.3f} | {', '.join(f'{v:.3f}' for v in values)} |"


def table(found: Mapping[str, Sequence[float]]) -> None:
    """Prints all rows."""
    print("| | mean ± sd | runs |\n| --- | --: | --- |")
    for name, values in found.items():
        print(row(name, values))


def flamingo(runs: Sequence[Path], folder: Path) -> dict[str, list[float]]:
    """Of documents of split val: is the last text said word by word, and are colour and shape right."""
    from patchword.data.formats.interleaved import read_documents
    from patchword.data.scenes.world import COLOURS, SHAPES
    from patchword.tasks.interleave.model import Shot, load_few_shot
    from patchword.tasks.interleave.train import captioned

    documents = [one for one in read_documents(folder / "documents.jsonl") if one.split == "val"]
    found: dict[str, list[float]] = {}
    for run in runs:
        model = load_few_shot(run / "best", "cpu")
        for shots in (0, 1, 2, 4):
            exact, content, colours, shapes = [], [], [], []
            for document in documents:
                *earlier, (file, text) = captioned(document)[-shots - 1 :]
                given = [Shot(folder / "images" / name, words) for name, words in earlier]
                said = model.ask(folder / "images" / file, "", given)[0].split()
                true = set(text.split())
                colours.append({word for word in said if word in COLOURS} == true & set(COLOURS))
                shapes.append({word for word in said if word in SHAPES} == true & set(SHAPES))
                content.append(colours[-1] and shapes[-1])
                exact.append(said == text.split())
            for name, values in (
                ("exact", exact),
                ("colour and shape right", content),
                ("colour right", colours),
                ("shape right", shapes),
            ):
                found.setdefault(f"{shots} shots, {name}", []).append(float(np.mean(values)))
    return found


def _scenes(count: int) -> tuple[list, list[Image.Image]]:
    from patchword.data.scenes import draw, make_scenes

    scenes = make_scenes(count, 1, "val", start=FIRST)
    return scenes, [Image.fromarray(pixels) for pixels in draw(scenes, 24)]


def vilbert(runs: Sequence[Path], count: int = 400) -> dict[str, list[float]]:
    """Hidden colours with and without the picture, own texts against those of scenes that they are false of,
    and against the own text with one attribute exchanged, all by what is true of the scenes."""
    from patchword.data.scenes import entails
    from patchword.data.scenes.world import COLOURS, SHAPES
    from patchword.tasks.pretrain.model import load_pretrained

    scenes, pictures = _scenes(count)
    rng = np.random.default_rng(0)
    texts = [f"a {scene.things[0].colour} {scene.things[0].shape}" for scene in scenes]
    hard = []
    for scene in scenes:
        kind, names = ("colour", COLOURS) if rng.random() < 0.5 else ("shape", SHAPES)
        others = [name for name in names if name != getattr(scene.things[0], kind)]
        changed = scene.things[0]._replace(**{kind: others[int(rng.integers(len(others)))]})
        hard.append(f"a {changed.colour} {changed.shape}")
    found: dict[str, list[float]] = {}
    for run in runs:
        model = load_pretrained(run / "best", "cpu")
        own = model.score(pictures, texts)
        others = model.score(pictures, texts[1:] + texts[:1])
        false = np.array(
            [not entails(s, t) for s, t in zip(scenes, texts[1:] + texts[:1], strict=True)]
        )
        above = own[:, None] > others[false][None]
        scores = {
            "pair AUC": above.mean(),
            "own text above hard false one": (own > model.score(pictures, hard)).mean(),
        }
        seen = model.features(pictures)
        for name, features in (
            ("hidden colour, picture", seen),
            ("hidden colour, no picture", torch.zeros_like(seen)),
            ("hidden colour, another picture", seen.roll(1, 0)),
        ):
            named = model.fill([text.split() for text in texts], [1] * len(texts), features)
            scores[name] = np.mean(
                [COLOUR.get(word, word) == s.things[0].colour for word, s in zip(named, scenes, strict=True)]
            )
        for name, value in scores.items():
            found.setdefault(name, []).append(float(value))
    return found


COLOUR = {"crimson": "red", "violet": "purple", "turquoise": "cyan"}


def data2vec(runs: Sequence[Path]) -> dict[str, list[float]]:
    """What the last validation of each run says: the targets' deviation, and how much of them is explained."""
    found: dict[str, list[float]] = {}
    for run in runs:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if line["event"] == "validation"][-1]
        for name in ("target_deviation", "explained"):
            found.setdefault(name, []).append(last["scores"][name])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("flamingo", "vilbert", "data2vec"))
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--documents", type=Path, default=Path("data/documents"))
    given = parser.parse_args()
    if given.what == "flamingo":
        table(flamingo(given.runs, given.documents))
    else:
        table(vilbert(given.runs) if given.what == "vilbert" else data2vec(given.runs))
