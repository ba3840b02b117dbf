"""What `predict` and `evaluate` share for models that label the rows of a table: probabilities, written as
they come.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.errors import ConfigError, DataError, counted
from patchword.files import whole_file, write_json
from patchword.lookup import look_up
from patchword.tasks.requests import EvaluateRequest, Evaluation, MissingChoice, PredictRequest

if TYPE_CHECKING:
    from patchword.data.records import LabelRecord
    from patchword.errors import PictureError
    from patchword.metrics.classification import ClassRow
    from patchword.metrics.scores import Score
    from patchword.tasks.label.model import LabellingModel, RowPrediction


class Rows:
    """Predicted rows of a split, with a progress bar; `bad` counts pictures that could not be decoded.

    All rows are looked at before the first is labelled: what is wrong with the last of a million is said at
    once. With `labelled` they must have labels that the model knows.
    """

    def __init__(
        self,
        classifier: LabellingModel,
        data: Path,
        images: Path,
        split: str,
        missing: MissingChoice,
        batch: int,
        labelled: bool = False,
    ) -> None:
        from patchword.tasks.label.model import check_rows, open_table, rows_of_split

        self.classifier, self.images, self.split = classifier, images, split
        self.missing, self.batch, self.bad = missing, batch, 0
        self.table = open_table(classifier, data)
        self.count = check_rows(classifier, rows_of_split(self.table, split), images, missing, labelled)

    def __iter__(self) -> Iterator[RowPrediction]:
        from patchword.log import progress
        from patchword.tasks.label.model import predict_rows, rows_of_split

        records = rows_of_split(self.table, self.split)
        with progress(sys.stderr.isatty()) as bar:
            task = bar.add_task(f"labels of {self.split}", total=self.count, status="")
            for rows in predict_rows(
                self.classifier, records, self.images, self.missing, self.unreadable, self.batch
            ):
                yield from rows
                bar.update(task, advance=len(rows))

    def unreadable(self, record: LabelRecord, error: PictureError) -> None:
        """Say why a row is left out, and count it."""
        print(f"patchword: {record.where}: {' '.join(str(error).split())}", file=sys.stderr)
        self.bad += 1


def write_predictions(
    rows: Iterator[RowPrediction], classifier: LabellingModel, out: Path
) -> Iterator[RowPrediction]:
    """Pass rows on and write them to a CSV or JSON lines file, which appears under its name when all are
    there.

    Raises ConfigError for another kind of file.
    """
    suffix = out.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out}: the table of probabilities is written as .csv or .jsonl: name it so")
    labels = classifier.settings.labels
    with (
        whole_file(out) as aside,
        open(aside, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file)
        if suffix == ".csv":
            table.writerow(["image", "text", "label", "predicted", *(f"p({label})" for label in labels)])
        for row in rows:
            chosen = classifier.chosen(row.probabilities_Y)
            shares = [float(f"{share:.6g}") for share in row.probabilities_Y.tolist()]
            if suffix == ".csv":
                joined = [
                    (classifier.settings.columns.separator or "").join(part)
                    for part in (row.record.labels, chosen)
                ]
                table.writerow([row.record.file, row.record.text, *joined, *shares])
            else:
                said = {
                    "image": row.record.file,
                    "text": row.record.text,
                    "labels": row.record.labels,
                    "predicted": chosen,
                    "probabilities": dict(zip(labels, shares, strict=True)),
                }
                line = (
                    json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
                )
                file.write(line + "\n")
            yield row


def predict(request: PredictRequest) -> int:
    """Write the probabilities of all rows of a split; returns the exit status."""
    from patchword.tasks.label.model import load_labelling_model

    request.refuse_decoding("labels")
    classifier = load_labelling_model(request.model, request.device)
    rows = Rows(classifier, request.data, request.images, request.split, request.missing, request.batch)
    predicted = iter(rows)
    if request.cluster is not None:
        predicted = look_up("tasks.label.many:rows_on_cluster")(classifier, request, rows.unreadable)
    count = sum(1 for _ in write_predictions(predicted, classifier, request.out))
    print(
        f"{request.out}: {counted(count, 'row')}"
        + (f", {counted(rows.bad, 'picture')} could not be read" if rows.bad else "")
    )
    return 1 if rows.bad else 0


def evaluate(request: EvaluateRequest) -> int:
    """Print scores and a table per class, and write the files; returns the exit status."""
    found = measure(request)
    _print(found.scores, found.rows, found.items)
    if request.out is not None:
        values: dict[str, Any] = {"rows": found.items, "split": request.split}
        values["scores"] = {name: score.value for name, score in found.scores.items()}
        values["classes"] = found.rows
        write_json(request.out / "scores.json", values, indent=1)
        drawn = ", confusion.png" if (request.out / "confusion.png").exists() else ""
        print(f"{request.out}: predictions.csv, scores.json{drawn}")
    return 1 if found.left_out else 0


def measure(request: EvaluateRequest) -> Evaluation:
    """Scores and a row per class; with `request.out` the predictions and the confusion matrix are written
    there.
    """
    from patchword.tasks.label.model import load_labelling_model

    out = request.out
    if request.images is None:
        raise ConfigError(f"--images is missing: {request.model} looks at the pictures, name their folder")
    classifier = load_labelling_model(request.model, request.device)
    labels = classifier.settings.labels
    rows = Rows(
        classifier, request.data, request.images, request.split, request.missing, request.batch, labelled=True
    )
    predicted = iter(rows)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        predicted = write_predictions(predicted, classifier, out / "predictions.csv")
    truth, chosen = [], []
    for row in predicted:
        truth.append(row.record.labels if classifier.settings.several else row.record.labels[:1])
        chosen.append(classifier.chosen(row.probabilities_Y))
    if not truth:
        raise DataError(
            f"{request.data}: none of the {rows.bad} rows of split {request.split!r} could be labelled"
        )
    scores, table = _scored(truth, chosen, labels, classifier.settings.several, out)
    return Evaluation(scores, tuple(asdict(row) for row in table), len(truth), rows.bad)


def _scored(
    truth: list[tuple[str, ...]],
    chosen: list[tuple[str, ...]],
    labels: tuple[str, ...],
    several: bool,
    out: Path | None,
) -> tuple[dict[str, Score], list[ClassRow]]:
    from patchword.metrics.classification import (
        class_table,
        classification,
        confusion_matrix,
        several_labels,
        several_table,
    )

    if several:
        return several_labels(truth, chosen, labels), several_table(truth, chosen, labels)
    true, guessed = [row[0] for row in truth], [row[0] for row in chosen]
    counts_KK = confusion_matrix(true, guessed, labels)
    if out is not None:
        from patchword.reports.figures import confusion_figure

        confusion_figure(counts_KK, labels, out / "confusion.png")
    return classification(true, guessed, labels), class_table(counts_KK, labels)


def _print(scores: Mapping[str, Score], rows: Sequence[Mapping[str, Any]], count: int) -> None:
    from rich.table import Table

    from patchword.log import console

    table = Table("label", "precision", "recall", "F1", "rows", title=counted(count, "row"))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        ratios = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        table.add_row(row["label"], *ratios, str(row["count"]))
    shown = console(width=100)
    shown.print(table)
    for name, score in scores.items():
        shown.print(f"{name} {score.value:.4f}")
