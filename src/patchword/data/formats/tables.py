"""A person's own table: one row per caption, as CSV, JSON lines or a JSON list.

Columns `image` and `caption`, and if wanted `split`; other programs' names of these are known (open_clip's
`filepath` and `title`). A row of JSON may hold a list under `captions`. A picture may have many rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from patchword.data.formats.complaints import Complain, clean_caption, clean_file, clean_split, parse_json
from patchword.data.records import CaptionRecord

IMAGE = ("image", "file", "filename", "file_name", "image_name", "image_path", "path", "filepath")
CAPTION = ("caption", "captions", "text", "sentence", "comment", "title")
SPLIT = ("split",)
DELIMITERS = ",;\t|"


def delimiter_of(text: str, second: tuple[str, ...] = CAPTION, first: tuple[str, ...] = IMAGE) -> str | None:
    """The delimiter under which the first line is a header with an image and a caption column, or others as
    `first` and `second`; None when there is none."""
    header = text.lstrip("\n").split("\n", 1)[0]
    for delimiter in DELIMITERS:
        names = [name.strip(' "').lower() for name in header.split(delimiter)]
        if column(names, first) is not None and column(names, second) is not None:
            return delimiter
    return None


def read_csv(text: str, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a table with a header line; comma, semicolon, tab or bar between cells; quoted cells may
    hold them and newlines.
    """
    delimiter = delimiter_of(text)
    if delimiter is None:
        header = text.lstrip("\n").split("\n", 1)[0][:80]
        complain(
            "layout",
            f"{path}, line 1",
            f"expected a header with the columns image and caption (and split), found {header!r}",
        )
        return []
    return records_of(csv_rows(text, delimiter, path, complain), complain)


def csv_rows(text: str, delimiter: str, path: Path, complain: Complain) -> Iterator[tuple[str, dict]]:
    """The rows below the header, each with its place and under the header's names in lower case."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as reason:
            # Where a quote is wrong the borders of all later rows are guesses: reading on would only invent
            # faults.
            complain(
                "syntax",
                f"{path}, line {reader.line_num}",
                f"this row cannot be read ({reason}); later rows were not looked at",
            )
            return
        where = f"{path}, line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = [name.strip().lower() for name in cells]
        elif len(cells) != len(names):
            advice = "put captions that hold the delimiter between double quotes"
            complain(
                "layout", where, f"the row has {len(cells)} cells where the header has {len(names)}: {advice}"
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def read_json_lines(text: str, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a file with one JSON object per line."""
    return records_of(json_line_rows(text, path, complain), complain)


def json_line_rows(text: str, path: Path, complain: Complain) -> Iterator[tuple[str, dict]]:
    """One JSON object per line, each with its place and its names in lower case."""
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            value = parse_json(line, where, complain)
            if isinstance(value, dict):
                yield where, _lowered(value)
            elif value is not None:
                complain("layout", where, f"expected one JSON object per line, found {type(value).__name__}")


def read_json_list(content: list, path: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a JSON list of objects."""
    return records_of(json_list_rows(content, "caption", path, complain), complain)


def json_list_rows(content: list, second: str, path: Path, complain: Complain) -> Iterator[tuple[str, dict]]:
    """The objects of a list, each with its place and its names in lower case; `second` says what stands
    beside the image.
    """
    for index, value in enumerate(content):
        if isinstance(value, dict):
            yield f"{path}, entry {index}", _lowered(value)
        else:
            complain(
                "layout",
                f"{path}, entry {index}",
                f"expected an object with image and {second}, found {type(value).__name__}",
            )


def _lowered(row: dict) -> dict:
    return {str(name).strip().lower(): value for name, value in row.items()}


def column(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first of the wanted names that is there."""
    return next((name for name in wanted if name in names), None)


def records_of(rows: Iterable[tuple[str, dict]], complain: Complain) -> list[CaptionRecord]:
    """Rows, each with its place, gathered by picture, in the order in which the pictures first appear."""
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    for where, row in rows:
        image, caption, split = (column(row, wanted) for wanted in (IMAGE, CAPTION, SPLIT))
        if image is None or caption is None:
            complain(
                "layout", where, f"expected image and caption, found the fields {', '.join(row) or 'nothing'}"
            )
            continue
        name = clean_file(row[image], where, complain)
        values = row[caption] if isinstance(row[caption], list) else [row[caption]]
        texts = [
            text for text in (clean_caption(value, where, complain) for value in values) if text is not None
        ]
        part = clean_split(row[split], where, complain) if split else None
        if not values:
            complain("no-caption", where, "the list of captions is empty: add one or remove the row")
        if name is None or not texts:
            continue
        before = splits.get(name)
        if part and before and part != before:
            complain(
                "overlap",
                where,
                f"{name} is in {part} here and in {before} further up: a picture belongs to one split",
            )
            continue
        captions.setdefault(name, []).extend(texts)
        splits[name] = before or part
    return [CaptionRecord(name, name, tuple(found), splits[name]) for name, found in captions.items()]
