"""Bars with intervals and single runs for several configurations, as a figure for print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from patchword.html.page import clean, number
from patchword.reports.curves import save_figure

_COLOUR, _FIRST, _INK = "#2563a8", "#a84a06", "#222222"


class Bar(NamedTuple):
    """One bar: a mean, its interval where there is one, and the values it is the mean of."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = ()


def save_bars(path: Path | str, title: str, x_label: str, bars: Sequence[Bar]) -> None:
    """Writes horizontal bars that start at 0; the suffix of `path` sets the format.

    The first bar, with which the others are compared, has its own colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.36 * len(bars)), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for row, bar in enumerate(bars):
        axis.barh(row, bar.value, height=0.62, color=_FIRST if row == 0 else _COLOUR, alpha=0.8)
        if bar.low is not None and bar.high is not None:
            axis.plot([bar.low, bar.high], [row, row], color=_INK, linewidth=1.2, marker="|", markersize=6)
        if len(bar.points) > 1:
            axis.plot(
                bar.points,
                [row] * len(bar.points),
                "o",
                markersize=3.6,
                color="white",
                markeredgecolor=_INK,
                markeredgewidth=0.8,
            )
    right = max(max([bar.value, bar.high or 0.0, *bar.points]) for bar in bars)
    for row, bar in enumerate(bars):
        axis.text(right * 1.03, row, number(round(bar.value, 4)), va="center", fontsize=8, parse_math=False)
    axis.set_xlim(0, right * 1.14)
    axis.set_yticks(range(len(bars)), [clean(bar.name) for bar in bars], fontsize=8)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.invert_yaxis()
    axis.set_title(clean(title), fontsize=10, parse_math=False)
    axis.set_xlabel(clean(x_label), fontsize=8, parse_math=False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
