"""An index of pictures, for the service: the words of a request in, pictures with small copies out; labels by
the same towers.

The model's thread turns words into a vector and does nothing else. The index is searched, and small copies
are read, in threads beside the model; no search opens an original.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from patchword.data.isolated import PictureReader
from patchword.errors import DataError, PatchwordError, PictureError
from patchword.html.pictures import small_jpeg
from patchword.search import manifest
from patchword.search.index import PictureIndex, open_index
from patchword.search.records import Match
from patchword.search.thumbnails import SIDE, Thumbnails
from patchword.serve.abilities import Hit, Query
from patchword.serve.refusals import unknown_words

log = logging.getLogger("patchword.serve")

_REMEMBERED = 10_000
"""Pictures that were found last, of which a copy can still be made from the original where the index has
none."""
_SECONDS = 5.0
"""Processor time that such an original may take to be decoded, one at a time."""


class TwoTowers(Protocol):
    """`patchword.tasks.retrieve.load.load_two_towers` gives one."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, E). Raises DataError for a text without a word that the model knows."""

    def remarks(self, text: str) -> Sequence[str]:
        """Words of a text that the model does not know, and what is cut."""

    def label(self, pictures: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        """Probability of each label for each picture (n, labels)."""


class _Original(NamedTuple):
    """Where a picture that was found lies, and what was indexed of it."""

    path: str
    content: str


class IndexSearch:
    """The paths are those that the index remembers: a request brings words only. What is shown is the file's
    name without its folders.

    An update of the index is followed: the next search sees it."""

    def __init__(self, index: PictureIndex, towers: TwoTowers) -> None:
        self._index, self._towers = index, towers
        self._copies = Thumbnails(index.out)
        self._stamp = _stamp(index.out)
        self._found: OrderedDict[str, _Original] = OrderedDict()
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._reader = PictureReader(_SECONDS)

    def read(self, texts: Sequence[str]) -> list[Query]:
        """Texts as vectors. Raises `Refusal` for a text without a word that the model knows."""
        try:
            vectors_NE = self._towers.embed_texts(texts)
        except DataError as error:
            raise unknown_words(error) from error
        return [
            Query(vector_E, tuple(self._towers.remarks(text)))
            for vector_E, text in zip(vectors_NE, texts, strict=True)
        ]

    def nearest(self, query: Query, k: int) -> list[Hit]:
        """The k nearest pictures, best first."""
        with self._lock:
            self._follow()
            matches = self._index.search(query.vector_E, k)
            keys = [self._remember(match) for match in matches]
        return [
            Hit(Path(match.path).name, float(match.score), key)
            for match, key in zip(matches, keys, strict=True)
        ]

    def thumbnail(self, key: str) -> bytes | None:
        """The small copy of a picture as a JPEG: that of the index, or one made now of a picture that was
        found before.

        None for a picture that is not known, no longer there, changed or damaged since it was indexed."""
        content = self._copies.read(key)
        with self._lock:
            original = self._found.get(key)
        if content is not None or original is None:
            return content
        try:
            stored = Path(original.path).read_bytes()
            if original.content and hashlib.sha256(stored).hexdigest() != original.content:
                return None
            with self._reading:
                picture = self._reader.open(stored, name=original.path)
        except (OSError, PictureError):  # moved or damaged since it was indexed: the hit is shown by its name
            return None
        if original.content:
            try:
                return self._copies.write(key, picture)
            except OSError as error:  # a folder that cannot be written serves as well, only slower
                log.warning("a small copy cannot be kept in the index: %s", error)
        return small_jpeg(picture, SIDE)

    def _remember(self, match: Match) -> str:
        """The key under which its copy is asked for; an index of the format before knows no content, and then
        the path makes one."""
        key = match.content or hashlib.sha256(os.fsencode(match.path)).hexdigest()
        self._found[key] = _Original(match.path, match.content)
        self._found.move_to_end(key)
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return key

    def _follow(self) -> None:
        stamp = _stamp(self._index.out)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            fresh = open_index(self._index.out, self._index.model)
        except PatchwordError as error:  # what is open still answers
            log.warning(
                "the index has changed and cannot be opened; searches go on with what it was: %s", error
            )
            return
        self._index.close()
        self._index = fresh


def _stamp(out: Path) -> tuple[int, int] | None:
    """Changes with every change of an index."""
    try:
        status = os.stat(out / manifest.NAME)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


class TowerLabels:
    """Which label fits a picture, by the cosine of picture and prompts."""

    def __init__(self, towers: TwoTowers) -> None:
        self._towers = towers

    def label(self, picture: Image.Image, labels: Sequence[str]) -> list[tuple[str, float]]:
        """(label, probability), best first. Raises `Refusal` for labels without a word that the model
        knows."""
        try:
            shares = self._towers.label([picture], labels)[0]
        except DataError as error:
            raise unknown_words(error) from error
        return sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1])
