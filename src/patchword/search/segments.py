"""A segment of an index: pictures that were written together, in two or three files that never change.

    pictures-<n>.sqlite   path, size, time, SHA-256, problem and concepts of each picture, with sums
    vectors-<n>.npy       float32, one row for each picture that has a vector, memory-mapped
    cells-<n>.faiss       only in a large segment: the same vectors in an inverted file, to be found faster

As no file changes, a search that has opened one reads it to its end whatever an update does, and a sum that
was computed when it was written tells whether it is still what it was.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.errors import StoreError
from patchword.search.manifest import FileFacts, Manifest, SegmentFacts, damaged, file_name
from patchword.search.records import Row, facts_sum, vector_sum
from patchword.search.vectors import (
    build_cells,
    head_of_cells,
    load_faiss,
    nearest,
    nearest_in_cells,
    read_cells,
    write_cells,
)

VERIFIED_AT_OPENING = 64 * 2**20
"""Bytes of an index whose sums are verified whenever it is opened, small files first. Of larger files the
head is verified, and every picture that is found; `patchword index --check` verifies all."""
HEADER = 128
"""Bytes before the first vector in a file of them."""
_PART = 1 << 20
_ROWS_AT_ONCE = 4096
_SCHEMA = """
create table pictures (
    id integer primary key, path blob unique not null, size integer not null, time_ns integer not null,
    content blob not null, problem blob not null, facts_sum integer not null, vector_sum integer not null);
create table concepts (picture integer not null, concept text not null, primary key (concept, picture))
without rowid; create table settings (name text primary key, value text not null);
"""
COLUMNS = "id, path, size, time_ns, content, problem, facts_sum, vector_sum"
BROKEN = (sqlite3.Error, sqlite3.Warning, ValueError, TypeError, OverflowError, MemoryError)
"""Whatever SQLite and its Python module raise for a file that is no longer what was written."""


class KnownPicture(NamedTuple):
    """A picture of the index, as an update compares it with the folder."""

    size: int
    time_ns: int
    segment: int
    picture: int
    """Its number in the segment."""


def write_segment(
    out: Path, number: int, rows: Iterable[Row], counts: tuple[int, int], about: Manifest, cells: bool
) -> SegmentFacts:
    """Write a segment's files and force them to the disk.

    Args:
        rows: the pictures; those with a vector come first.
        counts: how many pictures there are, and how many of them have a vector.
        about: what the segment says of its index, so that a lost index.json can be made again.
        cells: whether the vectors are put into an inverted file as well.
    """
    paths = {kind: out / file_name(kind, number) for kind in ("pictures", "vectors", "cells")}
    for path in paths.values():
        path.unlink(missing_ok=True)  # left behind by a run that was killed before index.json named it
    pictures, vectors = counts
    with open(paths["vectors"], "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (vectors, about.width)}
        np.lib.format.write_array_header_1_0(file, header)
        if file.tell() != HEADER:
            raise RuntimeError(f"the header of vectors has {file.tell()} bytes, expected {HEADER}")
        written = _write_rows(paths["pictures"], _vectors_to(file, rows), about)
        if written != pictures or file.tell() != HEADER + vectors * about.width * 4:
            raise RuntimeError(f"{number}: {written} rows for {pictures} pictures with {vectors} vectors")
        file.flush()
        os.fsync(file.fileno())
    heads = {"vectors": HEADER, "pictures": 100}
    if cells:
        faiss = load_faiss()
        stored_NE = np.load(paths["vectors"], mmap_mode="r")
        write_cells(faiss, build_cells(faiss, stored_NE), paths["cells"])
        heads["cells"] = head_of_cells(paths["cells"].stat().st_size, vectors, about.width)
    files = {kind: _facts(paths[kind], head) for kind, head in heads.items()}
    return SegmentFacts(number=number, pictures=pictures, vectors=vectors, removed=[], files=files)


def _vectors_to(file: Any, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, while their vectors are written."""
    for row in rows:
        if row.vector_E is not None:
            file.write(np.ascontiguousarray(row.vector_E, dtype="<f4").tobytes())
        yield row


