"""Prompts for labels without training: eighty templates, files of classes and of templates.

The idea is CLIP's (Radford et al. 2021, section 3.1.4): the vector of a class is the mean of the vectors of
its prompts. The wording of the templates is our own.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from patchword.errors import DataError


class ClassNames(NamedTuple):
    """A label as the data write it, and the names by which it is prompted."""

    label: str
    names: tuple[str, ...]


@cache
def templates() -> tuple[str, ...]:
    """The eighty templates, each with one place {} for the name."""
    return read_templates(Path(__file__).with_name("templates.txt"))


def read_templates(file: Path) -> tuple[str, ...]:
    """A template per line. Raises DataError, with the line, for one without exactly one place {}."""
    found = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        if line.count("{}") != 1 or line.count("{") != 1 or line.count("}") != 1:
            raise DataError(f"{file}, line {number}: {line!r} needs exactly one place {{}} for the name")
        found.append(line.strip())
    if not found:
        raise DataError(f"{file} holds no template: expected lines such as 'a photo of a {{}}.'")
    return tuple(found)


def read_classes(file: Path) -> tuple[ClassNames, ...]:
    """Classes from a JSON object {label: name or [names]}, or from lines: a label, or label<TAB>name, name.

    Raises DataError for fewer than two classes, a label that stands twice, or one without a name.
    """
    text = _text(file)
    rows = _from_json(text, file) if file.suffix.lower() == ".json" else _from_lines(text)
    seen: dict[str, ClassNames] = {}
    for row in rows:
        if row.label in seen or not row.names:
            found = "stands twice" if row.label in seen else "has no name"
            raise DataError(f"{file}: the class {row.label!r} {found}")
        seen[row.label] = row
    if len(seen) < 2:
        raise DataError(f"{file} names {len(seen)} classes: expected two or more, one per line")
    return tuple(seen.values())


def _from_lines(text: str) -> list[ClassNames]:
    rows = []
    for line in text.splitlines():
        label, tab, names = line.partition("\t")
        if label.strip():
            given = names if tab else label
            parts = given.split(",") if tab else [given]
            rows.append(ClassNames(label.strip(), tuple(name.strip() for name in parts if name.strip())))
    return rows


def _from_json(text: str, file: Path) -> list[ClassNames]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object {{label: name or list of names}}")
    rows = []
    for label, names in content.items():
        given = [names] if isinstance(names, str) else names
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise DataError(f"{file}: {label!r} has {names!r}, expected a name or a list of names")
        rows.append(ClassNames(label, tuple(name.strip() for name in given if name.strip())))
    return rows


def _text(file: Path) -> str:
    """UTF-8, with or without the mark that spreadsheets put before it."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise DataError(f"{file}: {found}: save the file as UTF-8") from error
