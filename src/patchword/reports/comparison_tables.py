"""The tables of a comparison of runs: scores, seeds together, differences, teacher forcing.

Decoded scores and those under teacher forcing are in separate tables, because predicting the next word of a
true caption is not captioning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from patchword.html.page import Best, number
from patchword.metrics.bootstrap import compare as paired_bootstrap
from patchword.metrics.scores import Score
from patchword.reports.configurations import Configuration, mean_over_seeds, spread
from patchword.reports.runs import part, real, training_seconds
from patchword.reports.sides import Side, finite_scores, scores_of

_FORCED = {"loss": "loss per word", "top5": "top-5 accuracy", "bleu4": "BLEU-4"}
_LOWER = {*_FORCED.values()} - {"top-5 accuracy", "BLEU-4"} | {
    "i2t_medR",
    "i2t_meanR",
    "t2i_medR",
    "t2i_meanR",
}
_NEUTRAL = {"length", "repetition", "dangling", "vocabulary", "unseen"}
"""Values for which neither more nor less is always better."""


class Table(NamedTuple):
    """A table before it becomes HTML or Markdown.

    The first column names the run; the others are numbers or None.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple]
    remark: str = ""


def comparison_tables(
    sides: Sequence[Side], together: Sequence[Configuration], with_differences: bool
) -> list[Table]:
    """Returns the tables of a comparison that have rows, in their order.

    Differences need sides that were scored against references. Where a configuration was run with several
    seeds, configurations are compared instead of runs.
    """
    compared = []
    if with_differences:
        repeated = len(together) < len(sides)
        compared = _configuration_differences(sides, together) if repeated else _run_differences(sides)
    tables = [_decoded(sides), _together(sides, together), *compared, _forced(sides)]
    return [one for one in tables if one.rows]


def _decoded(sides: Sequence[Side]) -> Table:
    scored = [scores_of(side) for side in sides]
    metrics = list(dict.fromkeys(metric for values in scored for metric in values))
    parts = list(dict.fromkeys(whole for side in sides for whole in side.numbers))
    speeds = [real(side.best.get("captions_per_second")) for side in sides]
    timed = any(map(math.isfinite, speeds))
    rows = []
    for side, values, speed in zip(sides, scored, speeds, strict=True):
        seconds, _ = training_seconds(side.run)
        rows.append(
            (side.name, side.best.get("at"), *(values.get(metric) for metric in metrics))
            + tuple(side.numbers[whole] / 1e6 if whole in side.numbers else None for whole in parts)
            + (round(seconds / 60, 1) if math.isfinite(seconds) else None,)
            + ((speed if math.isfinite(speed) else None,) if timed else ())
        )
    head = (
        "run",
        "best at step",
        *metrics,
        *(f"{whole}, M numbers" for whole in parts),
        "minutes",
        *(["captions/s"] if timed else []),
    )
    guessed = [side.name for side in sides if not training_seconds(side.run)[1]]
    remarks = (
        [f"Minutes estimated from images per second, not measured: {', '.join(guessed)}."] if guessed else []
    )
    remarks += (
        ["Captions per second: encoder and search, without the tower, while validating on the run's machine."]
        if timed
        else []
    )
    remark = " ".join(remarks)
    return Table(
        "Decoded captions, best validation of each run", head, _with_best(head, rows, set(metrics)), remark
    )


def _forced(sides: Sequence[Side]) -> Table:
    """These scores come from the same validation as the decoded ones."""
    values = [finite_scores(part(side.best, "teacher_forced")) for side in sides]
    keys = list(dict.fromkeys(key for one in values for key in one))
    head = ("run", *(_FORCED.get(key, key) for key in keys))
    rows = [(side.name, *(one.get(key) for key in keys)) for side, one in zip(sides, values, strict=True)]
    remark = "Every word was predicted from the true words before it: "
    remark += "not comparable with decoded captions, nor with published scores."
    return Table("Under teacher forcing", head, _with_best(head, rows, set(head[1:])) if keys else [], remark)