def _write_rows(path: Path, rows: Iterable[Row], about: Manifest) -> int:
    """Write the SQLite file without a journal: a file that no manifest names yet is worth nothing. Returns
    the number of rows."""
    number = -1
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        target.execute("pragma journal_mode = off")
        target.execute("pragma synchronous = off")
        target.executescript(_SCHEMA)
        target.execute("begin")
        settings = {
            "model": about.model,
            "name": about.name,
            "width": about.width,
            "concepts": about.concepts,
        }
        written = [(name, json.dumps(value)) for name, value in settings.items()]
        target.executemany("insert into settings values (?, ?)", written)
        for number, row in enumerate(rows):  # noqa: B007 - the last number is the count
            problem = row.problem.encode("utf-8", "surrogatepass")
            sums = (facts_sum(row), vector_sum(row.vector_E))
            values = (number, row.path, row.size, row.time_ns, row.content, problem, *sums)
            target.execute(f"insert into pictures ({COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?)", values)
            if row.concepts:
                target.executemany(
                    "insert into concepts values (?, ?)", [(number, word) for word in row.concepts]
                )
        target.execute("create index pictures_by_size on pictures (size)")
        target.execute("commit")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return number + 1


def _facts(path: Path, head: int) -> FileFacts:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return FileFacts(size=path.stat().st_size, head=head, head_sum=_sum_of(path, head), sum=_sum_of(path))


def _sum_of(path: Path, most: int | None = None) -> int:
    """CRC-32 of a file, or of its first `most` bytes."""
    found, left = 0, most
    with open(path, "rb") as file:
        while part := file.read(_PART if left is None else min(_PART, left)):
            found = zlib.crc32(part, found)
            left = None if left is None else left - len(part)
    return found


def verify(out: Path, segment: SegmentFacts, kind: str, whole: bool) -> None:
    """Compare a file with what was written: its size, and the sum of its head, or of the whole.

    Raises:
        StoreError: it differs; the message names the file and the cure.
        FileNotFoundError: there is none.
    """
    path, facts = out / file_name(kind, segment.number), segment.files[kind]
    size = path.stat().st_size
    if size != facts.size:
        raise damaged(path, f"it has {size} bytes and was written with {facts.size}")
    if whole and _sum_of(path) != facts.sum:
        raise damaged(path, "its content does not fit its sum")
    if not whole and _sum_of(path, facts.head) != facts.head_sum:
        raise damaged(path, "its head does not fit its sum")


