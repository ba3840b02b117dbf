"""Reads files of answers, as other models write them, and the answers that people gave."""

from __future__ import annotations

from pathlib import Path

from patchword.data.formats.questions import holds_questions, is_annotations, read_annotations, read_questions
from patchword.data.records import QuestionRecord
from patchword.errors import DataError
from patchword.metrics.rows import SUFFIXES, Columns, predicted_rows

ANSWERS = Columns(
    ("question_id", "questionid", "qid", "id"),
    ("answer", "prediction", "predicted_answer", "pred_answer", "pred", "response", "text"),
    "a question_id and an answer",
)
"""How files of answers name the question and what was answered."""


def holds_answers(path: Path) -> bool:
    """Are these references questions, or answers that people gave, and not captions?"""
    if path.is_file() and b"question" not in path.read_bytes():
        return False  # known at once, where parsing a large captions file takes a second
    return is_annotations(path) or holds_questions(path)


def read_given(path: Path) -> list[QuestionRecord]:
    """Questions with people's answers: VQA's annotations alone, or anything that holds questions. Raises
    DataError as their readers."""
    return read_annotations(path) if is_annotations(path) else read_questions(path)


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question id: VQA's results file, {id: answer}, JSON lines or CSV.

    Raises DataError where the file is none of these, is empty, or a question stands in it twice.
    """
    rows = predicted_rows(path, ANSWERS)
    if not rows:
        raise DataError(f"{path}: holds no answers; expected {ANSWERS.what} for every question")
    return {row.id: row.text for row in rows}


def read_answer_files(path: Path) -> dict[str, dict[str, str]]:
    """Answers by name: of one file, or of every .json, .jsonl and .csv file of a folder."""
    if not path.is_dir():
        return {path.name: read_answers(path)}
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{path}: the folder holds no file of answers (.json, .jsonl, .csv)")
    return {file.name: read_answers(file) for file in files}
