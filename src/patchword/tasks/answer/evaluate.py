"""What `predict` and `evaluate` do with a model that answers questions, and `score` with answers of any
model."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.errors import ConfigError, DataError, PictureError, counted
from patchword.files import write_json
from patchword.lookup import look_up
from patchword.tasks.requests import EvaluateRequest, Evaluation, PredictRequest

if TYPE_CHECKING:
    from patchword.data.records import QuestionRecord
    from patchword.tasks.answer.model import QuestionAnswer


def predict(request: PredictRequest) -> int:
    """Write the results file of VQA; returns the exit status."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records

    request.refuse_decoding("answers")
    records = split_records(read_questions(request.data, request.answers), request.split)
    if request.cluster is not None:
        count, lost = look_up("tasks.answer.many:write_answers")(request, records)
    else:
        count, lost = _write_answers(request, records)
    print(
        f"{request.out}: {counted(count, 'answer')}"
        + (f", {counted(lost, 'question')} left out: pictures could not be read" if lost else "")
    )
    return 1 if lost else 0


def _write_answers(request: PredictRequest, records: list[QuestionRecord]) -> tuple[int, int]:
    """How many rows were written, and how many questions were lost with their pictures."""
    answered, lost = _answered(
        request.model, records, request.images, request.split, request.device, request.batch
    )
    rows = [
        {"question_id": record.question_id, "answer": answer.text}
        for record, answer in answered
        if answer is not None
    ]
    write_json(request.out, rows)
    return len(rows), lost


def evaluate(request: EvaluateRequest) -> int:
    """Print VQA accuracy by kind of question; returns the exit status."""
    result, lost = _compared(request)
    _print(result, request.split)
    if request.out is not None:
        write_json(request.out, result)
    if lost:
        print(
            f"patchword: {counted(lost, 'question')} left out of every number: pictures could not be read",
            file=sys.stderr,
        )
    return 1 if lost else 0


def measure(request: EvaluateRequest) -> Evaluation:
    """VQA accuracy, what the question alone tells, and both by kind of question."""
    from patchword.metrics.scores import Score

    result, lost = _compared(request)
    everything = result["all"]
    scores = {name: Score(everything[name]) for name in ("VQA_accuracy", "exact_match", "questions_alone")}
    known = {name: score for name, score in scores.items() if score.value is not None}
    low, high = everything["interval"]
    return Evaluation(known, tuple(result["kinds"]), everything["questions"], lost, (low, high))


def _compared(request: EvaluateRequest) -> tuple[dict[str, Any], int]:
    """The numbers of a split, and how many questions were lost with their pictures."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records

    if request.images is None:
        raise ConfigError(f"--images is missing: {request.model} looks at the pictures, name their folder")
    records = read_questions(request.data, request.answers)
    taught = _taught(records, request)
    wanted = _with_answers(split_records(records, request.split), request.data)
    answered, lost = _answered(
        request.model, wanted, request.images, request.split, request.device, request.batch
    )
    found = [(record, answer.text) for record, answer in answered if answer is not None]
    if not found:
        raise DataError(f"{request.images}: none of the pictures of {request.split} could be read")
    return _scored(found, taught), lost


def evaluate_file(request: EvaluateRequest) -> int:
    """Scores a file of another model's answers as `evaluate` scores a model; no picture is read.
    Answers to questions of other splits are left alone; raises DataError where a question of the split has
    none."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records
    from patchword.metrics.answer_files import read_answers

    records = read_questions(request.data, request.answers)
    wanted = _with_answers(split_records(records, request.split), request.data)
    answers = read_answers(Path(request.model))
    known = {str(record.question_id) for record in records}
    _refuse(request.model, "answer", "to questions that are not in the data", answers.keys() - known)
    found, missing = _paired(wanted, answers)
    _refuse(request.model, "question", f"of {request.split} without an answer", missing)
    _report(found, _taught(records, request), request.split, request.out)
    return 0


def score_files(
    predictions: Path, references: Path, split: str | None, allow_missing: bool, out: Path | None
) -> int:
    """What `score` does with answers: VQA accuracy of a file, or of each file of a folder, by kind of
    question.

    Raises DataError where questions differ, unless `allow_missing` leaves out those that only one side has,
    and says so.
    """
    from patchword.data.formats.readers import split_records
    from patchword.metrics.answer_files import read_answer_files, read_given

    records = read_given(references)
    wanted = _with_answers(split_records(records, split) if split else records, references)
    results = {}
    for name, answers in read_answer_files(predictions).items():
        found, missing = _paired(wanted, answers)
        unknown = answers.keys() - {str(record.question_id) for record in wanted}
        if not allow_missing:
            _refuse(f"{predictions} ({name})", "question", "without an answer", missing)
            _refuse(
                f"{predictions} ({name})",
                "answer",
                "to questions that the references do not have",
                unknown,
            )
        if not found:
            raise DataError(f"{predictions} ({name}) and {references} have no question id in common")
        if missing or unknown:
            print(
                f"INCOMPLETE: {counted(len(missing) + len(unknown), 'question')} left out, which only one "
                "side has"
            )
        results[name] = _scored(found, [])
        _print(results[name], name)
    if out is not None:
        write_json(out, next(iter(results.values())) if len(results) == 1 else results)
    return 0


