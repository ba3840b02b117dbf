"""Phrases with the boxes that they name, from JSON lines: what `point` is tuned on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from patchword.errors import ConfigError, DataError, counted

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the picture's sides."""


class Phrase(NamedTuple):
    """What is named, and where it is."""

    image: str
    phrase: str
    box: Box
    split: str


def read_phrases(path: Path) -> list[Phrase]:
    """The lines {"image", "phrase", "box", "split"} of a file.

    Raises DataError with the line that is none, or whose box does not lie in the picture.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    return [_phrase(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _phrase(path: Path, number: int, line: str) -> Phrase:
    try:
        row: Any = json.loads(line)
        left, top, right, bottom = (float(side) for side in row["box"])
        box = left, top, right, bottom
        found = Phrase(str(row["image"]), str(row["phrase"]), box, str(row.get("split", "train")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}, line {number}: expected {{"image": FILE, "phrase": WORDS, "box": [left, top, right, '
            f'bottom], "split": "train" or "val"}}, found {line[:80]!r}'
        ) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise DataError(
            f"{path}, line {number}: the box {list(box)} does not lie in the picture: expected left < right "
            "and top < bottom as shares of its sides, 0 to 1"
        )
    return found


def split_phrases(path: Path, limit: int) -> tuple[list[Phrase], list[Phrase]]:
    """Those to learn from, `limit` at most (0: all), and those of split val, which select.

    Raises ConfigError where either is missing, and what `read_phrases` raises.
    """
    rows = read_phrases(path)
    train, selection = ([row for row in rows if row.split == split] for split in ("train", "val"))
    if not train or not selection:
        raise ConfigError(
            f"{path}: {counted(len(train), 'phrase')} of split train and {len(selection)} of split val: both "
            "are needed"
        )
    return train[:limit] if limit else train, selection
