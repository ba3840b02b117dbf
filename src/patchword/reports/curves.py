"""Line curves as inline SVG for pages, and through matplotlib for papers.

The SVG takes the page's colours, light or dark.

Both draw the same `Curve` values. A value that is not finite interrupts the line, and so does one beyond
1e100, which no axis could show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.files import whole_file
from patchword.html.page import Html, clean, escape, number

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 18, 40
# Longer curves are averaged in bins; the page stays small, and a screen shows no more points.
_POINTS = 400
_DOTTED = 30  # curves with at most this many points mark each of them
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3")
_PRINT = ("#a84a06", "#2563a8", "#2f7d4f", "#7a4ea3", "#0f7c86", "#b3261e", "#6b6b00", "#8c5a7a")


class Curve(NamedTuple):
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curve_figure(
    title: str, curves: Sequence[Curve], x_label: str, marks: Sequence[tuple[float, str]] = ()
) -> Html:
    """Draws one figure with axes and legend; `marks` are (x, label) of vertical lines.

    Returns an empty string where no curve has a finite value.
    """
    drawn = [thinned(curve) for curve in curves]
    drawn = [curve for curve in drawn if any(map(_shown, curve.y))]
    if not drawn:
        return Html()
    x_low, x_high = _range([x for curve in drawn for x in curve.x], pad=0)
    y_low, y_high = _range([y for curve in drawn for y in curve.y], pad=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_axes(x_low, x_high, y_low, y_high, place, x_label)]
    for x, label in marks:
        if x_low <= x <= x_high:
            at = place(x, y_low)[0]
            parts.append(f'<line class="stage" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            side, anchor = (at + 3, "start") if at < _WIDTH * 0.7 else (at - 3, "end")
            parts.append(f'<text x="{side}" y="{_TOP - 6}" text-anchor="{anchor}">{escape(label)}</text>')
    parts += [_line(curve, i, place) for i, curve in enumerate(drawn)]
    legend = "".join(_legend(curve, i) for i, curve in enumerate(drawn))
    says = f"{title} over {x_label}: " + ", ".join(
        f"{curve.name} ends at {number(_last(curve))}" for curve in drawn
    )
    return Html(
        f'<figure class="curve"><figcaption>{escape(title)}</figcaption>\n'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(says)}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
        f'<ul class="legend">{legend}</ul></figure>'
    )


class Panel(NamedTuple):
    """One plot of a figure."""

    title: str
    curves: Sequence[Curve]
    y_label: str = ""


def save_figure(figure: Any, path: Path | str, bbox_inches: str | None = None) -> None:
    """Write a figure of matplotlib, whole or not at all; the suffix says which kind (.png, .svg, .pdf)."""
    with whole_file(Path(path)) as aside:
        figure.savefig(aside, metadata=undated(path), bbox_inches=bbox_inches)


def save_panels(path: Path | str, panels: Sequence[Panel], x_label: str) -> None:
    """Writes several plots side by side as one figure for print.

    A curve has the same colour in all panels that list the same names in the same order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.2), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False).ravel(), panels, strict=True):
        _plot(axis, panel, x_label)
    save_figure(figure, path)


def _plot(axis, panel: Panel, x_label: str) -> None:
    for i, curve in enumerate(panel.curves):
        dashes = [float(length) for length in _DASHES[i % len(_DASHES)].split()]
        style = (0, dashes) if dashes else "-"
        axis.plot(
            curve.x,
            curve.y,
            color=_PRINT[i % len(_PRINT)],
            linestyle=style,
            linewidth=1.4,
            label=clean(curve.name),
        )
    axis.set_title(clean(panel.title), fontsize=10, parse_math=False)
    axis.set_xlabel(clean(x_label), fontsize=9, parse_math=False)
    axis.set_ylabel(clean(panel.y_label), fontsize=9, parse_math=False)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.curves:
        for text in axis.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)


def undated(path: Path | str) -> dict[str, None] | None:
    """matplotlib's metadata without the time of writing, so that equal figures give equal files."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix.lower())


def thinned(curve: Curve, points: int = _POINTS) -> Curve:
    """Reduces a curve to at most `points` points, the means over equal bins of the sequence.

    A bin that contains a value that is not finite stays a gap.
    """
    if len(curve.x) <= points:
        return curve
    bins = np.array_split(np.arange(len(curve.x)), points)
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    return Curve(
        curve.name, [float(x[rows].mean()) for rows in bins], [float(y[rows].mean()) for rows in bins]
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Returns round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / apart - 1e-9)
    return [round(i * apart, 12) for i in range(first, math.floor(high / apart + 1e-9) + 1)]


def _shown(value: float) -> bool:
    return math.isfinite(value) and abs(value) < 1e100


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    finite = [value for value in values if _shown(value)]
    low, high = min(finite), max(finite)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-6):
        around = abs(low) / 10 or 1.0
        return low - around, high + around
    return low - pad * (high - low), high + pad * (high - low)


def _axes(x_low, x_high, y_low, y_high, place, x_label) -> str:
    parts = []
    for y in ticks(y_low, y_high):
        at = place(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{number(y)}</text>')
    for x in ticks(x_low, x_high):
        at = place(x, y_low)[0]
        parts.append(f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{number(x)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "\n".join(parts)


def _line(curve: Curve, i: int, place) -> str:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if _shown(y):
            pieces[-1].append(place(x, y))
        elif pieces[-1]:
            pieces.append([])
    dash = f' stroke-dasharray="{_DASHES[i % 8]}"' if _DASHES[i % 8] else ""
    drawn = []
    for piece in pieces:
        points = " ".join(f"{x},{y}" for x, y in piece)
        drawn.append(f'<polyline class="drawn"{dash} points="{points}"/>' if len(piece) > 1 else "")
        if len(curve.x) <= _DOTTED or len(piece) == 1:
            drawn += [f'<circle class="dot" cx="{x}" cy="{y}" r="2.6"/>' for x, y in piece]
    return f'<g class="s{i % 8}">{"".join(drawn)}</g>'


def _legend(curve: Curve, i: int) -> str:
    dash = f' stroke-dasharray="{_DASHES[i % 8]}"' if _DASHES[i % 8] else ""
    line = f'<line class="drawn"{dash} x1="0" x2="26" y1="4" y2="4"/>'
    swatch = f'<svg viewBox="0 0 26 8" aria-hidden="true">{line}</svg>'
    return f'<li class="s{i % 8}">{swatch}{escape(curve.name)}: {number(_last(curve))}</li>'


def _last(curve: Curve) -> float:
    return next(y for y in reversed(curve.y) if _shown(y))
