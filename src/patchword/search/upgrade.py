"""Indexes of format 1 become indexes of this format, without embedding anything again.

index.json            names the generation
pictures-<n>.sqlite   path, size, time, vector, problem; concepts; settings
vectors-<n>.faiss     the same vectors once more
work.sqlite           where a run was interrupted: the last generation and what the run had added
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from patchword.errors import StoreError
from patchword.search import manifest as manifests
from patchword.search import vectors
from patchword.search.manifest import Manifest
from patchword.search.records import Row
from patchword.search.segments import write_segment
from patchword.search.writer import explained, only_writer, write_manifest

_BROKEN = (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError)


def is_old(out: Path) -> bool:
    """Whether there is an index of format 1, or the beginning of one."""
    try:
        content = manifests.read_json(out)
    except StoreError:
        return False  # whoever reads it says what is wrong with it
    return (out / "work.sqlite").exists() if content is None else content["format"] == 1


def upgrade(out: Path) -> None:
    """Write the pictures of an index of format 1 as a segment, then remove its old files. Killed on the way,
    it begins anew.

    Raises:
        StoreError: another process writes the index, it is damaged, or the folder cannot be written.
    """
    with only_writer(out):
        if is_old(out):  # another process may have been first
            _upgrade(out)


def _upgrade(out: Path) -> None:
    content = manifests.read_json(out) or {}
    old = out / "work.sqlite"
    generation = content.get("generation", 0)
    if not old.exists():
        old = out / f"pictures-{generation}.sqlite"
    try:
        with closing(sqlite3.connect(f"{old.resolve().as_uri()}?mode=ro", uri=True)) as source:
            settings = dict(source.execute("select name, value from settings"))
            manifest = Manifest(
                generation=int(generation) + 1,
                model=settings["model"],
                name=settings.get("name", ""),
                width=int(settings.get("width") or 0),
                concepts=json.loads(settings.get("concepts") or "[]"),
            )
            counted = "select count(*), count(vector) from pictures"
            pictures, with_vector = source.execute(counted).fetchone()
            rows = list(_rows(source)) if pictures else []
    except _BROKEN as error:
        raise StoreError(
            f"{old}: an index of format 1 that is damaged ({error}): index again into another folder"
        ) from error
    with explained(out):
        segments = []
        if rows:
            cells = with_vector > vectors.FLAT_LIMIT
            counts = (pictures, with_vector)
            segments = [write_segment(out, manifest.generation, rows, counts, manifest, cells)]
        write_manifest(out, manifest.model_copy(update={"segments": segments}))
        for path in [*out.glob("vectors-*.faiss"), *out.glob("work.sqlite*"), *out.glob("lock.sqlite*")]:
            path.unlink(missing_ok=True)
        for path in out.glob("pictures-*.sqlite"):
            if path.name != manifests.file_name("pictures", manifest.generation):
                path.unlink(missing_ok=True)


def _rows(source: sqlite3.Connection) -> Iterator[Row]:
    """Those with a vector first. There is no SHA-256 of the files in this format."""
    words: dict[int, list[str]] = {}
    for picture, word in source.execute("select picture, concept from concepts"):
        words.setdefault(picture, []).append(word)
    statement = "select id, path, size, time_ns, vector, problem from pictures order by vector is null, id"
    values: Any
    for values in source.execute(statement):
        number, path, size, time_ns, vector, problem = values
        vector_E = None if vector is None else np.frombuffer(vector, dtype="<f4")
        concepts = tuple(sorted(words.get(number, ())))
        yield Row(bytes(path), int(size), int(time_ns), b"", problem or "", concepts, vector_E)
