"""Captions in Parquet files, in folders of them (`patchword filter` writes such), and in folders that the
`datasets` library saved (`save_to_disk`).

Columns as in a person's own table. A picture is the path of a file, or lies in the table by itself: then it
is written once to the cache, and the record names the file there by its whole path.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from patchword.data.formats.complaints import Complain, parse_json, read_text
from patchword.data.formats.shards import split_of
from patchword.data.formats.tables import CAPTION, IMAGE, SPLIT, column, records_of
from patchword.data.records import CaptionRecord
from patchword.errors import DataError, MissingExtra
from patchword.files import write_json

_STARTS = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
_ROWS = 256
"""Rows that are held at once: their pictures may lie in them."""


class Part(NamedTuple):
    """Files of one split, in their order."""

    split: str | None
    files: tuple[Path, ...]


def read_saved(folder: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of a folder that `datasets` saved; the splits are its own where it has several."""
    return _read(folder, _saved_parts(folder, complain), complain)


def read_parquet(path: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of one Parquet (or Arrow) file with the columns of a table."""
    return _read(path, [Part(None, (path,))], complain)


def read_parquet_folder(folder: Path, complain: Complain) -> list[CaptionRecord]:
    """Records of all Parquet files below a folder. A folder train, val or test says the split, or a file
    whose name begins so; a file whose name begins with a dot is one that is being written."""
    files: dict[str | None, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        if not file.name.startswith("."):
            files.setdefault(split_of(file.relative_to(folder).as_posix()), []).append(file)
    return _read(folder, [Part(split, tuple(found)) for split, found in files.items()], complain)


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, each with its place and its names in lower case."""
    for number, row in enumerate(_rows(path, bytes_too=False)):
        yield f"{path}, row {number}", row


def _saved_parts(folder: Path, complain: Complain) -> list[Part]:
    if not (folder / "dataset_dict.json").is_file():
        return [Part(None, _files_of(folder, complain))]
    content = parse_json(read_text(folder / "dataset_dict.json", complain), str(folder), complain)
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list):
        complain("layout", str(folder), "dataset_dict.json lists no splits: save the data set anew")
        return []
    return [Part(split, _files_of(folder / split, complain)) for split in splits]


def _files_of(folder: Path, complain: Complain) -> tuple[Path, ...]:
    state = parse_json(read_text(folder / "state.json", complain), str(folder), complain)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(listed, list):
        complain("layout", str(folder), "state.json lists no data files: save the data set anew")
        return ()
    return tuple(folder / PurePosixPath(entry["filename"]).name for entry in listed)


def _read(source: Path, parts: list[Part], complain: Complain) -> list[CaptionRecord]:
    unpacked = _PictureCache(source, parts)
    rows: list[tuple[str, dict[str, Any]]] = []
    names: dict[str, str] = {}
    for part in parts:
        number = 0
        for file in part.files:
            for row in _rows(file, bytes_too=unpacked.known is None):
                found = _captioned(row, part.split)
                image = column(found, IMAGE)
                if image is not None and isinstance(found[image], StoredPicture):
                    inside = found[image]
                    found[image] = unpacked.place(part.split, number, inside)
                    own = inside.name or str(number)
                    names[found[image]] = f"{part.split}/{own}" if part.split else own
                rows.append((f"{file}, row {number}", found))
                number += 1
    unpacked.finish()
    times = Counter(names.values())
    ids = {file: name if times[name] == 1 else Path(file).stem for file, name in names.items()}
    return [
        replace(record, image_id=ids.get(record.file, record.image_id))
        for record in records_of(rows, complain)
    ]


def _captioned(row: dict[str, Any], split: str | None) -> dict[str, Any]:
    """The columns that matter: picture, captions, split."""
    wanted = [name for name in (column(row, IMAGE), column(row, CAPTION), column(row, SPLIT)) if name]
    kept = {name: row[name] for name in wanted}
    return kept if split is None else {**kept, "split": split}


class StoredPicture(NamedTuple):
    """A picture that lies in the table: the name it came with, if any, and its bytes, unless these were not
    asked for."""

    name: str
    content: bytes | None


def _rows(file: Path, bytes_too: bool) -> Iterator[dict[str, Any]]:
    """The rows of a table under their names in lower case, a picture in it as `StoredPicture`; read in
    parts, because pictures are large."""
    for batch in _batches(file):
        try:
            names = [name.strip().lower() for name in batch.schema.names]
            columns = [
                _pictures(values, bytes_too) if name in IMAGE else values.to_pylist()
                for name, values in zip(names, batch.columns, strict=True)
            ]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}: a name or a text in it is no UTF-8 ({error}): write or copy it anew"
            ) from error
        for cells in zip(*columns, strict=True):
            yield dict(zip(names, cells, strict=True))


def _batches(file: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            f"{file}: Parquet files and saved `datasets` are read by {error.name}: pip install "
            "'patchword[arrow]'"
        ) from error
    try:
        if file.suffix.lower() != ".arrow":
            with pyarrow.parquet.ParquetFile(file) as table:
                yield from table.iter_batches(_ROWS)
            return
        with pyarrow.memory_map(str(file)) as source:
            try:
                batches = iter(pyarrow.ipc.open_stream(source))
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
            for batch in batches:
                for first in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(first, _ROWS)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no table that can be read ({error}): write or copy it anew") from error


def _pictures(values: Any, bytes_too: bool) -> list[Any]:
    """The cells of a column of pictures: paths stay as they are."""
    import pyarrow

    kind = values.type
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return [
            StoredPicture("", content)
            for content in (values.to_pylist() if bytes_too else [None] * len(values))
        ]
    if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return values.to_pylist()
    content = values.field("bytes")
    paths = values.field("path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(values)
    there = content.is_valid().to_pylist()
    found = content.to_pylist() if bytes_too else [None] * len(values)
    return [
        StoredPicture(PurePosixPath((path or "").replace("\\", "/")).name, one) if inside else path
        for path, inside, one in zip(paths, there, found, strict=True)
    ]


class _PictureCache:
    """The pictures of a data set that lie in its tables, as files in the cache: written at the first reading,
    found at the next ones.

    Their folder is named by the tables' paths, sizes and times of change.
    """

    def __init__(self, source: Path, parts: list[Part]) -> None:
        from patchword.data.store import cache_folder

        listing = []
        for file in (file for part in parts for file in part.files):
            if not file.is_file():
                raise DataError(f"{file}: there is no such file; save or copy the data set anew")
            state = file.stat()
            listing.append((str(file.resolve()), state.st_size, state.st_mtime_ns))
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
        self._folder = cache_folder() / "unpacked" / f"{source.resolve().name}-{digest}"
        self._mark = self._folder / "complete.json"
        self.known: dict[str, str] | None = None
        """File names of pictures that an earlier reading wrote; None where none came to its end."""
        if self._mark.is_file():
            self.known = json.loads(self._mark.read_text(encoding="utf-8"))
        self._written: dict[str, str] = {}

    def place(self, split: str | None, number: int, picture: StoredPicture) -> str:
        """Path of a picture in the cache; it is written where no earlier reading did."""
        stem = f"{split or 'all'}-{number:07d}"
        if self.known is not None:
            return str(self._folder / self.known[stem])
        content = picture.content or b""
        suffix = next((end for start, end in _STARTS.items() if content.startswith(start)), ".img")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / (stem + suffix)).write_bytes(content)
        self._written[stem] = stem + suffix
        return str(self._folder / (stem + suffix))

    def finish(self) -> None:
        """All pictures are there: the next reading need not write them. The mark comes last: it says that all
        is whole."""
        if self._written:
            write_json(self._mark, self._written)
