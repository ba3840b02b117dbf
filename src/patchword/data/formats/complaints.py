"""How a reader says that something is wrong: strict reading raises at the first fault, the doctor collects
them all.

A reader gets `complain(kind, where, message)`, calls it for each fault and then leaves the faulty part out.
So the same code serves a training, which must not start on broken data, and `patchword check`, which lists
everything at once.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchword.errors import DataError

Complain = Callable[[str, str, str], None]
"""complain(kind, where, message): `kind` is a short name for the sort of fault, `where` a file with line
or entry."""

SPLITS = {
    "train": "train",
    "restval": "train",  # Karpathy: the rest of COCO's validation pictures, which everybody trains on
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How splits are spelt in the wild, and how they are called here."""


def raise_at_once(kind: str, where: str, message: str) -> None:
    """The strict `Complain`. Raises `DataError` with place and message."""
    raise DataError(f"{where}: {message}")


def read_text(path: Path, complain: Complain) -> str:
    """The file as text: UTF-8 with or without byte-order mark, every line ending turned into a newline.

    Raises `DataError` for a file that cannot be opened; bytes that are not UTF-8 are a complaint ("encoding")
    per line.
    """
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise DataError(
            f"{path}: cannot be read: {reason.strerror or reason}. Give the path of an annotation file."
        ) from reason
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _utf_16(raw, path, complain)
    try:
        text = raw.decode("utf-8-sig")
        if "\0" in text:
            complain("encoding", str(path), f"the file holds zero bytes{_guess(raw)}: save it as UTF-8")
    except UnicodeDecodeError:
        guess = _guess(raw)
        for number, line in enumerate(raw.splitlines(), start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError as reason:
                found = f"byte 0x{line[reason.start]:02x} at column {reason.start + 1}"
                complain(
                    "encoding",
                    f"{path}, line {number}",
                    f"{found} is not UTF-8{guess}: save the file as UTF-8",
                )
        text = raw.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _utf_16(raw: bytes, path: Path, complain: Complain) -> str:
    """The text of a file that begins with the mark of UTF-16, after a complaint."""
    try:
        text = raw.decode("utf-16")
    except UnicodeDecodeError:
        found = "begins as UTF-16 does and is none, so it may be no text at all"
        text = raw.decode("utf-16", errors="replace")
    else:
        found = "is UTF-16 (often 'Unicode text' of a spreadsheet)"
    complain("encoding", str(path), f"the file {found}, expected UTF-8: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _guess(raw: bytes) -> str:
    """What another encoding the bytes may be of, marked as a guess; empty where nothing speaks for one."""
    if b"\0" in raw:
        even, odd = raw[::2].count(0), raw[1::2].count(0)
        if max(even, odd) > len(raw) // 8 and min(even, odd) * 8 < max(even, odd):
            return f" (it may be UTF-16-{'LE' if odd > even else 'BE'} without its mark; this is a guess)"
        return " (it may be no text at all; this is a guess)"
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw)]
    alone = 2 * runs.count(1) > len(
        runs
    )  # an accent among Latin letters, where other scripts have whole words
    for encoding, name, scripts in _LATIN if alone else _OTHERS:
        try:
            letters = [letter for letter in raw.decode(encoding) if letter > "\x7f"]
        except UnicodeDecodeError:
            continue
        fitting = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
        if letters and 10 * fitting >= 9 * len(letters):
            return f" (it may be {name}; this is a guess)"
    return ""


_LATIN = (("cp1252", "Windows-1252", ("LATIN", "RIGHT", "LEFT", "EURO", "DEGREE", "EN DASH", "EM DASH")),)
_OTHERS = (
    ("shift_jis", "Shift JIS", ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC")),
    ("gb18030", "GB 18030", ("CJK", "IDEOGRAPHIC", "FULLWIDTH")),
    ("big5", "Big5", ("CJK", "IDEOGRAPHIC", "FULLWIDTH")),
    ("cp1251", "Windows-1251", ("CYRILLIC",)),
)
"""Encodings that people still save tables in, and what the names of their letters beyond ASCII begin with."""


def parse_json(text: str, where: str, complain: Complain) -> Any:
    """The JSON value of `text`; None after a complaint ("syntax") when it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as reason:
        complain(
            "syntax",
            f"{where}, line {reason.lineno}, column {reason.colno}",
            f"this is not JSON: {reason.msg}",
        )
    except (
        ValueError,
        RecursionError,
    ) as reason:  # numbers of thousands of digits, brackets nested without end
        complain("syntax", where, f"this JSON cannot be read: {reason}")
    return None


def clean_caption(value: object, where: str, complain: Complain) -> str | None:
    """`clean_text` of a caption."""
    return clean_text(value, "caption", where, complain)


def clean_text(value: object, what: str, where: str, complain: Complain) -> str | None:
    """The text with white space collapsed, or None after a complaint: not a text, empty, or not encodable as
    UTF-8.

    `what` it is (caption, question, answer) names the complaints.
    """
    if not isinstance(value, str):
        complain(
            what, where, f"{'an' if what[0] in 'aeiou' else 'a'} {what} must be a text, found {_shown(value)}"
        )
        return None
    text = " ".join(value.split())
    if not text or all(unicodedata.category(letter) in ("Cc", "Cf") for letter in text):
        complain(f"empty-{what}", where, f"the {what} is empty: write one or remove the entry")
        return None
    if any("\ud800" <= letter <= "\udfff" for letter in text) or "\x00" in text:
        complain("encoding", where, f"the {what} holds characters that no text file can hold: {text[:60]!a}")
        return None
    return text


def clean_file(value: object, where: str, complain: Complain) -> str | None:
    """The name of a picture's file, or None after a complaint. Surrogates that stand for bytes (U+DC80 to
    U+DCFF) are taken: names on disk need not be UTF-8."""
    if not isinstance(value, str) or not value.strip():
        complain("file", where, f"the name of the picture must be a text, found {_shown(value)}")
        return None
    if any(
        letter < " " or "\ud800" <= letter < "\udc80" or "\udcff" < letter <= "\udfff" for letter in value
    ):
        complain(
            "file",
            where,
            f"the name of the picture holds characters that no file name can hold: {value[:60]!a}",
        )
        return None
    return value.strip()


def _is_byte(letter: str) -> bool:
    """Does this surrogate stand for a byte of a file name that is no UTF-8?"""
    return "\udc80" <= letter <= "\udcff"


def clean_split(value: object, where: str, complain: Complain) -> str | None:
    """train, val or test; None for an empty cell, or after a complaint ("split") for a name that is not
    known.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    split = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        complain(
            "split",
            where,
            f"the split is {_shown(value)}, expected train (or restval), val (or dev, valid, validation) or "
            "test",
        )
    return split


def clean_id(value: object, where: str, complain: Complain, what: str = "image") -> int | str | None:
    """The id of an image or a question, which is a whole number or a text, or None after a complaint."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        complain(
            f"{what}-id", where, f"the {what} id must be a whole number or a text, found {_shown(value)}"
        )
        return None
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    return "nothing" if value is None else repr(value)[:60]
