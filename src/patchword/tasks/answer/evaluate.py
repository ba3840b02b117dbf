"""What `predict` and `evaluate` do with a model that answers questions."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.errors import DataError, PictureError
from patchword.tasks.requests import EvaluateRequest, Evaluation, PredictRequest

if TYPE_CHECKING:
    from patchword.data.records import QuestionRecord
    from patchword.tasks.answer.model import QuestionAnswer


def predict(request: PredictRequest) -> int:
    """Write the results file of VQA; returns the exit status."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records

    records = split_records(read_questions(request.data, request.answers), request.split)
    answered, lost = _answered(
        request.model, records, request.images, request.split, request.device, request.batch
    )
    rows = [
        {"question_id": record.question_id, "answer": answer.text}
        for record, answer in answered
        if answer is not None
    ]
    _write(request.out, rows)
    print(
        f"{request.out}: {len(rows)} answers"
        + (f", {lost} questions about pictures that could not be read are left out" if lost else "")
    )
    return 1 if lost else 0


def evaluate(request: EvaluateRequest) -> int:
    """Print VQA accuracy by kind of question; returns the exit status."""
    result, lost = _compared(request)
    _print(result, request.split)
    if request.out is not None:
        _write(request.out, result)
    if lost:
        print(
            f"patchword: {lost} questions about pictures that could not be read are left out of every number",
            file=sys.stderr,
        )
    return 1 if lost else 0


def measure(request: EvaluateRequest) -> Evaluation:
    """VQA accuracy, what the question alone tells, and both by kind of question."""
    from patchword.metrics.scores import Score

    result, lost = _compared(request)
    everything = result["all"]
    scores = {name: Score(everything[name]) for name in ("VQA_accuracy", "questions_alone")}
    known = {name: score for name, score in scores.items() if score.value is not None}
    low, high = everything["interval"]
    return Evaluation(known, tuple(result["kinds"]), everything["questions"], lost, (low, high))


def _compared(request: EvaluateRequest) -> tuple[dict[str, Any], int]:
    """The numbers of a split, and how many questions were lost with their pictures."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records

    records = read_questions(request.data, request.answers)
    taught = _training(records if request.training is None else read_questions(request.training))
    wanted = split_records(records, request.split)
    unanswered = [record for record in wanted if not record.answers]
    if unanswered:
        raise DataError(
            f"{request.data}: {len(unanswered)} questions of {request.split} have no answer to compare with: use `patchword predict`"
        )
    answered, lost = _answered(
        request.model, wanted, request.images, request.split, request.device, request.batch
    )
    found = [(record, answer.text) for record, answer in answered if answer is not None]
    if not found:
        raise DataError(f"{request.images}: none of the pictures of {request.split} could be read")
    return _scored(found, taught), lost


def _answered(
    model: str, records: list[QuestionRecord], images: Path, split: str, device: str | None, batch: int
) -> tuple[list[QuestionAnswer], int]:
    """Questions with their answers, and how many were lost with their pictures."""
    from patchword.log import progress
    from patchword.tasks.answer.model import answer_questions, load_answerer

    answerer = load_answerer(model, device)
    lost = 0

    def unreadable(error: PictureError, questions: int) -> None:
        nonlocal lost
        lost += questions
        print(f"patchword: {' '.join(str(error).split())}", file=sys.stderr)

    answered: list[QuestionAnswer] = []
    with progress() as bar:
        task = bar.add_task(f"answers of {split}", total=len(records), status="")
        for part in answer_questions(answerer, records, images, unreadable, batch):
            answered += part
            bar.update(task, advance=len(part))
    return answered, lost


def _training(records: list[QuestionRecord]) -> list[QuestionRecord]:
    """The training questions among these; none where the file has no such split."""
    from patchword.data.formats.readers import split_records

    parts = {record.split for record in records}
    return split_records(records, "train") if parts == {None} or "train" in parts else []


def _scored(found: list[tuple[QuestionRecord, str]], taught: list[QuestionRecord]) -> dict[str, Any]:
    from patchword.data.question_only import CommonestAnswer
    from patchword.metrics.bootstrap import grouped_interval
    from patchword.metrics.classification import vqa_accuracy

    given = {record.question_id: record.answers for record, _ in found}
    values = vqa_accuracy(given, {record.question_id: text for record, text in found})["VQA_accuracy"]
    alone = None
    if taught:
        guess = CommonestAnswer((record.question, record.kind, record.answer) for record in taught)
        alone = vqa_accuracy(
            given, {record.question_id: guess.answer(record.question, record.kind) for record, _ in found}
        )["VQA_accuracy"]
    kinds, pictures = defaultdict(list), defaultdict(list)
    for record, _ in found:
        kinds[record.kind].append(record.question_id)
        pictures[record.file].append(values.per_item[record.question_id])

    def row(name: str, numbers: list[int | str]) -> dict[str, Any]:
        means = [
            None if score is None else sum(score.per_item[number] for number in numbers) / len(numbers)
            for score in (values, alone)
        ]
        return {
            "kind": name,
            "questions": len(numbers),
            "VQA_accuracy": means[0],
            "questions_alone": means[1],
        }

    everything = row("all", list(given))
    return {
        "pictures": len(pictures),
        "all": everything | {"interval": list(grouped_interval(list(pictures.values())))},
        "kinds": [
            row(name, numbers) for name, numbers in sorted(kinds.items(), key=lambda pair: -len(pair[1]))
        ],
    }


def _print(result: dict[str, Any], split: str) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = result["all"]["interval"]
    caption = (
        f"times 100; 95 % interval of all: {100 * low:.2f} to {100 * high:.2f} (bootstrap over pictures)"
    )
    title = f"{split}: {result['pictures']} pictures"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("kind of question", "questions", "VQA accuracy", "question alone"):
        table.add_column(name, justify="left" if name == "kind of question" else "right")
    for row in (result["all"], *result["kinds"][:_KINDS_SHOWN]):
        cells = [
            "" if row[name] is None else f"{100 * row[name]:.2f}"
            for name in ("VQA_accuracy", "questions_alone")
        ]
        table.add_row(row["kind"], str(row["questions"]), *cells)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    hidden = len(result["kinds"]) - _KINDS_SHOWN
    if hidden > 0:
        print(f"{hidden} rarer kinds are not shown; --out writes all")
    print(
        "question alone: the most frequent training answer to the same words, else to the same kind of question, without the picture"
    )


_KINDS_SHOWN = 20


def _write(out: Path, content: Any) -> None:
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    partial.replace(out)
