"""Files of predictions as programs write them: pairs of an id and a text, whatever the layout; every id
becomes a string.

A JSON list of objects (COCO results, VQA results), a JSON object {id: text}, JSON lines, and CSV with a
header.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from patchword.data.formats.complaints import raise_at_once, read_text
from patchword.data.formats.tables import column, csv_rows, delimiter_of, json_line_rows
from patchword.errors import DataError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
"""What files of predictions end in, where a folder of them is read."""


class Row(NamedTuple):
    """One prediction: where it stands, whose it is, and what it says."""

    where: str
    id: str
    text: str


class Columns(NamedTuple):
    """The names under which programs write an id and its text, the first that is there counts; `what` says
    what they are, for messages."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    what: str


def predicted_rows(path: Path, columns: Columns) -> list[Row]:
    """All predictions of a file, in its order.

    Raises DataError where the file is of none of the layouts, a row has no id or no text, or an id stands
    twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; expected a file of predictions ({columns.what})")
    text = _text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = [_row(row, where, columns) for where, row in json_line_rows(text, path, raise_at_once)]
    elif path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
        rows = _json_rows(_parsed(text, path), path, columns)
    else:
        rows = _csv(text, path, columns)
    _refuse_twice(rows, path)
    return rows


def _text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 are kept as surrogates, for they may belong to the name of a
    picture."""
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return read_text(path, raise_at_once)
    return raw.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None


def _json_rows(content: Any, path: Path, columns: Columns) -> list[Row]:
    if isinstance(content, dict):
        listed = next((content[name] for name in _LISTS if isinstance(content.get(name), list)), None)
        if listed is None:
            return [_pair(number, value, path, columns) for number, value in content.items()]
        content = listed
    if not isinstance(content, list):
        raise DataError(f"{path}: expected {_expected(columns)}, found {_kind(content)}")
    return [
        _row(_lowered(row, f"{path}, row {place}", columns), f"{path}, row {place}", columns)
        for place, row in enumerate(content)
    ]


_LISTS = ("annotations", "predictions", "results")
"""Under which some programs wrap the list of their results."""


def _lowered(row: Any, where: str, columns: Columns) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected {columns.what}, found {str(row)[:80]}")
    return {str(name).strip().lower(): value for name, value in row.items()}


def _csv(text: str, path: Path, columns: Columns) -> list[Row]:
    delimiter = delimiter_of(text, columns.texts, columns.ids)
    if delimiter is None:
        header = text.lstrip("\n").split("\n", 1)[0][:80]
        raise DataError(f"{path}, line 1: expected {_expected(columns)}; the first line is {header!r}")
    return [_row(row, where, columns) for where, row in csv_rows(text, delimiter, path, raise_at_once)]


def _expected(columns: Columns) -> str:
    return (
        f"a list of {columns.what}, an object {{id: text}}, JSON lines, or CSV with a header "
        f"({columns.ids[0]}, {columns.texts[0]})"
    )


def _row(row: dict[str, Any], where: str, columns: Columns) -> Row:
    number, text = column(row, columns.ids), column(row, columns.texts)
    said = None if text is None else _said(row[text])
    if number is None or not _is_id(row[number]) or said is None:
        raise DataError(f"{where}: expected {columns.what} (a text), found {str(row)[:80]}")
    if any("\ud800" <= letter <= "\udfff" for letter in said):
        raise DataError(f"{where}: the text {said[:60]!a} is not UTF-8: save the file as UTF-8")
    return Row(where, str(row[number]), said)


def _pair(number: str, value: Any, path: Path, columns: Columns) -> Row:
    """An entry of {id: text}; also coco-caption's own {id: [text]} and {id: [{"caption": text}]}."""
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(only, dict) and (name := column(only, columns.texts)) is not None:
        only = only[name]
    said = _said(only)
    if said is None:
        raise DataError(f"{path}, entry {number!r}: expected {_expected(columns)}, found {str(value)[:80]}")
    return Row(f"{path}, entry {number!r}", number, said)


def _said(value: Any) -> str | None:
    """A text; a number is one as well (an answer of 2), and a list of one text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""


def _refuse_twice(rows: Iterable[Row], path: Path) -> None:
    refuse_duplicates((row.id for row in rows), path)


def refuse_duplicates(ids: Iterable[str], path: Path) -> None:
    """Raises DataError listing the ids that stand more than once."""
    twice = [number for number, times in Counter(ids).items() if times > 1]
    if twice:
        more = ", ..." if len(twice) > 10 else ""
        raise DataError(
            f"{path}: {len(twice)} ids stand more than once ({', '.join(twice[:10])}{more}); each has "
            "one entry"
        )


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), type(value).__name__)
