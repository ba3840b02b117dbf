"""Reads run folders leniently: an interrupted run leaves a broken line, and must still be shown.

A run folder holds `config.json` (the resolved configuration), `metrics.jsonl` (one event per line: "step",
"validation", "skipped"), `samples.json` and `predictions/*.json` (COCO results). Missing or unreadable parts
become lines of `troubles`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from patchword.errors import counted


@dataclass(frozen=True)
class Run:
    """A run folder. `at` of an event is its step counted through all stages.

    The events themselves count the steps of each stage from 0.
    """

    name: str
    config: dict
    steps: list[dict]
    validations: list[dict]
    skipped: list[dict]
    stages: list[tuple[float, str]]
    """(first `at`, name) of each stage, in order."""
    samples: list[dict]
    predictions: dict[str, list[dict]]
    """COCO results by file name."""
    troubles: list[str] = field(default_factory=list)


def read_run(folder: Path | str) -> Run:
    """Reads a run folder.

    Missing or damaged parts are listed in `troubles`; nothing is raised.
    """
    folder = Path(folder)
    troubles: list[str] = []
    if not folder.is_dir():
        troubles.append(f"There is no folder {folder}.")
    config = _json(folder / "config.json", dict, troubles)
    events, stages = _in_one_count(_events(folder / "metrics.jsonl", troubles))
    # Other tasks may have no samples.
    has_samples = config.get("task", "caption") == "caption" or (folder / "samples.json").exists()
    samples = [
        sample
        for sample in (_json(folder / "samples.json", list, troubles) if has_samples else [])
        if isinstance(sample, dict)
    ]
    predictions = {
        path.name: _json(path, list, troubles) for path in sorted(folder.glob("predictions/*.json"))
    }
    predictions = {name: [row for row in rows if isinstance(row, dict)] for name, rows in predictions.items()}
    kinds = {
        kind: [event for event in events if event["event"] == kind]
        for kind in ("step", "validation", "skipped")
    }
    return Run(
        folder.resolve().name,
        config,
        kinds["step"],
        kinds["validation"],
        kinds["skipped"],
        stages,
        samples,
        predictions,
        troubles,
    )


def best_validation(run: Run) -> dict:
    """Returns the validation whose model the run kept, or an empty dictionary.

    It is the last one that is marked best, or else the one with the highest CIDEr.
    """
    marked = [event for event in run.validations if event.get("best") is True]
    scored = [event for event in run.validations if math.isfinite(_cider(event))]
    return marked[-1] if marked else max(scored, key=_cider, default={})


def _cider(event: dict) -> float:
    return real(part(event, "scores").get("CIDEr"))


def training_seconds(run: Run) -> tuple[float, bool]:
    """Returns the seconds that the run took, and whether they were measured.

    They are measured by the clock of its steps (`seconds` since the start of the process, which restarts
    where a run was resumed). Otherwise they are estimated from images per second and the batch, and NaN where
    these are unknown.
    """
    if not run.steps:
        return math.nan, False
    clock = [real(event.get("seconds")) for event in run.steps]
    if all(map(math.isfinite, clock)):
        total = sum(
            now if now < before else now - before for before, now in zip([0.0, *clock], clock, strict=False)
        )
        return total + _validating(run, since=run.steps[-1]["at"]), True
    stages = run.config.get("stage")
    stages = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    batches = {stage.get("name"): real(stage.get("batch")) for stage in stages}
    total, before = 0.0, 0.0
    for event in run.steps:
        speed = real(event.get("images_per_second"))
        total += (event["at"] - before) * batches.get(event["stage"], math.nan) / (speed or math.nan)
        before = event["at"]
    return total + _validating(run, since=0), False


def _validating(run: Run, since: float) -> float:
    seconds = (real(event.get("seconds")) for event in run.validations if event["at"] >= since)
    return sum(value for value in seconds if math.isfinite(value))


def real(value: object) -> float:
    """Returns a number of an event, or NaN where it is missing or no number.

    JSON has no NaN, so the text "nan" counts as one.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def part(event: dict, key: str) -> dict:
    """Returns a nested object of an event; empty where it is missing."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def _json(path: Path, kind: type, troubles: list[str]):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        troubles.append(f"{path.name} is not there.")
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        troubles.append(f"{path.name} cannot be read: {error}")
        return kind()
    if not isinstance(found, kind):
        troubles.append(f"{path.name} holds a {type(found).__name__}; expected a {kind.__name__}.")
        return kind()
    return found


def _events(path: Path, troubles: list[str]) -> list[dict]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        troubles.append(f"{path.name} is not there.")
        return []
    except OSError as error:
        troubles.append(f"{path.name} cannot be read: {error}")
        return []
    events, bad = [], []
    for at, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            bad.append(at)
            continue
        if (
            isinstance(event, dict)
            and isinstance(event.get("event"), str)
            and math.isfinite(real(event.get("step")))
        ):
            events.append(event)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        torn = counted(len(bad), "line")
        troubles.append(
            f"{torn} of {path.name} left out, not JSON (line {shown}): a run was interrupted while writing."
        )
    return events


def _in_one_count(events: list[dict]) -> tuple[list[dict], list[tuple[float, str]]]:
    """Adds `at` to each event.

    Where a step is recorded twice (the run was killed and resumed from before it), its last event is kept.
    """
    offsets: dict[str, float] = {}
    stages: list[tuple[float, str]] = []
    furthest = 0.0
    kept: dict[tuple, dict] = {}
    for event in events:
        step, stage = real(event["step"]), str(event.get("stage", stages[-1][1] if stages else ""))
        if stage not in offsets:
            offsets[stage] = furthest if step < furthest else 0.0
            stages.append((offsets[stage] + step, stage))
        at = offsets[stage] + step
        furthest = max(furthest, at)
        kept[event["event"], stage, step] = {**event, "at": at, "stage": stage}
    return sorted(kept.values(), key=lambda event: event["at"]), stages
