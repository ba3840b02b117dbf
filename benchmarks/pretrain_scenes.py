"""What pre-trained and few-shot models reach on drawn scenes: tables from runs that are there.

python benchmarks/pretrain_scenes.py flamingo RUN... --documents data/documents
python benchmarks/pretrain_scenes.py vilbert RUN...
python benchmarks/pretrain_scenes.py pointing RUN... --scenes data/scenes24-two
python benchmarks/pretrain_scenes.py data2vec RUN...
python benchmarks/pretrain_scenes.py labels RUN... --out runs/few-labels        # trains: pre-trained, scratch
python benchmarks/pretrain_scenes.py answers RUN... --out runs/few-answers      # trains: pre-trained, scratch

One run per seed; each row is the mean and the standard deviation over the runs. The commands that make the
runs stand in the configurations flamingo-scenes, vilbert-scenes and data2vec-scenes.
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
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"| {name} | {statistics.fmean(values):.3f} ± {spread:.3f} | {each} |"


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
        false = np.array([not entails(s, t) for s, t in zip(scenes, texts[1:] + texts[:1], strict=True)])
        above = own[:, None] > others[false][None]
        scores = {
            "pair AUC": above.mean(),
            "own text above hard false one": (own > model.score(pictures, hard)).mean(),
        }
        scores |= _hidden_colours(model, scenes, pictures)
        for name, value in scores.items():
            found.setdefault(name, []).append(float(value))
    return found


@torch.inference_mode()
def _hidden_colours(model, scenes: list, pictures: list[Image.Image]) -> dict[str, float]:
    """How often the colour is named in "a small [] ring": a synonym counts as its colour."""
    from patchword.data.captions import padded
    from patchword.layers.regions import five

    vocabulary, vilbert = model.vocabulary, model.model.vilbert
    texts = [f"a {one.size} {one.colour} {one.shape}" for one in (scene.things[0] for scene in scenes)]
    ids_BL, _ = padded([vocabulary.encode(text) for text in texts], vocabulary.special, ends=True)
    hidden_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    hidden_BL[:, 3] = True  # start, a, size, colour
    features_BNF, _, boxes_N4 = model.see(pictures)
    places_BN5 = five(boxes_N4).expand(len(texts), -1, -1)
    shown = {"picture": features_BNF, "no picture": torch.zeros_like(features_BNF)}
    shown["another picture"] = features_BNF.roll(1, 0)
    found = {}
    for name, features in shown.items():
        real_BL = ids_BL != vocabulary.special.pad
        streams = vilbert(ids_BL, real_BL, features, places_BN5, None, hidden_BL)
        best = vilbert.word_head(streams.text_BLC[:, 3]).argmax(-1).tolist()
        said = [vocabulary.tokens([number])[0] for number in best]
        right = [SAME.get(word, word) == one.things[0].colour for word, one in zip(said, scenes, strict=True)]
        found[f"hidden colour, {name}"] = float(np.mean(right))
    return found


SAME = {"crimson": "red", "violet": "purple", "turquoise": "cyan"}


def pointing(runs: Sequence[Path], folder: Path) -> dict[str, list[float]]:
    """Of how many phrases of split val the best region overlaps the box by half, by what `point` says."""
    from patchword.layers.regions import overlaps
    from patchword.tasks.pretrain.phrases import split_phrases
    from patchword.tasks.pretrain.point import pointing_model

    _, asked = split_phrases(folder / "phrases.jsonl", 0)
    found: dict[str, list[float]] = {}
    for run in runs:
        model = pointing_model(str(run / "best"), "cpu")
        hits = []
        for one in asked:
            best = model.point(folder / "images" / one.image, one.phrase, 1)[0].box
            hits.append(float(overlaps(torch.tensor([best]), torch.tensor(one.box))) >= 0.5)
        kind = "tuned on phrases" if model.settings.points else "not tuned"
        found.setdefault(f"{len(asked)} phrases found, {kind}", []).append(float(np.mean(hits)))
    return found


def data2vec(runs: Sequence[Path]) -> dict[str, list[float]]:
    """What the last validation of each run says: deviation of the targets, and how much is explained."""
    found: dict[str, list[float]] = {}
    for run in runs:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if line["event"] == "validation"][-1]
        for name in ("target_deviation", "explained"):
            found.setdefault(name, []).append(last["scores"][name])
    return found


def labels(runs: Sequence[Path], out: Path) -> dict[str, list[float]]:
    """Shapes from 10 % of the labels: a tower of each run against one that nothing taught, seed by
    seed."""
    from patchword.config import find_config
    from patchword.tasks.shares import few_label_runs

    text = find_config("label-few-scenes").read_text()
    tower = find_config("data2vec-scenes").read_text().split("[tower]")[1].split("[[stage]]")[0]
    begun = 'vision_from = "runs/data2vec-scenes/best"\n'
    scratch = out / "scratch.toml"
    out.mkdir(parents=True, exist_ok=True)
    scratch.write_text(text.replace(begun, "") + "[vision]" + tower.replace("[tower.", "[vision."))
    found: dict[str, list[float]] = {}
    for seed, run in enumerate(runs, 1):
        ways = {
            "from scratch": (scratch, []),
            "pre-trained": (find_config("label-few-scenes"), [f"vision_from={run / 'best'}"]),
        }
        for name, (config, given) in ways.items():
            place = [f"out={out / name.replace(' ', '-')}"]
            for row_found in few_label_runs(config, [*given, *place], (0.1,), (seed,), "cpu").rows:
                key = f"{row_found.items} labels, {name}"
                found.setdefault(key, []).append(row_found.scores[0])
    return found


def answers(runs: Sequence[Path], out: Path) -> dict[str, list[float]]:
    """Questions about 5 % of the pictures: the streams of each run against streams that nothing taught."""
    from patchword.config import find_config
    from patchword.tasks.shares import few_label_runs

    found: dict[str, list[float]] = {}
    for seed, run in enumerate(runs, 1):
        for name, begun in (("from scratch", ""), ("pre-trained", str(run / "best"))):
            given = [f"two_streams_from={begun}", f"out={out / name.replace(' ', '-')}"]
            rows = few_label_runs(find_config("vilbert-answers-scenes"), given, (0.05,), (seed,), "cpu").rows
            found.setdefault(f"{rows[0].items} questions, {name}", []).append(rows[0].scores[0])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("flamingo", "vilbert", "pointing", "data2vec", "labels", "answers"))
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--documents", type=Path, default=Path("data/documents"))
    parser.add_argument("--scenes", type=Path, default=Path("data/scenes24-two"))
    parser.add_argument("--out", type=Path, default=Path("runs/few"))
    given = parser.parse_args()
    if given.what == "flamingo":
        table(flamingo(given.runs, given.documents))
    elif given.what == "pointing":
        table(pointing(given.runs, given.scenes))
    elif given.what in ("labels", "answers"):
        table((labels if given.what == "labels" else answers)(given.runs, given.out))
    else:
        table(vilbert(given.runs) if given.what == "vilbert" else data2vec(given.runs))
