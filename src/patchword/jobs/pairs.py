"""The pairs of picture and alt-text of a crawl, as its files hold them: Parquet, WebDataset, tables, JSON
lines.

A row or a picture that cannot be read is a pair with a `problem`: it is counted, and the pass goes on. A file
that is none of its kind, or not there, is an error before anything is read.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from patchword.data.decoding import read_header
from patchword.data.formats.tables import CAPTION, DELIMITERS, IMAGE
from patchword.data.headers import SUFFIXES
from patchword.data.shards import key_and_suffix
from patchword.errors import DataError, PictureError
from patchword.jobs.rules import Pair
from patchword.jobs.sources import is_url, open_any, parquet

AT_ONCE = 1024
TEXTS = (*CAPTION, "alt", "alt_text", "txt")
_BYTES = ("image", "jpg", "jpeg", "png", "webp", "picture")
_NAMES = ("name", "url", "key", "id", *IMAGE)
_SHARDS = (".parquet", ".tar")
_ROWS = (".jsonl", ".csv", ".tsv")
INDEX = ".tar.index.json"
"""What a training writes beside a shard (`data/shards.py`)."""
NO_SHARD, BESIDE = "no shard", "table beside a .tar of the same name"


class Sources(NamedTuple):
    """The files of the names that were given."""

    files: list[str]
    left_out: dict[str, int]
    """What else lies in the folders, by reason."""


def find_sources(names: Iterable[str]) -> Sources:
    """Files as they are named, and of folders all shards below them, sorted. Raises DataError for a file that
    is not there or is of no kind that is read, and for a folder without a shard."""
    files: list[str] = []
    left_out: Counter[str] = Counter()
    for name in names:
        if not is_url(name) and os.path.isdir(name):
            inside = [os.path.join(place, file) for place, _, held in os.walk(name) for file in held]
            shards = sorted(file for file in inside if _suffix(file) in _SHARDS)
            if not shards:
                raise DataError(f"{name}: no .parquet and no .tar in this folder")
            tars = {os.path.splitext(file)[0] for file in shards if _suffix(file) == ".tar"}
            for file in shards:
                # img2dataset writes what it knows of a shard beside it: its pairs would come twice.
                if _suffix(file) == ".parquet" and os.path.splitext(file)[0] in tars:
                    left_out[BESIDE] += 1
                else:
                    files.append(file)
            others = [file for file in inside if file not in shards and not file.endswith(INDEX)]
            left_out[NO_SHARD] += len(others)
        elif _suffix(name) not in (*_SHARDS, *_ROWS):
            known = "expected .parquet, .tar (WebDataset), .jsonl, .csv or .tsv, or a folder of shards"
            raise DataError(f"{name}: {known}")
        elif not is_url(name) and not os.path.exists(name):
            raise DataError(f"{name} does not exist: give a file of pairs or a folder of shards")
        else:
            files.append(name)
    return Sources(list(dict.fromkeys(files)), {reason: n for reason, n in left_out.items() if n})


def batches(names: Iterable[str]) -> Iterator[list[Pair]]:
    """The pairs of all sources in order, AT_ONCE at a time. Raises what `find_sources` raises."""
    waiting: list[Pair] = []
    for name in find_sources(names).files:
        for pair in _pairs(name):
            waiting.append(pair)
            if len(waiting) == AT_ONCE:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _pairs(name: str) -> Iterator[Pair]:
    kind = _suffix(name)
    if kind == ".parquet":
        return _of_parquet(name)
    return _of_tar(name) if kind == ".tar" else _of_rows(name)


def _of_parquet(name: str) -> Iterator[Pair]:
    import pyarrow

    with open_any(name) as file:
        try:
            opened = parquet().ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            yield Pair(f"{name}#", "", problem=f"this is no Parquet file, or it is damaged: {error}")
            return
        own = {one.lower(): one for one in opened.schema_arrow.names}
        text = _text_column(own, name)
        kinds = {field.name: str(field.type) for field in opened.schema_arrow}
        held = next((own[one] for one in _BYTES if one in own and "binary" in kinds[own[one]]), None)
        named = next((own[one] for one in _NAMES if one in own and own[one] != held), None)
        sides = [own[one] for one in ("width", "height") if one in own]
        number = 0
        try:
            columns = [one for one in (own[text], held, named, *sides) if one]
            for batch in opened.iter_batches(batch_size=AT_ONCE, columns=list(dict.fromkeys(columns))):
                for row in batch.to_pylist():
                    content, inner = _bytes_of(row.get(held) if held else None)
                    called = row[named] if named else inner
                    where = f"{name}#{number}"
                    yield from _rows_of(
                        row[own[text]],
                        str(called) if called else where,
                        content,
                        [row[one] for one in sides],
                    )
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            yield Pair(f"{name}#{number}", "", problem=f"the file is damaged from here on: {error}")


def _bytes_of(value: Any) -> tuple[bytes | None, str | None]:
    """A picture's bytes and its name: Hugging Face's tables hold both as {bytes, path}."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return value, None


