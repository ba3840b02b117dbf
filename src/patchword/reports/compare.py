"""Several runs side by side: scores of each run's best validation, sizes, times, curves, and what each says about the same pictures.

Decoded scores and those under teacher forcing stand in separate tables: a caption that is handed the true words so far is no caption.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from patchword.errors import ConfigError, DataError
from patchword.html.page import Best, Html, escape, join, name, note, number, page, section, table, warning
from patchword.metrics import ALL_METRICS
from patchword.metrics.bootstrap import compare as paired_bootstrap
from patchword.metrics.bootstrap import intervals
from patchword.metrics.files import read_predictions
from patchword.metrics.reporting import Result, Settings, evaluate
from patchword.metrics.scores import Score
from patchword.reports.bars import Bar, save_bars
from patchword.reports.configurations import Configuration, configurations, mean_over_seeds, spread
from patchword.reports.curves import Curve, Panel, curve_figure, save_panels, thinned
from patchword.reports.report import sample_picture
from patchword.reports.runs import Run, best_validation, part, read_run, real, training_seconds

_SCORED = Settings((*ALL_METRICS, "diversity"), frozenset(), "ptb")
_SAMPLES = 24
_POINTS = 100  # training losses are averaged to so many points: single batches would hide the curves behind each other
_FORCED = {"loss": "loss per word", "top5": "top-5 accuracy", "bleu4": "BLEU-4"}
_PARTS = {"tower": "tower", "vision": "tower", "captioner": "captioner"}
"""Parts of a model by the first name of its tensors; what else a two-tower model holds is its text side."""
_LOWER = {*_FORCED.values()} - {"top-5 accuracy", "BLEU-4"} | {
    "i2t_medR",
    "i2t_meanR",
    "t2i_medR",
    "t2i_meanR",
}
_NEUTRAL = {"length", "repetition", "dangling", "vocabulary", "unseen"}
"""Values of which neither more nor less is always better."""


@dataclass(frozen=True)
class Side:
    """One run of the comparison."""

    name: str
    run: Run
    best: dict
    """The event of its best validation; empty where there was none."""
    captions: dict[str, str]
    """What it says, by image id: predictions/SPLIT.json where that was written, else the best validation's."""
    numbers: dict[str, int]
    """How many numbers its best model stores, for each part (tower, captioner, text)."""
    result: Result | None = None
    """Scored against references that were given."""