def _run_differences(sides: Sequence[Side]) -> list[Table]:
    """Returns the difference of each run from the first on the same pictures."""
    first = sides[0].result
    tables = []
    for side in sides[1:]:
        if first is None or side.result is None:
            continue
        found = paired_bootstrap(
            (first.overlap, first.report.counts), (side.result.overlap, side.result.report.counts)
        )
        rows = [
            (metric, one.value, one.interval.low, one.interval.high, one.p) for metric, one in found.items()
        ]
        head = ("metric", "difference", "95 % from", "to", "p")
        tables.append(
            Table(
                f"{side.name} against {sides[0].name}",
                head,
                rows,
                "Paired bootstrap over pictures, 1000 resamples.",
            )
        )
    return tables


def _together(sides: Sequence[Side], together: Sequence[Configuration]) -> Table:
    """Mean and spread over seeds; without rows where no configuration was run twice."""
    repeated = any(len(one.members) > 1 for one in together)
    scored = [[scores_of(sides[member]) for member in one.members] for one in together]
    metrics = [
        metric for metric in dict.fromkeys(metric for runs in scored for values in runs for metric in values)
    ]
    rows = []
    for one, runs in zip(together, scored, strict=True):
        cells = [_spread([values[metric] for values in runs if metric in values]) for metric in metrics]
        rows.append((one.name, len(one.members), *cells))
    remark = "Runs that differ by the seed alone: mean ± standard deviation over seeds."
    return Table("Seeds together", ("configuration", "seeds", *metrics), rows if repeated else [], remark)


def _spread(values: Sequence[float]) -> str | float | None:
    if len(values) < 2:
        return values[0] if values else None
    mean, deviation = spread(values)
    return f"{number(mean)}\u00a0±\u00a0{deviation:.2g}"  # no-break spaces


def score_together(sides: Sequence[Side], one: Configuration, metric: str) -> Score | None:
    """Averages a metric over the seeds of a configuration; None where nothing was scored."""
    results = [sides[member].result for member in one.members]
    scores = [result.overlap[metric] for result in results if result is not None]
    return mean_over_seeds(scores) if scores else None


def _configuration_differences(sides: Sequence[Side], together: Sequence[Configuration]) -> list[Table]:
    """Returns the difference of each configuration from the first on the same pictures.

    The score of a picture is its mean over the seeds.
    """
    rows = []
    for metric in ("CIDEr", "ROUGE_L") if len(together) > 1 else ():
        first = score_together(sides, together[0], metric)
        for one in together[1:]:
            second = score_together(sides, one, metric)
            if first is None or second is None:
                continue
            found = paired_bootstrap(({metric: first}, None), ({metric: second}, None))[metric]
            rows.append((one.name, metric, found.value, found.interval.low, found.interval.high, found.p))
    head = ("configuration", "metric", "difference", "95 % from", "to", "p")
    remark = "Means over seeds; paired bootstrap over pictures, 1000 resamples. "
    remark += "The spread over seeds is not in the intervals."
    return [Table(f"Configurations against {together[0].name}", head, rows, remark)]


def _with_best(head: Sequence[str], rows: list[tuple], compared: set[str]) -> list[tuple]:
    """Marks the best values of the compared columns, where there is more than one."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for title, column in zip(head, columns, strict=True):
        known = [value for value in column if value is not None]
        if title in compared - _NEUTRAL and len(known) > 1:
            best = min(known) if title in _LOWER else max(known)
            column[:] = [Best(value) if value == best else value for value in column]
    return list(zip(*columns, strict=True))


def markdown(one: Table) -> str:
    """Formats a table as GitHub Markdown; vertical bars in names are escaped."""

    def cell(value: object) -> str:
        if value is None:
            return "–"
        if isinstance(value, float | int):
            return f"**{number(value)}**" if isinstance(value, Best) else number(value)
        return str(value).replace("|", "\\|").replace("\n", " ")

    lines = [
        f"### {one.title}",
        "",
        "| " + " | ".join(map(cell, one.head)) + " |",
        "| --- |" + " ---: |" * (len(one.head) - 1),
    ]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in one.rows]
    return "\n".join([*lines, "", one.remark] if one.remark else lines)
