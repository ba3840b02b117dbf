"""The sides of a comparison: runs with their best validation, captions, sizes and scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchword.errors import ConfigError, DataError
from patchword.metrics import ALL_METRICS
from patchword.metrics.files import read_predictions
from patchword.metrics.reporting import Result, Settings, evaluate
from patchword.reports.runs import Run, best_validation, part, read_run, real

_SCORED = Settings((*ALL_METRICS, "diversity"), frozenset(), "ptb")
_PARTS = {"tower": "tower", "vision": "tower", "captioner": "captioner"}
"""Parts of a model by the first name of its tensors; all others of a two-tower model are its text side."""


@dataclass(frozen=True)
class Side:
    """One run of the comparison."""

    name: str
    run: Run
    best: dict
    """The event of the best validation; empty where there was none."""
    captions: dict[str, str]
    """Captions by image id, from predictions/SPLIT.json where it exists, or else from the best validation."""
    numbers: dict[str, int]
    """Number of stored values of the best model, for each part (tower, captioner, text)."""
    result: Result | None = None
    """Scores against the given references."""


def side_names(folders: Sequence[Path]) -> list[str]:
    """Returns the folders' names, or their whole paths where the names are not distinct."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def read_side(folder: Path, shown: str, references: Mapping[str, Sequence[str]] | None, split: str) -> Side:
    """Reads a run folder and, with `references`, scores its captions.

    Raises ConfigError where the folder is no run folder, DataError where there is nothing to score.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(
            f"{folder} is no run folder: it has no metrics.jsonl; give the folder that a configuration "
            "names as `out`"
        )
    run = read_run(folder)
    best = best_validation(run)
    chosen = folder / "predictions" / f"{split}.json"
    if not chosen.is_file() and best:
        chosen = folder / "predictions" / f"{best['stage']}-{int(real(best.get('epoch'))) + 1:03d}.json"
    captions = read_predictions(chosen) if chosen.is_file() else {}
    result = None
    if references is not None:
        if not captions:
            raise DataError(
                f"{folder} has no predictions to score: neither predictions/{split}.json nor those of a "
                "best validation"
            )
        result = evaluate(references, captions, _SCORED)
    return Side(shown, run, best, captions, stored_numbers(folder / "best" / "model.safetensors"), result)


def stored_numbers(path: Path) -> dict[str, int]:
    """Counts the floating-point numbers in a safetensors file, for each part of the model.

    They are weights and running statistics. Only the header is read; the result is empty where there is no
    such file. Raises DataError for a damaged header.
    """
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 100_000_000)))
        except ValueError as error:
            raise DataError(
                f"{path} has no readable header ({error}): the file is damaged; copy it anew"
            ) from error
    counts: dict[str, int] = {}
    for tensor, facts in header.items():
        if tensor != "__metadata__" and facts["dtype"].startswith(("F", "BF")):
            whole = _PARTS.get(tensor.split(".")[0], "text")
            counts[whole] = counts.get(whole, 0) + math.prod(facts["shape"])
    return counts


def scores_of(side: Side) -> dict[str, float]:
    """Returns the scores against the given references, or else those of the best validation."""
    if side.result is not None:
        return {metric: score.value for metric, score in side.result.report.scores.items()}
    return finite_scores(part(side.best, "scores"))


def finite_scores(scores: Mapping[str, object]) -> dict[str, float]:
    """Returns the scores that are finite numbers."""
    return {metric: real(value) for metric, value in scores.items() if math.isfinite(real(value))}