class Table(NamedTuple):
    """A table before it becomes HTML or Markdown: the first column names the run, the others are numbers or None."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple]
    remark: str = ""


def write_comparison(
    folders: Sequence[Path],
    out: Path,
    references: Mapping[str, Sequence[str]] | None = None,
    split: str = "val",
    pictures: Path | None = None,
) -> Path:
    """Write compare.html, table.md, curves and bars (PNG and SVG) into `out`; returns the page's path.

    Runs that differ by nothing but the seed are also shown together, and compared by configuration.

    Args:
        references: captions of the pictures by image id; with them the captions are scored anew, with all metrics, and differences to
            the first run get intervals.
        split: which predictions are preferred: predictions/SPLIT.json of a run, before those of its best validation.
        pictures: folder of the pictures; only then are they embedded.

    Raises:
        ConfigError: a folder that is no run folder.
        DataError: predictions that do not fit the references.
    """
    sides = [
        _side(folder, shown, references, split)
        for folder, shown in zip(folders, _names(folders), strict=True)
    ]
    together = configurations([side.name for side in sides], [side.run.config for side in sides])
    repeated = len(together) < len(sides)
    shown = [
        sides[one.members[0]] for one in together
    ]  # of several seeds the first: curves and captions of all would hide one another
    compared = []
    if references:
        compared = _differences_together(sides, together) if repeated else _differences(sides)
    tables = [_decoded(sides), _together(sides, together), *compared, _forced(sides)]
    panels, bars = _panels(shown), _bars(sides, together)
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        if panels:
            save_panels(out / f"curves.{kind}", panels, "step")
        if len(bars) > 1:
            save_bars(out / f"bars.{kind}", "CIDEr of decoded captions", _bars_label(bars), bars)
    picture = out / "bars.png" if len(bars) > 1 else None
    (out / "table.md").write_text(
        "\n\n".join(map(_markdown, filter(_has_rows, tables))) + "\n", encoding="utf-8"
    )
    (out / "compare.html").write_text(
        _page(sides, shown, tables, panels, picture, pictures), encoding="utf-8"
    )
    return out / "compare.html"


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where these are not different."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _side(folder: Path, shown: str, references: Mapping[str, Sequence[str]] | None, split: str) -> Side:
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(
            f"{folder} is no run folder: it has no metrics.jsonl; give the folder that a configuration names as `out`"
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
                f"{folder} has no predictions to score: neither predictions/{split}.json nor those of a best validation"
            )
        result = evaluate(references, captions, _SCORED)
    return Side(shown, run, best, captions, stored_numbers(folder / "best" / "model.safetensors"), result)


def stored_numbers(path: Path) -> dict[str, int]:
    """Floating-point numbers that a safetensors file stores (weights and running statistics), for each part of the model, from its header
    alone; empty where there is no such file."""
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


def _scores(side: Side) -> dict[str, float]:
    """Scored anew where references were given, else as its best validation says."""
    if side.result is not None:
        return {metric: score.value for metric, score in side.result.report.scores.items()}
    return _finite(part(side.best, "scores"))


def _decoded(sides: Sequence[Side]) -> Table:
    scored = [_scores(side) for side in sides]
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
    """Of the same validation as the decoded scores."""
    values = [_finite(part(side.best, "teacher_forced")) for side in sides]
    keys = list(dict.fromkeys(key for one in values for key in one))
    head = ("run", *(_FORCED.get(key, key) for key in keys))
    rows = [(side.name, *(one.get(key) for key in keys)) for side, one in zip(sides, values, strict=True)]
    remark = "Every word was predicted from the true words before it: not comparable with decoded captions, nor with published scores."
    return Table("Under teacher forcing", head, _with_best(head, rows, set(head[1:])) if keys else [], remark)


def _differences(sides: Sequence[Side]) -> list[Table]:
    """What each run gains over the first on the same pictures."""
    first = sides[0].result
    tables = []
    for side in sides[1:]:
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
    """Mean and spread over seeds; no rows where no configuration was run twice."""
    repeated = any(len(one.members) > 1 for one in together)
    scored = [[_scores(sides[member]) for member in one.members] for one in together]
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
    return f"{number(mean)}\u00a0±\u00a0{deviation:.2g}"  # spaces at which no line breaks


def _score_together(sides: Sequence[Side], one: Configuration, metric: str) -> Score | None:
    scores = [
        sides[member].result.overlap[metric] for member in one.members if sides[member].result is not None
    ]
    return mean_over_seeds(scores) if scores else None


def _differences_together(sides: Sequence[Side], together: Sequence[Configuration]) -> list[Table]:
    """What each configuration gains over the first on the same pictures, each picture's score being the mean over seeds."""
    rows = []
    for metric in ("CIDEr", "ROUGE_L") if len(together) > 1 else ():
        first = _score_together(sides, together[0], metric)
        for one in together[1:]:
            found = paired_bootstrap(
                ({metric: first}, None), ({metric: _score_together(sides, one, metric)}, None)
            )[metric]
            rows.append((one.name, metric, found.value, found.interval.low, found.interval.high, found.p))
    head = ("configuration", "metric", "difference", "95 % from", "to", "p")
    remark = "Means over seeds; paired bootstrap over pictures, 1000 resamples. The spread over seeds is not in the intervals."
    return [Table(f"Configurations against {together[0].name}", head, rows, remark)]


def _bars(sides: Sequence[Side], together: Sequence[Configuration]) -> list[Bar]:
    bars = []
    for one in together:
        values = [scores["CIDEr"] for member in one.members if "CIDEr" in (scores := _scores(sides[member]))]
        if not values:
            continue
        whole = _score_together(sides, one, "CIDEr")
        interval = (None, None) if whole is None else intervals({"CIDEr": whole}, None)["CIDEr"]
        bars.append(Bar(one.name, spread(values)[0], *interval, values))
    return bars


def _bars_label(bars: Sequence[Bar]) -> str:
    parts = ["lines: 95 % over pictures (bootstrap)"] if any(bar.low is not None for bar in bars) else []
    parts += ["points: seeds"] if any(len(bar.points) > 1 for bar in bars) else []
    return "CIDEr" + (f" ({'; '.join(parts)})" if parts else "")


def _finite(scores: Mapping[str, object]) -> dict[str, float]:
    return {metric: real(value) for metric, value in scores.items() if math.isfinite(real(value))}


