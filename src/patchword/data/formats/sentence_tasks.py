"""Tasks of language understanding as they are published: GLUE's TSV files, SWAG, and SQuAD.

GLUE is read as it comes, without quotes: a quotation mark is a letter there. Files of the test part have no
labels, and their rows get None.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from patchword.data.formats.complaints import parse_json, raise_at_once, read_text
from patchword.errors import DataError

_FIRST = ("sentence", "sentence1", "question1", "question", "premise", "#1 string")
_SECOND = ("sentence2", "question2", "hypothesis", "#2 string")
_LABEL = ("gold_label", "label", "score", "is_duplicate", "quality")
ENDINGS = 4


class SentenceRow(NamedTuple):
    """One sentence or two, and what is said of them."""

    first: str
    second: str | None
    """None where the task is about single sentences (SST-2)."""
    label: str | None
    """As it is written: 0, entailment, 3.8; None where the file has none."""


class Continuation(NamedTuple):
    """The beginning of a text, and four endings."""

    beginning: str
    endings: tuple[str, ...]
    label: int | None
    """Which of them is right, from 0; None where the file does not say."""


class SpanQuestion(NamedTuple):
    """A question whose answer is a span of a text."""

    question_id: str
    context: str
    question: str
    answers: tuple[tuple[int, int], ...]
    """Where the answers of different people stand: characters from and to; empty where there is none."""


def read_glue(path: Path) -> list[SentenceRow]:
    """The rows of a TSV of GLUE (SST-2, RTE, STS-B, MRPC, QQP, QNLI, MNLI, WNLI), or of one laid out alike.

    Raises DataError for a header without a column of sentences, or naming the first row that has another
    number of cells.
    """
    lines = [line for line in read_text(path, raise_at_once).split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: expected a header such as sentence<tab>label")
    header = [name.strip().lower() for name in lines[0].split("\t")]
    first, second, label = (_place(header, names) for names in (_FIRST, _SECOND, _LABEL))
    if first is None:
        raise DataError(
            f"{path}, line 1: found the columns {', '.join(header)[:100]}; expected one of "
            f"{', '.join(_FIRST)}, "
            "with tabs between"
        )
    if header[first] == "question" and second is None:
        second = _place(header, ("sentence",))  # QNLI
    if "question" in header and "sentence" in header:
        first, second = header.index("question"), header.index("sentence")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(cells)} cells where the header has {len(header)}: one tab "
                "stands "
                "between two cells, and none in a sentence"
            )
        rows.append(
            SentenceRow(
                cells[first].strip(),
                None if second is None else cells[second].strip(),
                None if label is None else cells[label].strip(),
            )
        )
    if not rows:
        raise DataError(f"{path} has a header and no rows")
    return rows


def read_swag(path: Path) -> list[Continuation]:
    """SWAG: its CSV, or a JSON list or JSON lines of the same columns (sent1, sent2, ending0 to ending3,
    label).

    Raises DataError naming the first row that is none.
    """
    rows = []
    for where, row in _rows(path):
        endings = [row.get(f"ending{number}") for number in range(ENDINGS)]
        begun = row.get("startphrase") or " ".join(
            str(row[name]) for name in ("sent1", "sent2") if row.get(name)
        )
        if not begun or not all(isinstance(ending, str) and ending for ending in endings):
            raise DataError(f"{where}: expected startphrase (or sent1 and sent2) and ending0 to ending3")
        label = row.get("label")
        if label not in (None, "", -1):
            label = int(label) if str(label) in map(str, range(ENDINGS)) else None
            if label is None:
                raise DataError(f"{where}: label is {row['label']!r}, expected 0 to {ENDINGS - 1}")
        else:
            label = None
        rows.append(Continuation(str(begun).strip(), tuple(str(ending) for ending in endings), label))
    if not rows:
        raise DataError(f"{path} has no rows: expected startphrase and ending0 to ending3")
    return rows


def read_squad(path: Path) -> list[SpanQuestion]:
    """SQuAD 1.1 and 2.0: questions with the spans of their answers.

    Raises DataError for another layout, or naming an answer that does not stand where it is said to.
    """
    content = parse_json(read_text(path, raise_at_once), str(path), raise_at_once)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f"{path}: expected an object with a list `data`, as SQuAD has it")
    found = []
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    answers = [] if asked.get("is_impossible") else asked.get("answers", [])
                    spans = tuple(
                        _span(answer, context, f"{path}, question {asked['id']}") for answer in answers
                    )
                    found.append(SpanQuestion(str(asked["id"]), context, asked["question"], spans))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: entry {len(found)} lacks {error}: expected data, paragraphs, context, qas, id, "
            "question and "
            "answers, as SQuAD has them"
        ) from error
    if not found:
        raise DataError(f"{path} has no questions")
    return found


def _span(answer: dict[str, Any], context: str, where: str) -> tuple[int, int]:
    begin, text = answer["answer_start"], answer["text"]
    if not isinstance(begin, int) or context[begin : begin + len(text)] != text or not text:
        raise DataError(f"{where}: the answer {text!r} does not stand at character {begin} of its context")
    return begin, begin + len(text)


def _place(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV, a JSON list, or JSON lines, each with its place."""
    text = read_text(path, raise_at_once)
    start = text.lstrip()[:1]
    if start == "[":
        content = parse_json(text, str(path), raise_at_once)
        rows = [(f"{path}, entry {number}", row) for number, row in enumerate(content)]
    elif start == "{":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [
            (f"{path}, line {n}", parse_json(line, f"{path}, line {n}", raise_at_once)) for n, line in lines
        ]
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, found {type(row).__name__}")
        yield where, row