def _with_answers(records: list[QuestionRecord], place: Path) -> list[QuestionRecord]:
    """These records. Raises DataError where one has no answer to compare with."""
    bare = [record for record in records if not record.answers]
    if bare:
        raise DataError(
            f"{place}: {counted(len(bare), 'question has', 'questions have')} no answer to "
            "compare with: use `patchword predict`"
        )
    return records


def _paired(
    records: list[QuestionRecord], answers: Mapping[str, str]
) -> tuple[list[tuple[QuestionRecord, str]], list[str]]:
    """Questions with what was answered, and the ids of those that have no answer."""
    found = [
        (record, answers[str(record.question_id)]) for record in records if str(record.question_id) in answers
    ]
    return found, [str(record.question_id) for record in records if str(record.question_id) not in answers]


def _refuse(place: object, thing: str, which: str, ids: Collection[str]) -> None:
    if ids:
        some = ", ".join(sorted(ids)[:5]) + (", ..." if len(ids) > 5 else "")
        raise DataError(f"{place}: {counted(len(ids), thing)} {which} ({some})")


def _report(
    found: list[tuple[QuestionRecord, str]], taught: list[QuestionRecord], title: str, out: Path | None
) -> None:
    result = _scored(found, taught)
    _print(result, title)
    if out is not None:
        write_json(out, result)


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


def _taught(records: list[QuestionRecord], request: EvaluateRequest) -> list[QuestionRecord]:
    """The training questions, of their own file or among these; none where the file has no such split."""
    from patchword.data.formats.questions import read_questions
    from patchword.data.formats.readers import split_records

    if request.training is not None:
        records = read_questions(request.training)
    parts = {record.split for record in records}
    return split_records(records, "train") if parts == {None} or "train" in parts else []


def _scored(found: list[tuple[QuestionRecord, str]], taught: list[QuestionRecord]) -> dict[str, Any]:
    from patchword.data.question_only import CommonestAnswer
    from patchword.metrics.answers import annotators_remark, exact_match, vqa_accuracy
    from patchword.metrics.bootstrap import grouped_interval

    given = {record.question_id: record.answers for record, _ in found}
    said = {record.question_id: text for record, text in found}
    values, exact = vqa_accuracy(given, said)["VQA_accuracy"], exact_match(given, said)["exact_match"]
    alone = None
    if taught:
        guess = CommonestAnswer((record.question, record.kind, record.answer) for record in taught)
        alone = vqa_accuracy(
            given, {record.question_id: guess.answer(record.question, record.kind) for record, _ in found}
        )["VQA_accuracy"]
    kinds, pictures = defaultdict(list), defaultdict(list)
    for record, _ in found:
        kinds[record.kind].append(record.question_id)
        pictures[record.file].append(values.values_per_item()[record.question_id])

    by_question = [None if score is None else score.values_per_item() for score in (values, exact, alone)]

    def row(name: str, numbers: list[int | str]) -> dict[str, Any]:
        means = [
            None if each is None else sum(each[number] for number in numbers) / len(numbers)
            for each in by_question
        ]
        return {
            "kind": name,
            "questions": len(numbers),
            "VQA_accuracy": means[0],
            "exact_match": means[1],
            "questions_alone": means[2],
        }

    everything = row("all", list(given))
    return {
        "pictures": len(pictures),
        "remark": annotators_remark(given),
        "all": everything | {"interval": list(grouped_interval(list(pictures.values())))},
        "kinds": [
            row(name, numbers) for name, numbers in sorted(kinds.items(), key=lambda pair: -len(pair[1]))
        ],
    }


def _print(result: dict[str, Any], title: str) -> None:
    from rich.table import Table

    from patchword.log import console

    low, high = result["all"]["interval"]
    caption = (
        f"times 100; 95 % interval of all: {100 * low:.2f} to {100 * high:.2f} (bootstrap over pictures)"
    )
    title = f"{title}: {counted(result['pictures'], 'picture')}"
    columns = {
        "VQA_accuracy": "VQA accuracy",
        "exact_match": "exact match",
        "questions_alone": "question alone",
    }
    if result["all"]["questions_alone"] is None:
        del columns["questions_alone"]
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("kind of question", "questions", *columns.values()):
        table.add_column(name, justify="left" if name == "kind of question" else "right")
    for row in (result["all"], *result["kinds"][:_KINDS_SHOWN]):
        table.add_row(row["kind"], str(row["questions"]), *(f"{100 * row[name]:.2f}" for name in columns))
    console(width=None if sys.stdout.isatty() else 120).print(table)
    hidden = len(result["kinds"]) - _KINDS_SHOWN
    if hidden > 0:
        print(f"{hidden} rarer kinds are not shown; --out writes all")
    if result["remark"] is not None:
        print(result["remark"])
    if "questions_alone" in columns:
        print(
            "question alone: the most frequent training answer to the same words, else to the same "
            "kind of question, "
            "without the picture"
        )


_KINDS_SHOWN = 20