def _with_best(head: Sequence[str], rows: list[tuple], compared: set[str]) -> list[tuple]:
    """The best values of the compared columns marked, where there is something to compare with."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for title, column in zip(head, columns, strict=True):
        known = [value for value in column if value is not None]
        if title in compared - _NEUTRAL and len(known) > 1:
            best = min(known) if title in _LOWER else max(known)
            column[:] = [Best(value) if value == best else value for value in column]
    return list(zip(*columns, strict=True))


def _panels(sides: Sequence[Side]) -> list[Panel]:
    def curves(points: Iterable[tuple[str, list[tuple[float, float]]]]) -> list[Curve]:
        return [
            Curve(shown, *zip(*pairs, strict=True))
            for shown, pairs in points
            if any(math.isfinite(y) for _, y in pairs)
        ]

    def validations(key: str, metric: str) -> list[Curve]:
        return curves(
            (side.name, [(event["at"], real(part(event, key).get(metric))) for event in side.run.validations])
            for side in sides
        )

    panels = [
        Panel(
            "Training loss (cross-entropy where there is one)",
            [thinned(one, _POINTS) for one in curves(map(_training_loss, sides))],
        ),
        Panel("Validation loss, teacher forcing", validations("teacher_forced", "loss")),
        Panel("CIDEr of decoded validation captions", validations("scores", "CIDEr")),
    ]
    return [panel for panel in panels if panel.curves]


def _training_loss(side: Side) -> tuple[str, list[tuple[float, float]]]:
    """Losses of other stages (a negated reward) would be another scale: with a cross-entropy anywhere, the rest is a gap."""
    has_words = any("cross_entropy" in part(event, "losses") for event in side.run.steps)
    return side.name, [
        (event["at"], real(part(event, "losses").get("cross_entropy") if has_words else event.get("loss")))
        for event in side.run.steps
    ]


def _page(
    sides: Sequence[Side],
    shown: Sequence[Side],
    tables: Sequence[Table],
    panels: Sequence[Panel],
    bars: Path | None,
    pictures: Path | None,
) -> str:
    """`shown` are the runs whose curves and captions are drawn, `bars` the picture of bars where there is one."""
    troubles = [warning(f"{side.name}: {trouble}") for side in sides for trouble in side.run.troubles]
    troubles += [warning(f"{side.name}: there was no validation yet.") for side in sides if not side.best]
    parts = [
        section(one.title, table(one.head, one.rows), note(one.remark) if one.remark else "")
        for one in filter(_has_rows, tables)
    ]
    figures = [curve_figure(panel.title, panel.curves, "step") for panel in panels]
    few = note("Of several seeds of one configuration, the first.") if len(shown) < len(sides) else ""
    if bars is not None:
        uri = f"data:image/png;base64,{base64.b64encode(bars.read_bytes()).decode()}"
        parts.append(
            section("Bars", Html(f'<img class="bars" alt="CIDEr of each configuration" src="{uri}">'))
        )
    if figures:
        parts.append(section("Curves", few, Html(f'<div class="curves">{join(figures)}</div>')))
    samples = _samples(shown)
    if samples:
        cards = join(_card(sample, shown, pictures) for sample in samples)
        parts.append(section("The same pictures", Html(f'<div class="samples">{cards}</div>')))
    return page(
        f"{' · '.join(side.name for side in sides)}", [*troubles, *parts], lead="Best of each column in bold."
    )


def _samples(sides: Sequence[Side]) -> list[dict]:
    """The sample pictures of all runs, each once."""
    found: dict[str, dict] = {}
    for side in sides:
        for sample in side.run.samples:
            found.setdefault(str(sample.get("image_id")), sample)
    return list(found.values())[:_SAMPLES]


def _card(sample: dict, sides: Sequence[Side], pictures: Path | None) -> Html:
    image = str(sample.get("image_id"))
    said = "".join(
        f'<p class="s{i % 8}"><span class="swatch"></span> <span class="soft">{name(side.name)}</span><br>'
        f"<b>{escape(_said(side, image))}</b></p>"
        for i, side in enumerate(sides)
    )
    references = sample.get("references")
    listed = (
        "".join(f"<li>{escape(reference)}</li>" for reference in references)
        if isinstance(references, list)
        else ""
    )
    people = f"<details><summary>what people said</summary><ul>{listed}</ul></details>" if listed else ""
    file = name(sample.get("file", image))
    return Html(
        f'<div class="sample">{sample_picture(pictures, sample)}<p class="soft">{file}</p>{said}{people}</div>'
    )


def _said(side: Side, image: str) -> str:
    own = next(
        (sample.get("caption") for sample in side.run.samples if str(sample.get("image_id")) == image), None
    )
    return str(side.captions.get(image, "–" if own is None else own))


def _has_rows(one: Table) -> bool:
    return bool(one.rows)


def _markdown(one: Table) -> str:
    """A table of GitHub's Markdown; bars in names are escaped."""

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
