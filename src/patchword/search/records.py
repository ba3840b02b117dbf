"""What an index holds of a picture, what it gives back, and the sums by which damage is noticed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

Embed = Callable[[list[Image.Image]], np.ndarray]
"""RGB pictures to vectors (n, width), one row each; the index sets them to length one."""


class Concepts(NamedTuple):
    """Words that a picture can have, and the function that says which it has."""

    words: tuple[str, ...]
    of: Callable[[list[Image.Image]], Sequence[Sequence[str]]]


class IndexModel(NamedTuple):
    """The model that an index is made with."""

    embed: Embed
    identity: str
    """Identifies the weights behind `embed`; an index holds vectors of one model."""
    name: str = ""
    """What a search loads the model by."""
    concepts: Concepts | None = None
    """The words that `PictureIndex.search` can filter by; an index keeps to the words it was begun with."""


class Match(NamedTuple):
    """One picture that a search gave."""

    path: str
    """The name that the system gives it: bytes that are no UTF-8 stand as surrogates (os.fsdecode)."""
    score: float
    """Cosine of picture and query."""
    content: str = ""
    """SHA-256 of the file when it was indexed, as hexadecimal digits; empty where it is not known."""


@dataclass
class IndexReport:
    """What a run did."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    """Pictures that were found under another name or in another folder, and kept their vector."""
    removed: int = 0
    kept: int = 0
    pictures: int = 0
    """Pictures that a search can find now, those of other folders included."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of all pictures that are in the folder and not in the index."""
    absent: dict[str, int] = field(default_factory=dict)
    """Folders that cannot be read or whose drive is not mounted, and how many pictures the index keeps of
    each."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many files and folders are no pictures that can be read, by reason; those that were probably
    pictures are in `bad` as well."""


class Row(NamedTuple):
    """One picture of an index."""

    path: bytes
    size: int
    """Bytes of the file when it was indexed; LOST where its vector was lost and it is to be embedded
    again."""
    time_ns: int
    """Time of the file's last change, in nanoseconds."""
    content: bytes
    """SHA-256 of the file; empty where an older version did not compute it."""
    problem: str
    """Why the picture has no vector; empty where it has one."""
    concepts: tuple[str, ...]
    vector_E: np.ndarray | None
    """float32, length one; None for a picture that could not be read."""


LOST = -1
"""The size of a picture whose vector was lost: no file has it, so that the next update embeds the picture
again."""


def facts_sum(row: Row) -> int:
    """CRC-32 over everything but the vector."""
    problem = row.problem.encode("utf-8", "surrogatepass")
    words = [word.encode("utf-8", "surrogatepass") for word in row.concepts]
    parts = [row.path, b"%d" % row.size, b"%d" % row.time_ns, row.content, problem, *words]
    return zlib.crc32(b"".join(struct.pack("<q", len(part)) + part for part in parts))


def vector_sum(vector_E: np.ndarray | None) -> int:
    """CRC-32 over the bytes of a vector; 0 where there is none."""
    return 0 if vector_E is None else zlib.crc32(np.ascontiguousarray(vector_E, dtype="<f4").tobytes())
