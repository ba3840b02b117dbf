"""Tables of pictures, texts and labels: CSV or JSON lines, read row by row and never as a whole.

The columns are `image`, `text` and `label`, and optionally `split`; other names are a setting. CSV is UTF-8
with or without byte-order mark, with comma, semicolon, tab or bar between cells; quoted cells may hold
delimiters, quotes and newlines. A training keeps only the position of each row in the file, eight bytes, and
reads the row again for its batch (`LabelTable.read`), so a table may be larger than memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, Field

from patchword.data.formats.complaints import clean_file, clean_split, raise_at_once
from patchword.data.formats.tables import DELIMITERS
from patchword.data.records import LabelRecord
from patchword.errors import DataError

Missing = Literal["error", "image-only", "text-only"]
"""What happens to a row without text (image-only: it is labelled from the picture alone) or without
picture (text-only)."""


class TableColumns(BaseModel, extra="forbid", frozen=True):
    """Names of the columns, in any case."""

    image: str = Field("image", description="column of the pictures' file names")
    text: str = Field("text", description="column of the texts")
    label: str = Field("label", description="column of the labels")
    split: str = Field(
        "split",
        description="column of train, val or test; a table without it is split by file name, "
        "one row in ten val",
    )
    separator: str | None = Field(
        None,
        description='what stands between several labels of a row, such as "|"; absent: one label per row',
    )


class LabelTable:
    """A table on disk. `rows()` reads it from beginning to end, `read(place)` reads one row again."""

    def __init__(self, path: Path, columns: TableColumns) -> None:
        """Raises DataError for a file that cannot be read, or a header without an image or text column."""
        self.path, self.columns = Path(path), columns
        try:
            with open(self.path, "rb") as file:
                first = file.readline()
        except OSError as reason:
            raise DataError(
                f"{self.path}: cannot be read: {reason.strerror or reason}. Give the path of a CSV or JSON "
                "lines file."
            ) from reason
        if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                f"{self.path}: the file is UTF-16 (often 'Unicode text' of a spreadsheet), expected UTF-8: "
                "save it as UTF-8"
            )
        self._is_json = (
            _decoded(first, f"{self.path}, line 1").removeprefix("\ufeff").lstrip().startswith("{")
        )
        self._delimiter, self._start = ",", 0
        self._names: tuple[str, ...] = ()
        if not self._is_json:
            self._read_header()

    def _read_header(self) -> None:
        with open(self.path, "rb") as file:
            lines = _Lines(file, self.path, 0)
            header = next(lines, "")
            found = []
            for delimiter in DELIMITERS:
                found = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
                if {self.columns.image.lower(), self.columns.text.lower()} & set(found) and len(found) > 1:
                    self._delimiter, self._names, self._start = delimiter, tuple(found), lines.place
                    return
        wanted = f"{self.columns.image}, {self.columns.text} and {self.columns.label}"
        raise DataError(
            f"{self.path}, line 1: expected a header with the columns {wanted}, found {header.strip()[:80]!r}"
        )

    def rows(self) -> Iterator[LabelRecord]:
        """Yields all rows in order. Raises DataError with the line of a row that cannot be read."""
        with open(self.path, "rb") as file:
            file.seek(self._start)
            yield from self._from(file, self._start, 1 if self._is_json else 2)

    def read(self, place: int) -> LabelRecord:
        """Reads the row that begins at byte `place` (`LabelRecord.place`).

        Its `where` names only the file.
        """
        with open(self.path, "rb") as file:
            file.seek(place)
            return next(self._from(file, place, None))

    def _from(self, file: BinaryIO, place: int, line: int | None) -> Iterator[LabelRecord]:
        lines = _Lines(file, self.path, place, line)
        cells = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            place, where = lines.place, lines.where()
            try:
                row = [next(lines)] if self._is_json else next(cells)
            except StopIteration:
                return
            except csv.Error as reason:
                advice = "put cells that hold quotes, delimiters or newlines between double quotes, "
                advice += "and double their quotes"
                raise DataError(f"{where}: this row cannot be read ({reason}): {advice}") from reason
            if not any(cell.strip() for cell in row):
                continue
            yield self._record(
                self._object(row[0], where) if self._is_json else self._by_name(row, where), place, where
            )

    def _object(self, line: str, where: str) -> dict[str, object]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as reason:
            raise DataError(f"{where}: this is not JSON: {reason}") from reason
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected one JSON object per line, found {type(value).__name__}")
        return {str(name).strip().lower(): cell for name, cell in value.items()}

    def _by_name(self, row: list[str], where: str) -> dict[str, object]:
        if len(row) != len(self._names):
            advice = "put cells that hold the delimiter between double quotes"
            raise DataError(
                f"{where}: the row has {len(row)} cells where the header has {len(self._names)}: {advice}"
            )
        return dict(zip(self._names, row, strict=True))

    def _record(self, row: dict[str, object], place: int, where: str) -> LabelRecord:
        columns = self.columns
        image, text, label = (row.get(name.lower()) for name in (columns.image, columns.text, columns.label))
        file = "" if image is None or image == "" else clean_file(image, where, raise_at_once)
        split = clean_split(row.get(columns.split.lower()), where, raise_at_once)
        return LabelRecord(where, place, file or "", _text(text, where), self._labels(label, where), split)

    def _labels(self, value: object, where: str) -> tuple[str, ...]:
        separator = self.columns.separator
        if isinstance(value, list) and separator is not None:
            parts = [str(part) for part in value]
        elif value is None or isinstance(value, str | int) and not isinstance(value, bool):
            parts = (
                []
                if value is None
                else str(value).split(separator)
                if separator is not None
                else [str(value)]
            )
        else:
            advice = "give a text, or set data.columns.separator where a row has several labels"
            raise DataError(f"{where}: the label is {json.dumps(value)[:60]}: {advice}")
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


class _Lines:
    """Lines of a file as text, with the position of the next one."""

    def __init__(self, file: BinaryIO, path: Path, place: int, line: int | None = 1) -> None:
        self._file, self._path, self.place, self._line = file, path, place, line

    def where(self) -> str:
        return str(self._path) if self._line is None else f"{self._path}, line {self._line}"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline()
        if not raw:
            raise StopIteration
        text = _decoded(raw, self.where())
        text = text.removeprefix("\ufeff") if self.place == 0 else text
        self.place += len(raw)
        self._line = None if self._line is None else self._line + 1
        return text


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        found = f"byte 0x{raw[reason.start]:02x} at column {reason.start + 1}"
        raise DataError(f"{where}: {found} is not UTF-8: save the file as UTF-8") from reason


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: the text must be a text, found {json.dumps(value)[:60]}")
    return " ".join(value.split())


def absent(
    record: LabelRecord, images: Path | None, reads: tuple[bool, bool], missing: Missing
) -> tuple[bool, bool]:
    """Returns whether a row lacks its picture, and whether it lacks its text.

    Only what a model reads counts (`reads`: picture, text). A picture is missing where its cell is empty or
    no file of that name is under `images`; a text is missing where it is blank.

    Raises:
        DataError: something is missing that `missing` does not allow, or both are; the message names the row.
    """
    no_image = reads[0] and not (record.file and images is not None and (images / record.file).is_file())
    no_text = reads[1] and not record.text
    if (no_image and no_text) or (no_image and not reads[1]) or (no_text and not reads[0]):
        raise DataError(
            f"{record.where}: the row has nothing that the model reads: remove it, or give its "
            f"{'picture' if no_image else 'text'}"
        )
    if no_image and missing != "text-only":
        found = (
            f"no picture {images / record.file}"
            if record.file and images is not None
            else "the row has no picture"
        )
        raise DataError(
            f"{record.where}: {found}: give it, remove the row, or label such rows by their text alone "
            "(missing: text-only)"
        )
    if no_text and missing != "image-only":
        raise DataError(
            f"{record.where}: the text is empty: write one, remove the row, or label such rows by their "
            "picture alone (missing: image-only)"
        )
    return no_image, no_text