class Segment:
    """A segment that is open for reading. `open_segments` opens those of a manifest."""

    def __init__(self, out: Path, facts: SegmentFacts, width: int, searched: bool) -> None:
        """Open the files; `searched` also maps the vectors. Raises FileNotFoundError where one is missing,
        StoreError for damage."""
        self.facts, self._out, self._width = facts, out, width
        self.removed = set(facts.removed)
        path = self._path("pictures")
        path.stat()
        try:
            address = Path(os.path.abspath(path)).as_uri()
            self._pictures = sqlite3.connect(
                f"{address}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
            )
            self._pictures.execute("select 1 from pictures limit 1").fetchone()
        except BROKEN as error:
            path.stat()
            raise damaged(path, str(error)) from error
        self._vectors_NE: np.ndarray | None = None
        self._faiss: Any = None
        self._cells: Any = None
        if searched:
            self.vectors_NE()
            if "cells" in facts.files:
                self._faiss = load_faiss()
                self._cells = self._read_cells(self._faiss)

    def _path(self, kind: str) -> Path:
        return self._out / file_name(kind, self.facts.number)

    def _read_cells(self, faiss: Any) -> Any:
        path = self._path("cells")
        path.stat()
        try:
            cells = read_cells(faiss, path)
        except (RuntimeError, MemoryError) as error:
            path.stat()
            raise damaged(path, " ".join(str(error).split())[:200]) from error
        if cells.d != self._width or cells.ntotal != self.facts.vectors:
            raise damaged(path, f"it holds {cells.ntotal} vectors of width {cells.d}")
        return cells

    def vectors_NE(self) -> np.ndarray:
        """All vectors, memory-mapped; removed ones included. Raises FileNotFoundError, or StoreError for
        damage."""
        if self._vectors_NE is None:
            path = self._path("vectors")
            try:
                self._vectors_NE = np.load(path, mmap_mode="r" if self.facts.vectors else None)
            except FileNotFoundError:
                raise
            except (ValueError, OSError, EOFError, OverflowError) as error:
                raise damaged(path, str(error)) from error
            expected = (self.facts.vectors, self._width)
            if self._vectors_NE.shape != expected or self._vectors_NE.dtype != np.dtype("<f4"):
                raise damaged(path, f"it holds {self._vectors_NE.dtype} {self._vectors_NE.shape}")
        return self._vectors_NE

    def close(self) -> None:
        """Let go of the files."""
        self._pictures.close()
        self._vectors_NE, self._cells = None, None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise damaged(self._path("pictures"), str(error)) from error

    def search(self, query_E: np.ndarray, k: int, among: set[int] | None) -> list[tuple[float, int]]:
        """Scores and numbers of the nearest pictures, best first; with `among` only of these."""
        kept_N = None
        if among is not None or self.facts.removed:
            kept_N = np.full(self.facts.vectors, among is None)
            if among is not None:
                kept_N[[number for number in among if number < self.facts.vectors]] = True
            kept_N[[number for number in self.facts.removed if number < self.facts.vectors]] = False
        k = min(k, self.facts.vectors if kept_N is None else int(kept_N.sum()))
        if k == 0:
            return []
        if self._cells is None:
            scores, numbers = nearest(self.vectors_NE(), query_E, k, kept_N)
        else:
            everywhere = among is not None
            scores, numbers = nearest_in_cells(self._faiss, self._cells, query_E, k, kept_N, everywhere)
            scores, numbers = self._scored_anew(scores, numbers, query_E)
        return list(zip(scores.tolist(), numbers.tolist(), strict=True))

    def _scored_anew(
        self, scores_K: np.ndarray, numbers_K: np.ndarray, query_E: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What cells found, each picture once and with the score of its own vector, whose sum is verified
        when it is named: of a large file of cells only the head is. Raises StoreError where the two disagree.
        """
        there_K = numbers_K != -1
        scores_K, numbers_K = scores_K[there_K], numbers_K[there_K]
        for number in numbers_K[(numbers_K < 0) | (numbers_K >= self.facts.vectors)].tolist():
            raise damaged(self._path("cells"), f"it names a picture {number} of {self.facts.vectors}")
        exact_K = self.vectors_NE()[numbers_K] @ query_E
        for place in np.flatnonzero(~(np.abs(exact_K - scores_K) < 1e-3)).tolist():
            self.row(int(numbers_K[place]))  # where its own vector is the damaged one, this says so
            found = (
                f"it gives picture {numbers_K[place]} the score {scores_K[place]:.4f}, "
                f"and its vector gives {exact_K[place]:.4f}"
            )
            raise damaged(self._path("cells"), found)
        numbers_K, first_K = np.unique(numbers_K, return_index=True)
        order_K = np.argsort(-exact_K[first_K], kind="stable")
        return exact_K[first_K][order_K], numbers_K[order_K]

    def verified(self, number: int, query_E: np.ndarray, score: float) -> Row:
        """The picture that a search found. Raises StoreError where its facts, its vector or its score are not
        what was written."""
        row = self.row(number)
        exact = float(row.vector_E @ query_E)
        if not abs(exact - score) < 1e-3:
            found = f"it gives picture {number} the score {score:.4f}, and its vector gives {exact:.4f}"
            raise damaged(self._path("vectors"), found)
        return row

    def row(self, number: int) -> Row:
        """One picture, verified against its sums. Raises StoreError for damage."""
        with self._reading():
            statement = f"select {COLUMNS} from pictures where id = ?"
            found = self._pictures.execute(statement, (number,)).fetchone()
            words = self._pictures.execute("select concept from concepts where picture = ?", (number,))
            concepts = tuple(sorted(word for (word,) in words)) if self._has_concepts() else ()
        if found is None:
            raise damaged(self._path("pictures"), f"picture {number} is missing")
        return self._row(found, concepts)

    def _has_concepts(self) -> bool:
        return self._pictures.execute("select 1 from concepts limit 1").fetchone() is not None

    def _row(self, values: Sequence[Any], concepts: tuple[str, ...]) -> Row:
        number, path, size, time_ns, content, problem, facts, vector = values
        with self._reading():
            said = bytes(problem).decode("utf-8", "surrogatepass")
            vector_E = self.vectors_NE()[number] if number < self.facts.vectors else None
            row = Row(bytes(path), int(size), int(time_ns), bytes(content), said, concepts, vector_E)
        if facts_sum(row) != facts:
            raise damaged(self._path("pictures"), f"picture {number} does not fit its sum")
        if vector_sum(vector_E) != vector:
            raise damaged(self._path("vectors"), f"the vector of picture {number} does not fit its sum")
        return row

    def rows(self, with_vector: bool) -> Iterator[Row]:
        """The pictures that are not removed, either those with a vector or those without, verified. Raises
        StoreError for damage."""
        first, last = (0, self.facts.vectors) if with_vector else (self.facts.vectors, self.facts.pictures)
        concepts: dict[int, list[str]] = {}
        with self._reading():
            for picture, word in self._pictures.execute("select picture, concept from concepts"):
                concepts.setdefault(picture, []).append(word)
            statement = f"select {COLUMNS} from pictures where id >= ? and id < ? order by id"
            cursor = self._pictures.execute(statement, (first, last))
        count = 0
        while True:
            with self._reading():
                found = cursor.fetchmany(_ROWS_AT_ONCE)
            if not found:
                break
            count += len(found)
            for values in found:
                if values[0] not in self.removed:
                    yield self._row(values, tuple(sorted(concepts.get(values[0], ()))))
        if count != last - first:
            raise damaged(self._path("pictures"), f"{count} of {last - first} pictures are there")

    def under(self, prefix: bytes) -> Iterator[tuple[bytes, KnownPicture]]:
        """Path and facts of the pictures whose path begins with `prefix`; removed ones are left out."""
        end = prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b""
        where = "where path >= ? and path < ?" if prefix else ""
        statement = f"select path, size, time_ns, id from pictures {where} order by path"
        yield from self._known(statement, (prefix, end) if prefix else ())

    def find(self, path: bytes) -> KnownPicture | None:
        """The picture with this path; None where it is not here, or removed."""
        statement = "select path, size, time_ns, id from pictures where path = ?"
        return next((known for _, known in self._known(statement, (path,))), None)

    def of_size(self, size: int) -> Iterator[tuple[bytes, KnownPicture]]:
        """Path and facts of the pictures whose file had this size."""
        yield from self._known("select path, size, time_ns, id from pictures where size = ?", (size,))

    def _known(self, statement: str, values: tuple) -> Iterator[tuple[bytes, KnownPicture]]:
        with self._reading():
            for path, size, time_ns, number in self._pictures.execute(statement, values):
                if number not in self.removed:
                    yield bytes(path), KnownPicture(size, time_ns, self.facts.number, number)

    def having(self, concepts: Sequence[str]) -> set[int]:
        """Numbers of the pictures that have all of these concepts."""
        marks = ", ".join("?" * len(concepts))
        statement = (
            f"select picture from concepts where concept in ({marks}) group by picture having count(*) = ?"
        )
        with self._reading():
            return {row[0] for row in self._pictures.execute(statement, (*concepts, len(concepts)))}

    def problems(self) -> Iterator[tuple[bytes, str]]:
        """Path and reason of the pictures that have no vector."""
        statement = "select id, path, problem from pictures where id >= ?"
        with self._reading():
            for number, path, problem in self._pictures.execute(statement, (self.facts.vectors,)):
                if number not in self.removed:
                    yield bytes(path), bytes(problem).decode("utf-8", "surrogatepass")


def open_segments(out: Path, manifest: Manifest, searched: bool) -> list[Segment]:
    """Verify the files of a manifest as far as VERIFIED_AT_OPENING goes, and open them.

    Raises:
        FileNotFoundError: a file is missing; an update may have replaced it just now.
        StoreError: a file is damaged.
    """
    kinds = ("pictures", "vectors", "cells") if searched else ("pictures",)
    files = [
        (segment.files[kind].size, segment, kind)
        for segment in manifest.segments
        for kind in kinds
        if kind in segment.files
    ]
    left = VERIFIED_AT_OPENING
    for size, segment, kind in sorted(files, key=lambda file: file[0]):
        left -= size
        verify(out, segment, kind, whole=left >= 0)
    opened: list[Segment] = []
    try:
        for facts in manifest.segments:
            if "pictures" not in facts.files or "vectors" not in facts.files:
                raise StoreError(f"{out}: index.json names no files of segment {facts.number}")
            opened.append(Segment(out, facts, manifest.width, searched))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened
