"""Trains the captioners of configs/leaderboard with an equal budget on one stored grid, and writes the table.

    patchword codebook --tower all-minilm-l6-v2 --class-names --from-captions D.json --minimum-count 20 \\
        --out codebooks/flickr8k
    patchword features leaderboard/baseline --data D.json --images DIR --out features/flickr8k-192
    python benchmarks/leaderboard.py --data D.json --images DIR

What is trained already is not trained again, so an interrupted call goes on where it was. All runs share one
process, one after the other: the class names that the tower needs are embedded once. Nothing is selected:
the last epoch counts. Seconds are processor seconds of this process, so that other work on the machine
changes them little.

`--share 0.1` trains on the first tenth of the training pictures, with more epochs (EPOCHS).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

import patchword.sentences
from patchword.data.captions import CaptionData, FeatureInputs
from patchword.data.formats.readers import read_captions, split_records
from patchword.data.store import Store
from patchword.errors import ConfigError
from patchword.files import write_json, write_text
from patchword.metrics.bootstrap import Difference, compare
from patchword.metrics.reporting import Settings, evaluate
from patchword.metrics.scores import Score
from patchword.reports.configurations import mean_over_seeds, spread
from patchword.reports.sides import stored_numbers
from patchword.tasks.caption.load import load
from patchword.tasks.start import start

MODELS = (
    "baseline",
    "fsgr",
    "deeper",
    "fsgr-instead",
    "pma",
    "pma-weighted",
    "fused",
    "meshed-memory",
    "show-attend-tell",
    "adaptive",
    "show-tell",
    "fused-weighted",
    "pma-top",
    "pma-length",
    "pma-cross-add",
    "pma-sequential",
    "fsgr-copying",
    "fsgr-hiding",
)
"""In the order in which they are trained; the first is what the others are compared with."""
_ALL = ",".join(MODELS)
EPOCHS = {0.1: 8, 0.3: 4}
"""Passes over a share of the pictures, so that a small share is not merely trained for too few steps."""
TIMED = 128
"""Pictures that are captioned again for the seconds per caption."""
COST = "cost.json"


class Job(NamedTuple):
    """One training."""

    model: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        part = "" if self.share == 1 else f"-{self.share * 100:g}"
        return f"{self.model}{part}-{self.seed}"


def overrides(job: Job, data: Path, images: Path, features: Path, codebook: Path, out: Path) -> list[str]:
    """The settings in which the run differs from its configuration."""
    changed = [
        f"data.annotations={data}",
        f"data.images={images}",
        f"data.features={features}",
        f"out={out}",
        f"seed={job.seed}",
    ]
    if job.model.startswith(("fsgr", "fused")):
        changed.append(f"codebook={codebook}")
    if job.share < 1:
        train = split_records(read_captions(data), "train")
        epochs = EPOCHS[job.share]
        changed += [
            f"data.limit={round(job.share * len(train))}",
            f"stage.0.epochs={epochs}",
            f"stage.0.validate_every={epochs}",
        ]
        if "pma" in job.model or "fused" in job.model:
            changed.append("captioner.memory.cluster_every=47")
    return changed


def train(job: Job, folder: Path, changed: Sequence[str]) -> None:
    """Trains what is not trained yet, and writes what it cost into its folder."""
    if (folder / COST).exists():
        return
    began = time.process_time()
    resumed = (folder / "checkpoints").exists()
    command = " ".join(["patchword train", f"leaderboard/{job.model}", *changed])
    start(Path(f"leaderboard/{job.model}"), changed, resumed, False, "cpu", command)
    cost = {"training": time.process_time() - began, "whole": not resumed}
    write_json(folder / COST, cost | {"caption": seconds_per_caption(folder, changed)})


@torch.inference_mode()
def seconds_per_caption(folder: Path, changed: Sequence[str]) -> float:
    """Processor seconds of encoder and search, without the tower, for one caption."""
    given = dict(entry.split("=", 1) for entry in changed)
    model = load(folder / "best", "cpu")
    records = split_records(read_captions(Path(given["data.annotations"])), "val")[:TIMED]
    inputs = FeatureInputs(Store.open(Path(given["data.features"])), False)
    selection = CaptionData.build(records, model.vocabulary, inputs, 20)
    total = 0.0
    for entries in selection.plan(32, 1, False, None):
        features = model.model.features(selection.batch(entries, None).inputs)
        began = time.process_time()
        model.caption_features(features, trace=False)
        total += time.process_time() - began
    return total / len(records)


class Row(NamedTuple):
    """A configuration with the scores of its seeds."""

    model: str
    folders: list[Path]
    scores: list[dict[str, Score]]
    difference: Difference | None


SCORED = Settings.of("bleu,meteor,rouge,cider", "ptb", False, False)


def rows(jobs: Sequence[Job], runs: Path, references: dict[str, list[str]]) -> Iterator[Row]:
    """The configurations of one share that are trained, each compared with the first on the same pictures."""
    first: Score | None = None
    for model in dict.fromkeys(job.model for job in jobs):
        folders = [runs / job.name for job in jobs if job.model == model]
        folders = [folder for folder in folders if (folder / COST).exists()]
        if not folders:
            continue
        scores = [evaluate(references, captions_of(folder), SCORED).overlap for folder in folders]
        mean = mean_over_seeds([one["CIDEr"] for one in scores])
        found = None if first is None else compare(({"CIDEr": first}, None), ({"CIDEr": mean}, None))["CIDEr"]
        first = first or mean
        yield Row(model, folders, scores, found)


def captions_of(folder: Path) -> dict[str, str]:
    """The captions of the one validation of a run, by image id."""
    (path,) = (folder / "predictions").glob("words-*.json")
    return {str(row["image_id"]): row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))}


def table(found: Sequence[Row]) -> str:
    """The configurations as a table in Markdown."""
    lines = [
        "| | seeds | BLEU-4 | METEOR | ROUGE-L | CIDEr | each seed | CIDEr against the first (95 %, paired) "
        "| p | captioner, M numbers | training, CPU min | ms per caption |",
        "| --- " + "| --: " * 11 + "|",
    ]
    for row in found:
        shown = {name: [100 * one[name].value for one in row.scores] for name in row.scores[0]}
        means = [cell(shown[name]) for name in ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")]
        costs = [json.loads((folder / COST).read_text(encoding="utf-8")) for folder in row.folders]
        minutes = spread([cost["training"] / 60 for cost in costs if cost["whole"]] or [float("nan")])[0]
        speed = spread([1000 * cost["caption"] for cost in costs])[0]
        size = stored_numbers(row.folders[0] / "best" / "model.safetensors")["captioner"] / 1e6
        gain, p = "", ""
        if row.difference is not None:
            low, high = row.difference.interval
            gain, p = (
                f"{100 * row.difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{row.difference.p:.3f}",
            )
        each = " ".join(f"{value:.1f}" for value in shown["CIDEr"])
        cells = [row.model, len(row.scores), *means, each, gain, p]
        cells += [f"{size:.2f}", f"{minutes:.1f}", f"{speed:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def cell(values: Sequence[float]) -> str:
    """Mean, and with several seeds their standard deviation."""
    mean, deviation = spread(values)
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if len(values) > 1 else "")


def main(
    data: Annotated[Path, typer.Option(help="Flickr8k's annotations.")],
    images: Annotated[Path, typer.Option(help="Folder of its pictures.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/leaderboard"),
    features: Annotated[Path, typer.Option(help="Feature store.")] = Path("features/flickr8k-192"),
    codebook: Annotated[Path, typer.Option(help="Codebook.")] = Path("codebooks/flickr8k"),
    models: Annotated[str, typer.Option(help="Models; the first is what others are compared with.")] = _ALL,
    seeds: Annotated[str, typer.Option(help="Seeds; all models with one seed before the next.")] = "1,2,3",
    share: Annotated[float, typer.Option(help="Share of the training pictures: 1, 0.3 or 0.1.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="File of the table; absent: printed.")] = None,
    only_table: Annotated[bool, typer.Option(help="Train nothing; show what is trained.")] = False,
) -> None:
    """Train what is missing, and write the table."""
    if share != 1 and share not in EPOCHS:
        raise ConfigError(f"--share is {share}: choose 1 or one of {', '.join(map(str, EPOCHS))}")
    names = models.split(",")
    jobs = [Job(name, share, seed) for seed in map(int, seeds.split(",")) for name in names]
    # Every tower over class names embeds the same thousand names, which takes longer than a short epoch.
    patchword.sentences.embed_class_names = functools.cache(patchword.sentences.embed_class_names)
    for job in [] if only_table else jobs:
        folder = runs / job.name
        train(job, folder, overrides(job, data, images, features, codebook, folder))
    records = split_records(read_captions(data), "val")
    references = {str(record.image_id): list(record.captions) for record in records}
    text = table(list(rows(jobs, runs, references)))
    if out is None:
        print(text)
    else:
        write_text(out, text)


if __name__ == "__main__":
    typer.run(main)
