"""Figures of labelling: the confusion matrix, and score against cost of a structure search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchword.html.page import clean
from patchword.reports.curves import save_figure


def confusion_figure(counts_KK: np.ndarray, labels: Sequence[str], path: Path | str) -> None:
    """Writes the confusion matrix as a figure: rows are true labels, columns predicted ones.

    Colours are shares of the row, numbers are counts.
    """
    figure, axis = _figure(2.6 + 0.27 * len(labels), 2.0 + 0.25 * len(labels))
    shares_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    axis.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 60:
        for i, j in zip(*np.nonzero(counts_KK), strict=True):
            colour = "white" if shares_KK[i, j] > 0.5 else "#333333"
            axis.text(j, i, str(counts_KK[i, j]), ha="center", va="center", fontsize=6, color=colour)
    names = [clean(label) for label in labels]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    save_figure(axis.figure, path)


def cost_figure(
    costs: Sequence[float],
    scores: Sequence[float],
    chosen: int,
    cost_name: str,
    score_name: str,
    path: Path | str,
) -> None:
    """Writes a figure with every structure of a search as a point, cost against score.

    The chosen structure is marked, and a line shows the best score at each cost or less.
    """
    figure, axis = _figure(5.2, 3.6)
    axis.scatter(costs, scores, s=14, color="#2563a8", alpha=0.7, linewidths=0)
    order = np.argsort(costs, kind="stable")
    best = np.maximum.accumulate(np.asarray(scores, dtype=float)[order])
    axis.step(
        np.asarray(costs, dtype=float)[order],
        best,
        where="post",
        color="#2563a8",
        linewidth=1,
        label="best at this cost or less",
    )
    axis.scatter(
        [costs[chosen]], [scores[chosen]], s=90, marker="*", color="#a84a06", zorder=3, label="chosen"
    )
    axis.set_xlabel(clean(cost_name), fontsize=9)
    axis.set_ylabel(clean(score_name), fontsize=9)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _figure(width: float, height: float):
    figure, axes = blank_figures(width, height, 1)
    return figure, axes[0]


def blank_figures(width: float, height: float, count: int):
    """Returns a figure for print with `count` axes side by side; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False).ravel()
