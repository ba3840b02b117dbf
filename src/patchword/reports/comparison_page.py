"""The page of a comparison of runs: tables, bars, curves, and what each run says about the same pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from patchword.data.isolated import PictureReader
from patchword.html.page import Html, escape, join, name, note, page, section, table, warning
from patchword.metrics.bootstrap import intervals
from patchword.reports.bars import Bar
from patchword.reports.comparison_tables import Table, score_together
from patchword.reports.configurations import Configuration, spread
from patchword.reports.curves import Curve, Panel, curve_figure, thinned
from patchword.reports.report import sample_picture
from patchword.reports.runs import part, real
from patchword.reports.sides import Side, scores_of

_SAMPLES = 24
# Training losses are averaged to this many points, because single batches would hide the other curves.
_POINTS = 100


def comparison_page(
    sides: Sequence[Side],
    shown: Sequence[Side],
    tables: Sequence[Table],
    panels: Sequence[Panel],
    bars: Path | None,
    pictures: Path | None,
) -> str:
    """Builds the page.

    `shown` are the runs whose curves and captions are drawn; `bars` is the figure of the bars, if there is
    one.
    """
    troubles = [warning(f"{side.name}: {trouble}") for side in sides for trouble in side.run.troubles]
    troubles += [warning(f"{side.name}: there was no validation yet.") for side in sides if not side.best]
    parts = [
        section(one.title, table(one.head, one.rows), note(one.remark) if one.remark else "")
        for one in tables
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
        with PictureReader() as reader:
            cards = join(_card(sample, shown, pictures, reader) for sample in samples)
        parts.append(section("The same pictures", Html(f'<div class="samples">{cards}</div>')))
    return page(
        f"{' · '.join(side.name for side in sides)}", [*troubles, *parts], lead="Best of each column in bold."
    )


def cider_bars(sides: Sequence[Side], together: Sequence[Configuration]) -> list[Bar]:
    """Returns one bar of CIDEr per configuration, with its interval and its seeds."""
    bars = []
    for one in together:
        values = [
            scores["CIDEr"] for member in one.members if "CIDEr" in (scores := scores_of(sides[member]))
        ]
        if not values:
            continue
        whole = score_together(sides, one, "CIDEr")
        low, high = (None, None) if whole is None else intervals({"CIDEr": whole}, None)["CIDEr"]
        bars.append(Bar(one.name, spread(values)[0], low, high, values))
    return bars


def bars_label(bars: Sequence[Bar]) -> str:
    """Returns the axis label of the bars; it explains lines and points where there are any."""
    parts = ["lines: 95 % over pictures (bootstrap)"] if any(bar.low is not None for bar in bars) else []
    parts += ["points: seeds"] if any(len(bar.points) > 1 for bar in bars) else []
    return "CIDEr" + (f" ({'; '.join(parts)})" if parts else "")


def curve_panels(sides: Sequence[Side]) -> list[Panel]:
    """Returns the panels that have curves: losses and CIDEr over the steps."""

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
    """Returns the training losses of a run.

    Other stages have a loss on another scale (a negated reward), so where any step has a cross-entropy, the
    others are gaps.
    """
    has_words = any("cross_entropy" in part(event, "losses") for event in side.run.steps)
    return side.name, [
        (event["at"], real(part(event, "losses").get("cross_entropy") if has_words else event.get("loss")))
        for event in side.run.steps
    ]


def _samples(sides: Sequence[Side]) -> list[dict]:
    """Returns the sample pictures of all runs, each once."""
    found: dict[str, dict] = {}
    for side in sides:
        for sample in side.run.samples:
            found.setdefault(str(sample.get("image_id")), sample)
    return list(found.values())[:_SAMPLES]


def _card(sample: dict, sides: Sequence[Side], pictures: Path | None, reader: PictureReader) -> Html:
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
        f'<div class="sample">{sample_picture(pictures, sample, reader)}'
        f'<p class="soft">{file}</p>{said}{people}</div>'
    )


def _said(side: Side, image: str) -> str:
    own = next(
        (sample.get("caption") for sample in side.run.samples if str(sample.get("image_id")) == image), None
    )
    return str(side.captions.get(image, "–" if own is None else own))
