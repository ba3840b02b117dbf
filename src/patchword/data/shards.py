"""Tar shards in WebDataset's form, read at any place: one pass over the headers, then offsets.

    SHARD.tar           key.jpg, key.txt (a caption per line) or key.json, ...: files of one key, in a row
    SHARD.tar.index.json    for each picture its name, where its bytes begin and how many there are, and its
                        captions; beside the shard, or in the cache folder where that cannot be written

A picture in a shard has the path FOLDER/SHARD.tar#NAME, by which `open_picture` finds it as it finds a file:
so a training, `features`, `predict` and `check` take shards as they take folders, in any order, and go on at
any picture. A shard that changed is looked through again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from patchword.data.headers import SUFFIXES
from patchword.data.store import cache_folder
from patchword.errors import DataError, PictureError, StoreError, WriteError
from patchword.files import write_json

FORMAT = 1
_MARK = re.compile(r"\.tar#")
_TEXTS = ("txt", "caption")
_KEYS = ("captions", "caption", "text", "txt", "alt_text", "alt")
"""Where a key.json has its caption, or a list of them."""
_LONGEST_TEXT = 2**20


class Sample(NamedTuple):
    """A picture of a shard."""

    name: str
    """Its key with the suffix of its file."""
    offset: int
    length: int
    captions: tuple[str, ...]


class ShardIndex(NamedTuple):
    """What a shard holds."""

    samples: tuple[Sample, ...]
    """In the order of the shard."""
    left_out: tuple[str, ...]
    """What could not be used, one reason each."""


def shards_of(place: Path) -> list[Path]:
    """The shards that a folder, a glob or a file stands for, sorted; none where it stands for none."""
    if place.is_dir():
        return sorted(place.rglob("*.tar"))
    if any(letter in place.name for letter in "*?[") and not place.exists():
        return sorted(found for found in place.parent.glob(place.name) if found.suffix == ".tar")
    return [place] if place.suffix == ".tar" and place.is_file() else []


def is_member(path: str | os.PathLike) -> bool:
    """Whether a path has the form of a picture in a shard."""
    return _MARK.search(os.fsdecode(path)) is not None


def shard_and_name(path: str | os.PathLike) -> tuple[Path, str]:
    """The two halves of FOLDER/SHARD.tar#NAME."""
    whole = os.fsdecode(path)
    found = _MARK.search(whole)
    if found is None:
        raise PictureError(f"{whole}: this is no picture in a shard, which is named SHARD.tar#NAME")
    return Path(whole[: found.end() - 1]), whole[found.end() :]


def read_member(path: str | os.PathLike, most: int) -> bytes:
    """The bytes of a picture in a shard, at most one more than `most`. Raises PictureError where there is no
    such shard, or no such picture in it."""
    shard, name = shard_and_name(path)
    offset, length = member_place(shard, name)
    try:
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(min(length, most + 1))
    except OSError as error:
        raise PictureError(f"{shard}: cannot be read: {error.strerror or error}") from error


def member_place(shard: Path, name: str) -> tuple[int, int]:
    """Where the bytes of a picture begin in its shard, and how many there are. Raises PictureError."""
    try:
        status = shard.stat()
    except OSError as error:
        raise PictureError(f"{shard}: {error.strerror or error}") from error
    names, places = _places(str(shard), status.st_size, status.st_mtime_ns)
    at = bisect_left(names, name)
    if at == len(names) or names[at] != name:
        raise PictureError(f"{shard}: no picture {name!r} in this shard")
    return places[at]


def member_listing(images: Path, name: str) -> tuple[str, int, int]:
    """Name, bytes and time of change (ns) of a picture in a shard, as of a file (`picture_files`).

    Raises StoreError where it is not there.
    """
    shard, _ = shard_and_name(images / name)
    try:
        _, length = member_place(*shard_and_name(images / name))
        return name, length, shard.stat().st_mtime_ns
    except (PictureError, OSError) as error:
        raise StoreError(str(error)) from error


