"""How good labels are on the rows that select a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchword.data.labels import LabelBatch, LabelData
from patchword.metrics.classification import classification, several_labels


def scores_on(
    rows: LabelData,
    labels: tuple[str, ...],
    logits: Callable[[LabelBatch], Tensor],
    device: torch.device,
    batch: int = 256,
) -> dict[str, float]:
    """Scores of `logits(batch)` on the rows of a split.

    `micro_F1` is the accuracy where every row has one label.
    """
    truth: list[Any] = []
    predicted: list[Any] = []
    for places in rows.plan(batch, None):
        given = rows.batch(places, None).to(device)
        logits_BY = logits(given)
        if rows.several:
            truth += [_names(row, labels) for row in (given.labels > 0.5).cpu().numpy()]
            predicted += [_names(row, labels) for row in (logits_BY > 0).cpu().numpy()]
        else:
            truth += [labels[number] for number in given.labels.tolist()]
            predicted += [labels[number] for number in logits_BY.argmax(1).tolist()]
    found = (
        several_labels(truth, predicted, labels) if rows.several else classification(truth, predicted, labels)
    )
    return {name: score.value for name, score in found.items()}


def _names(chosen_Y: np.ndarray, labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(label for label, chosen in zip(labels, chosen_Y, strict=True) if chosen)
