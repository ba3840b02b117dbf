"""The same training at several shares of its labels, each with several seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchword.config import override, read_toml
from patchword.errors import ConfigError, TrainingError
from patchword.files import write_json
from patchword.tasks.start import start

MEASURES = ("micro_F1", "rSum", "accuracy", "VQA_accuracy", "CIDEr")
"""The score that is shown: the first of these that a validation has."""


class ShareRow(NamedTuple):
    """The scores of one share, by seed."""

    share: float
    items: int
    scores: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


class Shares(NamedTuple):
    """All rows, what was measured, and the file that they were written to."""

    rows: list[ShareRow]
    measure: str
    file: Path


def few_label_runs(
    config: Path, overrides: Sequence[str], shares: Sequence[float], seeds: Sequence[int], device: str | None
) -> Shares:
    """Trains, or reads what is trained already; the runs lie in OUT/share-SHARE-seed-SEED.

    Raises ConfigError for a share outside (0, 1] or without a seed, and what the trainings raise.
    """
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong or not shares or not seeds:
        raise ConfigError(
            f"shares {list(shares)} and seeds {list(seeds)}: expected at least one of each, shares above 0 "
            "and at most 1"
        )
    out = Path(str(override(read_toml(config), overrides)["out"]))
    rows, measure = [], ""
    for share in shares:
        scores, items = [], 0
        for seed in seeds:
            folder = out / f"share-{share:g}-seed-{seed}"
            own = [f"data.share={share}", f"seed={seed}", f"out={folder}"]
            if not (folder / "report.html").exists():
                command = f"patchword shares {config} --at {share:g} --seeds {seed}"
                start(config, [*overrides, *own], True, False, device, command)
            measure, score, items = _best(folder)
            scores.append(score)
        rows.append(ShareRow(share, items, scores))
    file = out / "shares.json"
    content = [{"share": row.share, "rows": row.items, "scores": row.scores} for row in rows]
    write_json(file, {"measure": measure, "seeds": list(seeds), "shares": content}, indent=1)
    return Shares(rows, measure, file)


def _best(folder: Path) -> tuple[str, float, int]:
    """What the best validation of a run measured, and how many rows were learnt from."""
    best: dict[str, Any] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event.get("event") == "validation" and event.get("best"):
            best = event.get("scores", {})
    measure = next((name for name in MEASURES if name in best), None)
    if measure is None or not math.isfinite(best[measure]):
        raise TrainingError(f"{folder}: no validation with one of {', '.join(MEASURES)} was logged")
    facts = json.loads((folder / "checkpoints" / "last" / "training.json").read_text(encoding="utf-8"))
    known = facts.get("facts", {})
    items = next((value for name, value in known.items() if name.startswith("training r")), 0)
    return measure, float(best[measure]), int(items)