@lru_cache(maxsize=4096)
def _places(shard: str, size: int, changed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Names in rising order and the place of each; size and time of the shard tell its versions apart."""
    try:
        samples = sorted(index_of(Path(shard)).samples)
    except DataError as error:
        raise PictureError(str(error)) from error
    return [one.name for one in samples], [(one.offset, one.length) for one in samples]


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard: read where one fits its size and time, made and kept where none does.

    Raises DataError where the shard cannot be read at all.
    """
    try:
        status = shard.stat()
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror or error}") from error
    facts = {"format": FORMAT, "size": status.st_size, "changed": status.st_mtime_ns}
    beside, other = Path(f"{shard}.index.json"), _in_cache(shard)
    for path in (beside, other):
        found = _kept(path, facts)
        if found is not None:
            return found
    made = _looked_through(shard, status.st_size)
    rows = [[*sample[:3], list(sample.captions)] for sample in made.samples]
    content = {**facts, "samples": rows, "left_out": list(made.left_out)}
    try:
        write_json(beside, content)
    except WriteError:
        other.parent.mkdir(parents=True, exist_ok=True)
        write_json(other, content)
    return made


def _in_cache(shard: Path) -> Path:
    name = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:32]
    return cache_folder() / "shards" / f"{name}.json"


def _kept(path: Path, facts: dict[str, int]) -> ShardIndex | None:
    """The index in a file; None where there is none, or that of another version of the shard."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if any(content.get(name) != value for name, value in facts.items()):
            return None
        samples = (
            Sample(str(name), int(offset), int(length), tuple(map(str, captions)))
            for name, offset, length, captions in content["samples"]
        )
        return ShardIndex(tuple(samples), tuple(map(str, content["left_out"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # made again: it holds nothing that the shard does not


class _Pair:
    """The files of one key."""

    def __init__(self, key: str) -> None:
        self.key, self.picture = key, ("", 0, 0)
        self.texts: list[str] = []
        self.described: list[str] = []
        self.problem = ""


def _looked_through(shard: Path, size: int) -> ShardIndex:
    samples: dict[str, Sample] = {}
    left_out: list[str] = []
    for pair in _pairs(shard, size, left_out):
        where = f"{shard}#{pair.key}"
        name, offset, length = pair.picture
        lines = pair.texts or pair.described
        captions = tuple(text for line in lines if any(map(str.isalnum, text := " ".join(line.split()))))
        if pair.problem:
            left_out.append(f"{where}: {pair.problem}")
        elif not name or not captions:
            found = "a picture without a caption" if name else "no picture"
            left_out.append(f"{where}: {found}")
        elif name in samples:
            left_out.append(f"{where}: the key came before: keys must be unique in a shard")
        else:
            samples[name] = Sample(name, offset, length, captions)
    return ShardIndex(tuple(samples.values()), tuple(left_out))


def _pairs(shard: Path, size: int, left_out: list[str]) -> Iterator[_Pair]:
    """The pairs in the order of the shard; damage ends it, with what came before it kept."""
    pair: _Pair | None = None
    began = False
    try:
        with tarfile.open(shard, mode="r:") as archive:
            for member in archive:
                began = True
                if not member.isreg():
                    continue
                key, suffix = key_and_suffix(member.name)
                if pair is None or key != pair.key:
                    if pair is not None:
                        yield pair
                    pair = _Pair(key)
                if member.offset_data + member.size > size:
                    pair.problem = "the shard ends within it"
                elif f".{suffix}" in SUFFIXES and not pair.picture[0]:
                    pair.picture = (f"{key}.{suffix}", member.offset_data, member.size)
                elif suffix in (*_TEXTS, "json") and member.size <= _LONGEST_TEXT:
                    _take_text(pair, archive, member, suffix)
    except (tarfile.TarError, OSError, ValueError) as error:
        if not began:
            raise DataError(f"{shard}: this is no tar file that can be read ({error})") from error
        left_out.append(f"{shard}: the shard ends here: {error}")
    if pair is not None:
        yield pair


def _take_text(pair: _Pair, archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> None:
    stream = archive.extractfile(member)
    content = stream.read() if stream is not None else b""
    if suffix != "json":
        pair.texts += content.decode("utf-8-sig", "replace").splitlines()
        return
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return  # what stands in key.txt may still be a caption
    known = found if isinstance(found, dict) else {}
    held: Any = next((known[key] for key in _KEYS if known.get(key)), [])
    pair.described += [one for one in (held if isinstance(held, list) else [held]) if isinstance(one, str)]


def key_and_suffix(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key of a file is its path up to the first dot of its own name."""
    path = PurePosixPath(name)  # without ./ and double slashes, as a path to it is without them
    key, _, suffix = path.name.partition(".")
    return str(path.parent / key).lstrip("/"), suffix.lower()
