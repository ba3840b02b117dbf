"""`index.json`: which segments can be searched, by which model they were made, and the sums of their files.

It is replaced by a rename, after everything that it names is on the disk: until then nothing has happened. It
carries a sum of its own, so that a changed digit in it is noticed.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from patchword.errors import StoreError

FORMAT = 2
NAME = "index.json"


def _text(value: object) -> str:
    """Any text; pydantic's own check refuses surrogates, which stand for bytes of a name that is no UTF-8."""
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


Text = Annotated[str, PlainValidator(_text)]
Count = Annotated[int, Field(ge=0, le=2**48)]
Sum = Annotated[int, Field(ge=0, lt=2**32)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileFacts(_Facts):
    """How a file was when it was written."""

    size: Count
    """Size in bytes."""
    head: Count
    """Bytes at the beginning that every opening verifies."""
    head_sum: Sum
    """CRC-32 of these."""
    sum: Sum
    """CRC-32 of the whole file."""


class SegmentFacts(_Facts):
    """One segment: pictures that were written together and never change; what is removed later is listed
    here."""

    number: Count
    """The number in the names of its files; never used twice."""
    pictures: Count
    vectors: Count
    """The first `vectors` pictures have one; the others could not be read."""
    removed: list[Count]
    """Numbers of the pictures that no longer belong to the index, ascending."""
    files: dict[str, FileFacts]
    """Under "pictures", "vectors" and, in a large segment, "cells"."""

    @property
    def searchable(self) -> int:
        """Pictures that a search can find."""
        return self.vectors - sum(number < self.vectors for number in self.removed)

    @property
    def live(self) -> int:
        """Pictures that belong to the index, those that cannot be read included."""
        return self.pictures - len(self.removed)


class Manifest(_Facts):
    """What an index is at a moment."""

    generation: Count = 0
    """Grows with every change."""
    model: Text
    """Identity of the weights behind all vectors."""
    name: Text
    """What a search loads the model by."""
    width: Count = 0
    """Width of the vectors; 0 as long as there is none."""
    concepts: list[Text] = []
    """The words that a search can filter by."""
    roots: list[Text] = []
    """The folders that were indexed."""
    mounts: list[Text] = []
    """Where drives were mounted when they were: one that is missing later is no deletion of its pictures."""
    waiting: Count = 0
    """Pictures that the last run found and had not embedded yet: more than 0 after an interruption."""
    segments: list[SegmentFacts] = []

    @property
    def pictures(self) -> int:
        """Pictures that a search can find."""
        return sum(segment.searchable for segment in self.segments)


def file_name(kind: str, number: int) -> str:
    """The name of a segment's file."""
    return f"{kind}-{number}{ {'pictures': '.sqlite', 'vectors': '.npy', 'cells': '.faiss'}[kind] }"


class DamagedIndex(StoreError):
    """A file of an index that is not as it was written; the message names the file and the cure."""

    def __init__(self, path: Path, found: str) -> None:
        cure = "embeds again only what is lost"
        super().__init__(f"{path}: damaged: {found}; {repair_line(path.parent)} {cure}")
        self.found = found
        """What is wrong with the file."""


def damaged(path: Path, found: str) -> DamagedIndex:
    """The error for a file of an index that is not as it was written."""
    return DamagedIndex(path, found)


def repair_line(out: Path) -> str:
    """The command that mends an index."""
    return f"`patchword index FOLDER --out {out} --repair`"


def encode(manifest: Manifest) -> str:
    """The content of index.json."""
    content = manifest.model_dump()
    return json.dumps({"format": FORMAT, "sum": _sum(content), "index": content}, indent=1)


def read_json(out: Path) -> dict[str, Any] | None:
    """index.json of any format; None where there is none. Raises StoreError for one that is no JSON object
    with a format."""
    path = out / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}): check the permissions") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise damaged(path, "it names no format")
    return content


def read(out: Path) -> Manifest | None:
    """The manifest of an index of this format; None where there is none.

    Raises:
        StoreError: index.json is damaged, or of another format.
    """
    content = read_json(out)
    if content is None:
        return None
    path = out / NAME
    if content["format"] != FORMAT:
        do = "update Patchword, or index again into another folder"
        raise StoreError(f"{path}: an index of format {content['format']}; this version reads {FORMAT}: {do}")
    if content.get("sum") != _sum(content.get("index")):
        raise damaged(path, "its content does not fit its sum")
    try:
        return Manifest.model_validate(content["index"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{where}: {first['msg']}") from error


def _sum(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode("ascii"))
