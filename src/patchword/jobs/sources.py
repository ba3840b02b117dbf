"""Where the pictures of a job come from, cut into parts: a part is what one worker does in one go.

    a picture, a folder, a glob    as on the command line; parts of PART pictures
    NAMES.txt                      one path or URL per line; parts of PART pictures
    SHARD.tar                      WebDataset: every picture in it, in its order; one part
    TABLE.parquet                  bytes in a column `image`, `jpg`, `png` or `picture` (or {bytes, path}); a
                                   row group is a part, and a `path`, `url`, `id` or `key` column names rows

A folder may hold tar and Parquet files; a name may be a URL that fsspec knows (s3://, gs://, hf://), which
takes the person's credentials from where that library looks. The same source always gives the same parts in
the same order, by which a job that was killed goes on.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from patchword.data.headers import SUFFIXES
from patchword.errors import DataError, MissingExtra

PART = 512
"""Pictures in a part, where they are files."""
_NAMED = ("path", "url", "id", "key")
_PICTURES = ("image", "jpg", "png", "picture")


class Part(NamedTuple):
    """A part of a source."""

    kind: str
    """paths, tar or parquet."""
    where: tuple[str, ...]
    """The paths, or the one file."""
    group: int = 0
    """The row group of a Parquet file."""


class Input(NamedTuple):
    """One picture as a source gives it."""

    name: str
    """What the output calls it."""
    content: bytes | None
    """None where it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""


def is_url(name: str) -> bool:
    """Whether a name is one for fsspec."""
    return "://" in name


def plan(names: Iterable[str]) -> list[Part]:
    """The parts of a source, in order. Raises DataError where a name stands for nothing."""
    parts: list[Part] = []
    loose: list[str] = []
    for name in names:
        found = list(_files(name))
        if not found:
            raise DataError(f"{name}: nothing here that a job can read: no picture, .tar, .parquet or .txt")
        for file in found:
            if file.endswith(".tar"):
                parts.append(Part("tar", (file,)))
            elif file.endswith(".parquet"):
                parts += [Part("parquet", (file,), group) for group in range(_groups(file))]
            else:
                loose.append(file)
    return [*paths_in_parts(list(dict.fromkeys(loose))), *dict.fromkeys(parts)]


def paths_in_parts(paths: Sequence[str]) -> list[Part]:
    """Parts of paths and URLs, whatever letters these have."""
    return [Part("paths", tuple(paths[at : at + PART])) for at in range(0, len(paths), PART)]


def read_part(part: Part) -> Iterator[Input]:
    """The pictures of a part in its order. Raises DataError where a shard as a whole cannot be read."""
    if part.kind == "paths":
        return (_from_path(path) for path in part.where)
    return _from_tar(part.where[0]) if part.kind == "tar" else _from_parquet(part.where[0], part.group)


def open_any(name: str, mode: str = "rb") -> Any:
    """A file on disk or at a URL. Raises DataError where fsspec knows no such URL."""
    if not is_url(name):
        return open(name, mode)  # noqa: SIM115 - the caller closes it
    fsspec = _fsspec()
    try:
        return fsspec.open(name, mode).open()
    except (ValueError, ImportError) as error:
        raise DataError(f"{name}: {error}") from error


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("URLs are read by fsspec: pip install 'patchword[cluster]'") from error
    return fsspec


def _files(name: str) -> Iterator[str]:
    """The files that a name stands for, sorted; of a folder only those that a job reads."""
    if name.endswith(".txt"):
        with open_any(name) as file:
            yield from (line for raw in file if (line := os.fsdecode(raw).strip()))
    elif is_url(name):
        fsspec = _fsspec()
        system, path = fsspec.core.url_to_fs(name)
        inside = system.find(path) if system.isdir(path) else system.glob(path) if _has_stars(path) else None
        if inside is None:
            yield name
        else:
            yield from sorted(system.unstrip_protocol(one) for one in inside if _readable(one))
    elif os.path.isdir(name):
        inside = (os.path.join(place, file) for place, _, files in os.walk(name) for file in files)
        yield from sorted(one for one in inside if _readable(one))
    elif _has_stars(name) and not os.path.exists(name):
        yield from sorted(one for one in glob.glob(name, recursive=True) if os.path.isfile(one))
    else:
        yield name  # one that does not exist is listed among those that could not be read


def _has_stars(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _readable(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or suffix in (".tar", ".parquet")


def _from_path(path: str) -> Input:
    try:
        with open_any(path) as file:
            return Input(path, file.read())
    except (OSError, DataError) as error:
        return Input(path, None, f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _from_tar(shard: str) -> Iterator[Input]:
    try:
        with open_any(shard) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                if member.isfile() and os.path.splitext(member.name)[1].lower() in SUFFIXES:
                    stream = archive.extractfile(member)
                    yield Input(f"{shard}#{member.name}", stream.read() if stream is not None else None)
    except (OSError, tarfile.TarError) as error:
        # What came before the damage is kept; the rest of the shard is one line of the output.
        yield Input(f"{shard}#", None, f"{shard}: the shard ends here: {error}")


def parquet() -> Any:
    """The library; raises MissingExtra where it is not installed."""
    try:
        import pyarrow.parquet as found
    except ImportError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'patchword[cluster]'") from error
    return found


def _groups(table: str) -> int:
    with open_any(table) as file:
        return int(parquet().ParquetFile(file).num_row_groups)


def _from_parquet(table: str, group: int) -> Iterator[Input]:
    with open_any(table) as file:
        opened = parquet().ParquetFile(file)
        names: Sequence[str] = opened.schema_arrow.names
        picture = next((name for name in _PICTURES if name in names), None)
        if picture is None:
            raise DataError(f"{table}: no column of pictures: expected one of {', '.join(_PICTURES)}")
        named = next((name for name in _NAMED if name in names), None)
        first = sum(opened.metadata.row_group(one).num_rows for one in range(group))
        rows = opened.read_row_group(group, columns=[name for name in (picture, named) if name])
    for number, row in enumerate(rows.to_pylist(), start=first):
        value = row[picture]
        inner = value.get("path") if isinstance(value, dict) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        name = f"{table}#{row[named] if named else inner or number}"
        if isinstance(content, bytes):
            yield Input(name, content)
        else:
            yield Input(name, None, f"{name}: the row holds no bytes of a picture")
