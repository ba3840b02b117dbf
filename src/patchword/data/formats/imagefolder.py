"""The imagefolder layout of the `datasets` library: metadata.csv, metadata.jsonl or metadata.parquet beside
the pictures that it names.

One such file at the top, or one in each folder; folders train, validation and test at the top are splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from patchword.data.formats.complaints import SPLITS, Complain, read_text
from patchword.data.formats.tables import (
    CAPTION,
    IMAGE,
    column,
    csv_rows,
    delimiter_of,
    json_line_rows,
    records_of,
)
from patchword.data.records import CaptionRecord
from patchword.lookup import look_up

_SUFFIXES = (".csv", ".jsonl", ".parquet")


def read_imagefolder(folder: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of all metadata files at or below a folder; files of pictures come out relative to the folder
    itself."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for file in sorted(folder.rglob("metadata.*")):
        if file.suffix.lower() in _SUFFIXES:
            rows += _below(file, folder, complain)
    if not rows:
        found = ", ".join(file.name for file in sorted(folder.rglob("metadata.*"))[:3])
        complain("layout", str(folder), f"expected metadata.csv, .jsonl or .parquet with rows, found {found}")
    return records_of(rows, complain)


def _below(file: Path, folder: Path, complain: Complain) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one metadata file, with the path of its folder before the names of the pictures and the
    split that it stands for."""
    base = file.parent.relative_to(folder)
    split = SPLITS.get(base.parts[0].lower()) if base.parts else None
    for where, row in _rows(file, complain):
        image = column(row, IMAGE)
        if image is not None and isinstance(row[image], str):
            name = row[image].strip().replace("\\", "/")
            row = {**row, image: str(PurePosixPath(base.as_posix()) / name) if name else name}
            part = PurePosixPath(row[image]).parts
            split_of = split or (SPLITS.get(part[0].lower()) if len(part) > 1 else None)
            if split_of is not None and "split" not in row:
                row["split"] = split_of
        yield where, row


def _rows(file: Path, complain: Complain) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix.lower() == ".parquet":
        return look_up("data.formats.arrow:parquet_rows")(file)
    text = read_text(file, complain)
    if file.suffix.lower() == ".jsonl":
        return json_line_rows(text, file, complain)
    delimiter = delimiter_of(text)
    if delimiter is None:
        header = text.lstrip("\n").split("\n", 1)[0][:80]
        expected = f"expected a header with {IMAGE[3]} and {CAPTION[0]} or {CAPTION[2]}"
        complain("layout", f"{file}, line 1", f"{expected}, found {header!r}")
        return iter(())
    return csv_rows(text, delimiter, file, complain)
