"""Captioners that name things no training caption named: the protocol of held-out concepts (Hendricks 2016).

    python benchmarks/held_out_concepts.py --data D.json --images DIR --out runs/held-out

Eight things that ImageNet knows are taken out of the training captions together with their pictures. A
baseline, a captioner with region alignment and one with a copy gate besides (configs/leaderboard) are trained
on the rest, and the classes of their tower are calibrated on the rest too (`patchword concepts`). On the val
pictures then, with plain search and with confident words forced into the caption: F1 of naming each thing
where a reference names it, and CIDEr on the pictures without any of the eight. What is made already is not
made again.

The limit from which on a thing is said is chosen for each model on the pictures held out of its training: the
lowest one at which CIDEr there is at most 0.03 below that of plain search. The table marks it with a star.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from patchword.data.formats.readers import read_captions, split_records
from patchword.data.records import CaptionRecord
from patchword.decode import select_rows
from patchword.files import write_json, write_text
from patchword.metrics import score_captions
from patchword.tasks.caption.load import load
from patchword.tasks.caption.mention import missing_words, perceived, with_words
from patchword.text.words import split_english
from patchword.train.data import DataSettings, read_splits, stored_inputs

CONCEPTS = {
    "bicycle": ("bicycle", "bicycles", "bike", "bikes"),
    "horse": ("horse", "horses"),
    "guitar": ("guitar", "guitars"),
    "car": ("car", "cars"),
    "boat": ("boat", "boats"),
    "ball": ("ball", "balls"),
    "bench": ("bench", "benches"),
    "fountain": ("fountain", "fountains"),
}
"""The things, each with the words that name it; written down before any run."""
MODELS = ("baseline", "fsgr-instead", "fsgr-copying", "fsgr-hiding")
CONFIDENT = 0.3
"""Calibrated probability from which a word that captions taught must be said."""
THRESHOLDS = (0.3, 0.2, 0.15, 0.1, 0.08, 0.06)
"""Probabilities from which the likeliest word that they did not teach must be said."""
MAY_COST = 0.03
"""CIDEr that a limit may cost on the pictures held out of training."""
HELD_OUT = 500
_AT_ONCE = 64


class Way(NamedTuple):
    """A model and how it is asked: the probability from which the likeliest word that no caption taught must
    be said, None for plain search.
    """

    model: str
    untaught: float | None

    @property
    def name(self) -> str:
        """What the table calls it."""
        said = "plain search" if self.untaught is None else f"new words said from {self.untaught:g} on"
        return f"{self.model}, {said}"


def file_of(way: Way) -> str:
    """Name of the file of its captions."""
    return f"captions-{way.model}-{way.untaught or 'plain'}.json"


def call(*arguments: str) -> None:
    """Runs a command, and ends with it where it fails."""
    print("patchword", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "patchword", *arguments], check=True)


def named(texts: Sequence[str], words: Sequence[str]) -> bool:
    """Whether any of the texts has any of the words."""
    return any(not set(words).isdisjoint(split_english(text)) for text in texts)


def without_concepts(data: Path, out: Path) -> None:
    """The annotations without the training pictures whose captions name one of the eight."""
    found = json.loads(data.read_text(encoding="utf-8"))
    kept = [
        image
        for image in found["images"]
        if image["split"] != "train"
        or not any(named([one["raw"] for one in image["sentences"]], words) for words in CONCEPTS.values())
    ]
    print(f"{len(found['images']) - len(kept)} training pictures taken out, {len(kept)} pictures are left")
    write_json(out, {**found, "images": kept})


def made(model: str, data: Path, images: Path, out: Path) -> Path:
    """The folder of a trained and calibrated model; trains and calibrates what is missing."""
    features, codebook, run = out / "features", out / "codebook", out / "runs" / model
    if not codebook.exists():
        call(
            *("codebook", "--tower", "all-minilm-l6-v2", "--class-names", "--from-captions", str(data)),
            *("--minimum-count", "20", "--out", str(codebook)),
        )
    if not features.exists():
        call(
            *("features", "leaderboard/baseline", "--data", str(data), "--images", str(images)),
            *("--out", str(features)),
        )
    if not (run / "best").exists():
        uses = [f"codebook={codebook}"] if model.startswith("fsgr") else []
        call(
            *("train", f"leaderboard/{model}", f"data.annotations={data}", f"data.images={images}"),
            *(f"data.features={features}", f"data.held_out={HELD_OUT}", f"out={run}", *uses),
        )
    if not (out / model).exists():
        call(
            *("concepts", str(run / "best"), "--data", str(data), "--images", str(images)),
            *("--features", str(features), "--open-words", "--out", str(out / model)),
        )
    return out / model


def captions(
    folder: Path, ways: Sequence[Way], records: Sequence[CaptionRecord], features: Path
) -> dict[str, dict[str, str]]:
    """By the name of each way the caption of every picture, by its id, from stored features."""
    model = load(folder, "cpu")
    own, concepts = model.settings, model.settings.concepts
    if concepts is None:
        raise typer.BadParameter(f"{folder} has no concepts")
    least = min(concepts.probable, *THRESHOLDS)
    common = {"mention": "confident", "confident": CONFIDENT, "probable": least}
    asked = {
        way: own.model_copy(
            update={"concepts": concepts.model_copy(update={**common, "untaught": way.untaught})}
        )
        for way in ways
    }
    found: dict[str, dict[str, str]] = {way.name: {} for way in ways}
    inputs = stored_inputs(features, model.model.tower, own.preprocessing, ())
    for first in range(0, len(records), _AT_ONCE):
        some = records[first : first + _AT_ONCE]
        model.settings = asked[ways[0]]
        with torch.inference_mode():
            given = model.model.features(inputs.load([record.file for record in some], None))
            seen = perceived(model, given, model.model.tower.classify(given)).concepts
            memory = model.model.captioner.encode(given)
        assert seen is not None  # the model has concepts
        plain = model.caption_features(given, trace=False)
        for place, (record, caption, named_there) in enumerate(zip(some, plain, seen, strict=True)):
            one = select_rows(memory, torch.tensor([place]))
            told: dict[tuple[str, ...], str] = {}  # the words that must be said, and the caption with them
            for way in ways:
                model.settings = asked[way]
                text = caption.text
                if way.untaught is not None:
                    must = tuple(missing_words(model, caption, (), named_there))
                    if must not in told:
                        asking = (one, given.hw, own.decoding, False, (), named_there)
                        told[must] = with_words(model, caption, *asking).text
                    text = told[must]
                found[way.name][str(record.image_id)] = text
    return found


def f1(said: dict[str, str], records: Sequence[CaptionRecord], words: Sequence[str]) -> tuple[float, int]:
    """F1 of naming a thing where at least one reference names it, and how many pictures that are."""
    is_there = {str(record.image_id): named(record.captions, words) for record in records}
    is_said = {key: named([said[key]], words) for key in is_there}
    hits = sum(is_there[key] and is_said[key] for key in is_there)
    wrong = sum(is_said[key] and not is_there[key] for key in is_there)
    missed = sum(is_there[key] and not is_said[key] for key in is_there)
    return 2 * hits / max(1, 2 * hits + wrong + missed), hits + missed


def main(
    data: Annotated[Path, typer.Option(help="Annotations with splits train and val.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    out: Annotated[Path, typer.Option(help="Folder of models, captions and the table.")],
    models: Annotated[str, typer.Option(help="Models of configs/leaderboard.")] = ",".join(MODELS),
) -> None:
    """Trains, captions and writes the table."""
    out.mkdir(parents=True, exist_ok=True)
    rest = out / "data.json"
    if not rest.exists():
        without_concepts(data, rest)
    records = split_records(read_captions(data), "val")
    _, aside = read_splits(DataSettings(annotations=str(rest), images=str(images), held_out=HELD_OUT))
    others = [one for one in records if not any(named(one.captions, words) for words in CONCEPTS.values())]
    lines = [
        f"| | {' | '.join(CONCEPTS)} | mean F1 | CIDEr, {len(others)} others | CIDEr, all {len(records)} "
        "| CIDEr, held out of train |",
        "| --- |" + " --: |" * (len(CONCEPTS) + 4),
    ]
    counted = ""
    for model in models.split(","):
        ways = [Way(model, limit) for limit in (None, *THRESHOLDS)]
        missing = [way for way in ways if not (out / file_of(way)).exists()]
        if missing:
            told = captions(made(model, rest, images, out), missing, [*records, *aside], out / "features")
            for way in missing:
                write_json(out / file_of(way), told[way.name])
        said = {way: json.loads((out / file_of(way)).read_text(encoding="utf-8")) for way in ways}
        chosen = choose({way: cider(said[way], aside) for way in ways})
        for way in ways:
            scores = [f1(said[way], records, words) for words in CONCEPTS.values()]
            counted = " | ".join(str(count) for _, count in scores)
            mean = sum(value for value, _ in scores) / len(scores)
            numbers = [mean, *(cider(said[way], some) for some in (others, records, aside))]
            cells = [f"{100 * value:.0f}" for value, _ in scores] + [f"{100 * one:.1f}" for one in numbers]
            lines.append(f"| {way.name}{' *' if way == chosen else ''} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    lines.append(f"| pictures whose references name it | {counted} | | | | |")
    write_text(out / "table.md", "\n".join(lines) + "\n")


def cider(said: dict[str, str], records: Sequence[CaptionRecord]) -> float:
    """CIDEr of the captions of these pictures."""
    references = {str(one.image_id): list(one.captions) for one in records}
    mine = {key: said[key] for key in references}
    return score_captions(references, mine, metrics=("cider",))["CIDEr"].value


def choose(ciders: dict[Way, float]) -> Way:
    """The lowest limit whose CIDEr is at most MAY_COST below that of plain search."""
    plain = next(value for way, value in ciders.items() if way.untaught is None)
    allowed = [way for way, value in ciders.items() if way.untaught and value >= plain - MAY_COST]
    return min(allowed, key=lambda way: way.untaught or 1.0, default=next(iter(ciders)))


if __name__ == "__main__":
    typer.run(main)