def _of_tar(name: str) -> Iterator[Pair]:
    """WebDataset: files that follow each other under one key are one pair. Its text is that of .txt or
    .caption, else the caption in .json."""
    base: str | None = None
    parts: dict[str, bytes] = {}
    try:
        with open_any(name) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, suffix = key_and_suffix(member.name)
                if stem != base and base is not None:
                    yield from _of_parts(f"{name}#{base}", parts)
                    parts = {}
                base, stream = stem, archive.extractfile(member)
                if stream is not None:
                    parts[suffix] = stream.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        problem = f"the shard ends here, the rest of it cannot be read: {error}"
        yield Pair(f"{name}#{base or ''}", "", problem=problem)
        return
    if base is not None:
        yield from _of_parts(f"{name}#{base}", parts)


def _of_parts(name: str, parts: dict[str, bytes]) -> Iterator[Pair]:
    """The pair, or pairs, of the files of one name."""
    content = next((held for suffix, held in parts.items() if f".{suffix.split('.')[-1]}" in SUFFIXES), None)
    text: Any = next((parts[suffix] for suffix in ("txt", "caption") if suffix in parts), None)
    if text is not None:
        text = text.decode("utf-8-sig", "replace").strip()
    elif "json" in parts:
        try:
            row = json.loads(parts["json"])
        except ValueError as error:
            yield Pair(name, "", content, problem=f"its JSON cannot be read: {error}")
            return
        own = _lowered(row) if isinstance(row, dict) else {}
        text = next((own[one] for one in TEXTS if own.get(one)), "")
    yield from _rows_of(text, name, content)


def _of_rows(name: str) -> Iterator[Pair]:
    with open_any(name) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        known = _suffix(name) != ".jsonl"
        for number, row in enumerate(_of_table(lines, name) if known else _of_json_lines(lines)):
            if isinstance(row, str):
                yield Pair(f"{name}#{number}", "", problem=row)
                continue
            if not known:
                _text_column(row, name)  # said of the first row alone: later ones may lack their text
                known = True
            text = next((row[one] for one in TEXTS if row.get(one)), "")
            called = next((row[one] for one in _NAMES if row.get(one)), f"{name}#{number}")
            yield from _rows_of(text, str(called), None, [row.get("width"), row.get("height")])


def _of_table(lines: Iterable[str], name: str) -> Iterator[dict[str, Any] | str]:
    """Rows under their names in lower case; a text says why one cannot be read."""
    rest = iter(lines)
    header = next(rest, "")
    cells_of = {one: [cell.strip(' "\r\n').lower() for cell in header.split(one)] for one in DELIMITERS}
    delimiter = next((one for one, cells in cells_of.items() if set(TEXTS) & set(cells)), None)
    if delimiter is None:
        found = f"found {header.strip()[:80]!r}"
        raise DataError(
            f"{name}: no column of texts: expected one of {', '.join(TEXTS)} in the header, {found}"
        )
    names = [cell.strip().lower() for cell in next(csv.reader([header], delimiter=delimiter))]
    rows = csv.reader(rest, delimiter=delimiter)
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # of this line: the reader goes on with the next one
            yield f"this row cannot be read: {error}"
            continue
        if any(cells):
            yield dict(zip(names, cells, strict=False))


def _of_json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any] | str]:
    """Objects under their names in lower case; a text says why a line is none."""
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"this line is no JSON: {error}"
            continue
        yield _lowered(row) if isinstance(row, dict) else f"expected an object, found {line.strip()[:40]}"


def _lowered(row: dict[str, Any]) -> dict[str, Any]:
    return {str(key).strip().lower(): value for key, value in row.items()}


def _text_column(names: Iterable[str], where: str) -> str:
    """The column of the texts. Raises DataError where there is none."""
    held = list(names)
    found = next((one for one in TEXTS if one in held), None)
    if found is None:
        own = ", ".join(held) or "none"
        raise DataError(f"{where}: no column of texts: expected one of {', '.join(TEXTS)}, found {own}")
    return found


def _rows_of(text: Any, name: str, content: Any, sides: Sequence[Any] = ()) -> Iterator[Pair]:
    """A pair for each text of a picture."""
    content = content if isinstance(content, bytes) else None
    width, height = (_side(one) for one in sides) if len(sides) == 2 else (0, 0)
    if content is not None:
        width, height = _sides(content, name)
    for one in text if isinstance(text, list) and text else [text]:
        yield Pair(name, " ".join(_text(one).split()), content, width, height)


def _text(value: Any) -> str:
    """A text that every file can hold: halves of letters, which JSON of crawls has, become U+FFFD."""
    text = "" if value is None else str(value)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _side(value: Any) -> int:
    """A side in pixels; 0 where none is known."""
    try:
        return max(int(float(value)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _sides(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an upright picture from its header; 0 for what is no picture, which `Readable`
    explains."""
    try:
        return read_header(content, name).size
    except PictureError:
        return 0, 0
