"""Numbers of classification, with one label per item or several.

Shape legend: K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from patchword.errors import DataError
from patchword.metrics.scores import Score


@dataclass(frozen=True)
class ClassRow:
    """One line of the table per class; ratios with an empty denominator are 0, as is usual for F1."""

    label: str
    precision: float
    recall: float
    f1: float
    count: int
    """Items that truly have this label."""


def confusion_matrix(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """(K, K) counts: row = true label, column = predicted label, in the order of `labels`.

    Raises DataError where the lengths differ, there is nothing to count, or a label is not in `labels`.
    """
    if len(truth) != len(predicted) or not len(truth):
        raise DataError(
            f"classification: {len(truth)} true labels and {len(predicted)} predictions; expected the same "
            "number, at least 1"
        )
    places = {label: k for k, label in enumerate(labels)}
    counts_KK = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for i, (true, guess) in enumerate(zip(truth, predicted, strict=True)):
        for label in (true, guess):
            if label not in places:
                raise DataError(
                    f"classification: item {i} has the label {label!r}, which is not one of the "
                    f"{len(labels)} labels given"
                )
        counts_KK[places[true], places[guess]] += 1
    return counts_KK


def class_table(counts_KK: np.ndarray, labels: Sequence[str]) -> list[ClassRow]:
    """Precision, recall, F1 and count of every class, from a confusion matrix."""
    hits_K = np.diag(counts_KK).astype(float)
    true_K, guessed_K = counts_KK.sum(axis=1), counts_KK.sum(axis=0)
    precision_K, recall_K = hits_K / np.maximum(guessed_K, 1), hits_K / np.maximum(true_K, 1)
    f1_K = 2 * hits_K / np.maximum(true_K + guessed_K, 1)
    return [
        ClassRow(label, float(precision_K[k]), float(recall_K[k]), float(f1_K[k]), int(true_K[k]))
        for k, label in enumerate(labels)
    ]


def classification(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str] | None = None
) -> dict[str, Score]:
    """`accuracy`, `micro_F1` (equal to accuracy for single labels) and `macro_F1`, the last with the F1 of
    each class.

    labels: the classes; None takes those that occur. The macro mean runs over classes that occur in truth or
    predictions: a class that nobody has and nobody was given says nothing. Raises DataError as
    `confusion_matrix` does.
    """
    names = sorted(set(truth) | set(predicted)) if labels is None else list(labels)
    counts_KK = confusion_matrix(truth, predicted, names)
    accuracy = float(np.trace(counts_KK) / counts_KK.sum())
    occurring = counts_KK.sum(axis=0) + counts_KK.sum(axis=1) > 0
    f1 = {
        row.label: row.f1
        for row, occurs in zip(class_table(counts_KK, names), occurring, strict=True)
        if occurs
    }
    return {
        "accuracy": Score(accuracy),
        "micro_F1": Score(accuracy),
        "macro_F1": Score(float(np.mean(list(f1.values()))), f1),
    }


def several_table(
    truth: Sequence[Collection[str]], predicted: Sequence[Collection[str]], labels: Sequence[str]
) -> list[ClassRow]:
    """Precision, recall, F1 and count of every class where an item may have several labels, or none.

    Raises DataError where the lengths differ, there is nothing to count, or a label is not in `labels`.
    """
    if len(truth) != len(predicted) or not len(truth):
        raise DataError(
            f"classification: {len(truth)} true sets of labels and {len(predicted)} predictions; expected "
            "the same number"
        )
    counts = {label: np.zeros(3, dtype=np.int64) for label in labels}  # right, true, guessed
    for i, (true, guess) in enumerate(zip(truth, predicted, strict=True)):
        for label in set(true) | set(guess):
            if label not in counts:
                raise DataError(
                    f"classification: item {i} has the label {label!r}, which is not one of the "
                    f"{len(labels)} labels given"
                )
            counts[label] += (label in true and label in guess, label in true, label in guess)
    return [
        ClassRow(
            label, right / max(guessed, 1), right / max(real, 1), 2 * right / max(real + guessed, 1), real
        )
        for label, (right, real, guessed) in ((label, found.tolist()) for label, found in counts.items())
    ]


def several_labels(
    truth: Sequence[Collection[str]], predicted: Sequence[Collection[str]], labels: Sequence[str]
) -> dict[str, Score]:
    """`exact` (share of items whose set of labels is right), `micro_F1` over all pairs of item and label, and
    `macro_F1`, the mean over the classes that occur. Raises DataError as `several_table` does.
    """
    rows = several_table(truth, predicted, labels)
    right = sum(len(set(true) & set(guess)) for true, guess in zip(truth, predicted, strict=True))
    total = sum(len(set(true)) + len(set(guess)) for true, guess in zip(truth, predicted, strict=True))
    guessed = {label for guess in predicted for label in guess}
    f1 = {row.label: row.f1 for row in rows if row.count or row.label in guessed}
    exact = float(np.mean([set(true) == set(guess) for true, guess in zip(truth, predicted, strict=True)]))
    macro = float(np.mean(list(f1.values()))) if f1 else 0.0
    return {"exact": Score(exact), "micro_F1": Score(2 * right / max(total, 1)), "macro_F1": Score(macro, f1)}
