"""Questions about pictures, in the layouts of the literature and in a person's own table.

easy-VQA: questions.json is a list of [question, answer, image number]; answers.txt beside it lists all
answers; pictures are images/N.png.
          Its own download has these in train/ and test/.
VQA v2:   {"data_subtype": "train2014", "questions": [{"question_id", "image_id", "question"}]} and, in a file
of its own,
          {"annotations": [{"question_id", "image_id", "question_type", "answers": [{"answer"}, ... ten of
              them]}]}.
A table:  CSV, JSON lines or a JSON list with image, question, answer (in JSON also a list under answers), and
if wanted split and type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patchword.data.formats import tables as table_formats
from patchword.data.formats.coco import objects_of, split_in_name
from patchword.data.formats.complaints import (
    Complain,
    clean_file,
    clean_id,
    clean_split,
    clean_text,
    parse_json,
    raise_at_once,
    read_text,
)
from patchword.data.records import QuestionRecord
from patchword.errors import DataError
from patchword.text.answers import vqa_answer

FORMATS = (
    "easy-VQA's questions.json or the folder that holds it, a questions file of VQA v2 with its annotations "
    "file, "
    "or a CSV or JSONL file with image, question, answer and if wanted split and type"
)
QUESTION = ("question",)
ANSWER = ("answer", "answers", "multiple_choice_answer")
KIND = ("type", "question_type", "answer_type", "kind")


def read_questions(
    path: Path | str, answers: Path | str | None = None, complain: Complain = raise_at_once
) -> list[QuestionRecord]:
    """Read questions about pictures; the format is recognised by what the file holds.

    `answers` is the annotations file of a VQA v2 questions file, where it does not lie beside it under its
    own name. Question ids come out unique, and every question outside of test has an answer. Raises
    `DataError` at the first fault, with file, line or entry, what was found and what was expected; with a
    `complain` of one's own, faulty parts are left out instead.
    """
    path, answers = Path(path), None if answers is None else Path(answers)
    if not path.exists():
        raise DataError(f"{path}: does not exist. Expected {FORMATS}.")
    records = _folder(path, complain) if path.is_dir() else _file(path, answers, complain)
    records = _unique(records, path, complain)
    if not records:
        complain("nothing", str(path), f"no usable question was found. Expected {FORMATS}.")
    return records


def holds_questions(path: Path) -> bool:
    """Does a file or folder look like questions, and not like captions? Nothing is complained about here."""
    if path.is_dir():
        return any(
            any(path.glob(pattern)) for pattern in ("questions.json", "*/questions.json", "*_questions.json")
        )
    if not path.is_file():
        return False
    text = read_text(path, _quiet)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        text = text.lstrip().split("\n", 1)[0]
    elif path.suffix.lower() != ".json":
        return table_formats.delimiter_of(text, QUESTION) is not None
    content = parse_json(text, str(path), _quiet)
    first = content[0] if isinstance(content, list) and content else content
    return (isinstance(first, list) and len(first) == 3) or (
        isinstance(first, dict) and bool({"question", "questions"} & first.keys())
    )


def is_annotations(path: Path) -> bool:
    """Is this VQA's annotations file, which has the answers without the questions?"""
    if not path.is_file() or path.suffix.lower() != ".json":
        return False
    content = parse_json(read_text(path, _quiet), str(path), _quiet)
    entries = content.get("annotations") if isinstance(content, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and {"question_id", "answers"} <= first.keys()


def read_annotations(path: Path, complain: Complain = raise_at_once) -> list[QuestionRecord]:
    """The answers of VQA's annotations file by themselves, with the type of question as kind and an empty
    question.

    Raises as `read_questions`.
    """
    entries = _json(path, complain)["annotations"]
    found = _given(entries, path, complain)
    images = {entry["question_id"]: entry.get("image_id") for entry in entries if isinstance(entry, dict)}
    records = []
    for number, (texts, kind) in found.items():
        image = images.get(number)
        image = number if image is None else image
        records.append(
            QuestionRecord(number, image, str(image), "", texts, _kind(kind, "", texts) or "other")
        )
    return _unique(records, path, complain)


def _quiet(kind: str, where: str, message: str) -> None:
    """The `Complain` of a look that only asks what a file holds: the reader that follows says what is
    wrong."""


def _folder(path: Path, complain: Complain) -> list[QuestionRecord]:
    """easy-VQA, whole or in folders per split, or the files of VQA v2."""
    if (path / "questions.json").is_file():
        return _file(path / "questions.json", None, complain)
    parts = [
        (name, path / name / "questions.json")
        for name in ("train", "val", "test")
        if (path / name / "questions.json").is_file()
    ]
    if parts:
        return [
            record for split, file in parts for record in _easy(_json(file, complain), file, complain, split)
        ]
    return [
        record for file in sorted(path.glob("*_questions.json")) for record in _file(file, None, complain)
    ]


def _file(path: Path, answers: Path | None, complain: Complain) -> list[QuestionRecord]:
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        return _csv(read_text(path, complain), path, complain)
    if path.suffix.lower() != ".json":
        return _rows(table_formats.json_line_rows(read_text(path, complain), path, complain), complain)
    content = _json(path, complain)
    if isinstance(content, list) and (not content or isinstance(content[0], list)):
        return _easy(content, path, complain, None)
    if isinstance(content, list):
        return _rows(table_formats.json_list_rows(content, "question", path, complain), complain)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        return _vqa(content, path, answers, complain)
    if content is not None:
        found = (
            f"an object with {', '.join(map(str, list(content)[:6])) or 'nothing'}"
            if isinstance(content, dict)
            else repr(content)[:40]
        )
        complain("layout", str(path), f"found {found}. Expected {FORMATS}.")
    return []


def _json(path: Path, complain: Complain) -> Any:
    return parse_json(read_text(path, complain), str(path), complain)


def _easy(content: object, path: Path, complain: Complain, split: str | None) -> list[QuestionRecord]:
    if not isinstance(content, list):
        complain(
            "layout",
            str(path),
            f"expected a list of [question, answer, image number], found {type(content).__name__}",
        )
        return []
    listed = path.with_name("answers.txt")
    allowed = (
        {line.strip() for line in read_text(listed, complain).splitlines()} if listed.is_file() else None
    )
    records = []
    for index, entry in enumerate(content):
        where = f"{path}, entry {index}"
        if (
            not isinstance(entry, list)
            or len(entry) != 3
            or isinstance(entry[2], bool)
            or not isinstance(entry[2], int)
        ):
            complain("layout", where, f"expected [question, answer, image number], found {str(entry)[:80]}")
            continue
        question, answer = (
            clean_text(entry[0], "question", where, complain),
            clean_text(entry[1], "answer", where, complain),
        )
        if answer is not None and allowed is not None and answer not in allowed:
            complain(
                "answer", where, f"the answer {answer!r} is not one of the {len(allowed)} in {listed.name}"
            )
        elif question is not None and answer is not None:
            file = f"{entry[2]}.png" if split is None else f"{split}/images/{entry[2]}.png"
            number = index if split is None else f"{split}/{index}"
            image = entry[2] if split is None else f"{split}/{entry[2]}"
            records.append(
                QuestionRecord(
                    number, image, file, question, (answer,), _kind(None, question, (answer,)), split
                )
            )
    return records


def _vqa(content: dict, path: Path, answers: Path | None, complain: Complain) -> list[QuestionRecord]:
    """Pictures are named as COCO names them: train2014/COCO_train2014_000000000009.jpg, below the folder of
    the pictures.
    """
    subtype = content.get("data_subtype")
    if not isinstance(subtype, str) or not re.fullmatch(r"[\w-]+", subtype):
        complain(
            "layout",
            str(path),
            f"data_subtype must say which pictures are meant (train2014, for instance), found {subtype!r}",
        )
        return []
    split, pictures = split_in_name(Path(subtype)), subtype.replace("test-dev", "test")
    given = _annotations(path, answers, split, complain)
    records, asked = [], set()
    for where, entry in objects_of(content["questions"], f"{path}, questions", complain):
        number, image = (
            clean_id(entry.get("question_id"), where, complain, "question"),
            clean_id(entry.get("image_id"), where, complain),
        )
        question = clean_text(entry.get("question"), "question", where, complain)
        asked.add(number)
        if number is None or image is None or question is None:
            continue
        texts, kind = given.get(number, ((), None))
        if not texts and split != "test":
            complain(
                "no-answer",
                where,
                f"no annotation answers question {number!r}: give its annotations file, or leave it out",
            )
            continue
        file = (
            f"{pictures}/COCO_{pictures}_{image:012d}.jpg"
            if isinstance(image, int)
            else f"{pictures}/{image}"
        )
        records.append(
            QuestionRecord(number, image, file, question, texts, _kind(kind, question, texts), split)
        )
    unknown = given.keys() - asked
    if unknown:
        some = ", ".join(map(str, sorted(unknown, key=str)[:3]))
        complain(
            "unknown-question",
            str(path),
            f"{len(unknown)} annotations answer questions that are not in this file ({some})",
        )
    return records


_Given = dict[int | str, tuple[tuple[str, ...], object]]


def _annotations(path: Path, answers: Path | None, split: str | None, complain: Complain) -> _Given:
    """Answers and question type by question id, from the file given or the one that VQA v2 puts beside its
    questions.
    """
    named = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if answers is None and (named == path or not named.is_file()):
        if split != "test":
            complain("no-answer", str(path), f"there is no annotations file {named.name} beside it: name one")
        return {}
    source = answers or named
    content = _json(source, complain)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        complain(
            "layout",
            str(source),
            f"expected an object with a list of annotations, found {type(content).__name__}",
        )
        return {}
    return _given(content["annotations"], source, complain)


def _given(entries: list, source: Path, complain: Complain) -> _Given:
    """Answers, in the form in which VQA's evaluation compares them, and question type by question id."""
    found: _Given = {}
    for where, entry in objects_of(entries, f"{source}, annotations", complain):
        number = clean_id(entry.get("question_id"), where, complain, "question")
        said_by = objects_of(entry.get("answers"), where, complain)
        texts = [clean_text(one.get("answer"), "answer", place, complain) for place, one in said_by]
        said = tuple(normal_answer(text) for text in texts if text is not None)
        if number is not None and said:
            found[number] = (said, entry.get("question_type"))
    return found


def normal_answer(answer: str) -> str:
    """An answer as VQA's evaluation compares it (`text.answers`); what would become empty stays, in lower
    case: it can be learnt."""
    return vqa_answer(answer) or answer.lower()


def _csv(text: str, path: Path, complain: Complain) -> list[QuestionRecord]:
    delimiter = table_formats.delimiter_of(text, QUESTION)
    if delimiter is None:
        header = text.lstrip("\n").split("\n", 1)[0][:80]
        complain(
            "layout",
            f"{path}, line 1",
            f"expected a header with the columns image, question and answer, found {header!r}",
        )
        return []
    return _rows(table_formats.csv_rows(text, delimiter, path, complain), complain)


def _rows(rows: Iterable[tuple[str, dict]], complain: Complain) -> list[QuestionRecord]:
    """One record per row, its number the row's own; a split that is test may leave the answer out."""
    records = []
    for index, (where, row) in enumerate(rows):
        names = [
            table_formats.column(row, wanted)
            for wanted in (table_formats.IMAGE, QUESTION, ANSWER, table_formats.SPLIT, KIND)
        ]
        image, asked, answered, parted, kinded = names
        if image is None or asked is None:
            complain(
                "layout",
                where,
                f"expected image, question and answer, found the fields {', '.join(row) or 'nothing'}",
            )
            continue
        split = clean_split(row[parted], where, complain) if parted else None
        name, question = (
            clean_file(row[image], where, complain),
            clean_text(row[asked], "question", where, complain),
        )
        values = (
            row[answered]
            if answered and isinstance(row[answered], list)
            else [row[answered]]
            if answered
            else []
        )
        if split == "test":
            values = [value for value in values if value not in (None, "")]
        texts = [clean_text(value, "answer", where, complain) for value in values]
        answers = tuple(text for text in texts if text is not None)
        if not values and split != "test":
            complain("no-answer", where, "the question has no answer: add one, or put it into the split test")
        if name is None or question is None or (not answers and split != "test"):
            continue
        number = clean_id(row.get("question_id", index), where, complain, "question")
        if number is not None:
            kind = _kind(row[kinded] if kinded else None, question, answers)
            records.append(QuestionRecord(number, name, name, question, answers, kind, split))
    return records


def _kind(given: object, question: str, answers: tuple[str, ...]) -> str:
    if isinstance(given, str) and given.strip():
        return given.strip()
    if answers and {answer.lower() for answer in answers} <= {"yes", "no"}:
        return "yes/no"
    return " ".join(question.lower().split()[:2])


def _unique(records: list[QuestionRecord], path: Path, complain: Complain) -> list[QuestionRecord]:
    """The records without those whose id was there before, or whose picture was there before in another
    split.
    """
    by_id: dict[int | str, QuestionRecord] = {}
    split_of: dict[str, str | None] = {}
    for record in records:
        where = f"{path}, question {record.question_id!r}"
        if record.question_id in by_id:
            complain(
                "duplicate-id",
                where,
                f"the id is also that of {by_id[record.question_id].question!r}: ids must be unique",
            )
        elif split_of.setdefault(record.file, record.split) != record.split:
            complain(
                "overlap",
                where,
                f"{record.file} is in {record.split} and in {split_of[record.file]}: a picture belongs to "
                "one split",
            )
        else:
            by_id[record.question_id] = record
    return list(by_id.values())
