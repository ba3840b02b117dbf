"""One run over a folder: pictures are read, recognised or embedded, and published batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from patchword.data.headers import Bounds
from patchword.data.isolated import PictureReader
from patchword.data.pictures import read_content
from patchword.errors import PictureError, StoreError, counted
from patchword.search.manifest import Manifest
from patchword.search.records import LOST, Concepts, IndexModel, IndexReport, Row
from patchword.search.segments import KnownPicture
from patchword.search.thumbnails import Thumbnails
from patchword.search.walk import Comparison, Walk, is_gone
from patchword.search.writer import explained

LEAST_SIDE = 1024
"""Pictures are handed to the model with a shorter side of at least this many pixels (or as they are)."""


KnownVectors = Callable[[bytes], tuple[np.ndarray | None, str] | None]
"""SHA-256 of a file to what is known of it: its unit vector, or why it has none; None where nothing is."""


class Writer(Protocol):
    """An engine that holds an index, open for changes: `search/writer.py` and `search/milvus.py` have one
    each."""

    out: Any
    manifest: Manifest
    """What the index says of itself; `segments` are the embedded engine's own."""

    @property
    def pictures(self) -> int:
        """Pictures that a search can find."""

    def known_under(self, prefix: bytes) -> dict[bytes, KnownPicture]:
        """The pictures whose path begins with `prefix`."""

    def problems(self) -> dict[bytes, str]:
        """The pictures that could not be read, with the reason."""

    def twins(self, size: int, content: bytes) -> Iterator[Row]:
        """The pictures with a vector whose file had this size and this SHA-256."""

    def row(self, path: bytes) -> Row | None:
        """A picture with all that the index holds of it."""

    def describe(self, **changes: object) -> None:
        """Change facts of the index; the next `publish` writes them."""

    def publish(self, rows: Sequence[Row] = (), gone: Iterable[bytes] = ()) -> None:
        """Put pictures in, and take those with the paths `gone` out."""

    def tidy(self, added: int) -> None:
        """After a run that added so many: whatever keeps searches fast."""


class _Twin(NamedTuple):
    """A picture of the index that is the same file as one that was found."""

    row: Row
    moved: bool
    """Whether the file is no longer where the index knows it."""


class Changes(NamedTuple):
    """A folder beside what an index holds of it."""

    known: dict[bytes, KnownPicture]
    """The pictures that the index holds of the folder."""
    seen: Walk
    found: Comparison


class Update:
    """One run over a folder, batch by batch."""

    def __init__(
        self,
        index: Writer,
        model: IndexModel,
        changes: Changes,
        reader: PictureReader,
        thumbnails: bool,
        given: KnownVectors | None = None,
    ) -> None:
        self.index, self.model, self.reader, self.given = index, model, reader, given
        self.known, self.seen, self.found = changes
        kept = len(self.seen.found) - len(self.found.waiting)
        self.report = IndexReport(kept=kept, absent=self.found.absent, left_out=+self.seen.left_out)
        self.thumbnails = Thumbnails(index.out) if thumbnails and isinstance(index.out, Path) else None
        self.mounts = {os.fsencode(mount) for mount in index.manifest.mounts}
        self.left: set[bytes] = set()
        """Paths from which a picture has moved to where it was found."""

    def begin(self, folder: Path) -> None:
        """Say which folder it is, and that pictures are waiting, before the first of them is looked at."""
        held = self.index.manifest
        roots = sorted({*held.roots, str(folder)})
        mounts = sorted({*held.mounts, *map(os.fsdecode, self.seen.mounts)})
        waiting = len(self.found.waiting)
        if (roots, mounts, waiting) != (held.roots, held.mounts, held.waiting) or not held.generation:
            self.index.describe(roots=roots, mounts=mounts, waiting=waiting)
            self.index.publish()

    def batches(self, size: int) -> Iterator[int]:
        """Embed and publish; gives how many pictures are done."""
        waiting = self.found.waiting
        for start in range(0, len(waiting), size):
            paths = waiting[start : start + size]
            rows, gone = self._rows(paths)
            done = start + len(paths)
            self.index.describe(waiting=len(waiting) - done)
            self.index.publish(rows, gone)
            yield done

    def end(self) -> IndexReport:
        """Forget what is gone and was not found elsewhere; says what the run did."""
        self.report.removed = len(self.found.gone)
        if self.found.gone:
            forget(self.index, list(self.found.gone))
        if self.found.gone or self.found.waiting:
            self.index.tidy(len(self.found.waiting))
        problems, self.report.pictures = self.index.problems(), self.index.pictures
        bad = self.seen.unreadable | {path: why for path, why in problems.items() if path in self.seen.found}
        self.report.bad += [(os.fsdecode(path), reason) for path, reason in bad.items()]
        return self.report

    def _rows(self, paths: list[bytes]) -> tuple[list[Row], list[bytes]]:
        """The rows of a batch, and the paths of the rows that they take the place of."""
        rows, new, pictures = [], [], []
        gone = [path for path in paths if path in self.known]
        for path in paths:
            row, picture, twin = self._read(path)
            self._count(row, twin)
            if twin is not None and twin.moved:
                gone.append(twin.row.path)
            if picture is None:
                rows.append(row)
            else:
                new.append(row)
                pictures.append(picture)
        if pictures:
            vectors_NE, concepts = self._vectors(pictures), self.model.concepts
            words = concepts.of(pictures) if concepts is not None else [()] * len(pictures)
            for row, vector_E, own in zip(new, vectors_NE, words, strict=True):
                rows.append(row._replace(vector_E=vector_E, concepts=tuple(sorted(set(own)))))
        return rows, gone

    def _read(self, path: bytes) -> tuple[Row, Image.Image | None, _Twin | None]:
        """A row for a file; its picture where that must be embedded; the same file as the index knows it, if
        it does."""
        shown, status = os.fsdecode(path), self.seen.found[path]
        row = Row(path, status.size, status.time_ns, b"", "", (), None)
        try:
            content = read_content(Path(shown), shown, Bounds())
        except PictureError as error:
            return row._replace(size=LOST, problem=str(error)), None, None
        row = row._replace(content=hashlib.sha256(content).digest())
        twin = self._twin(row)
        if twin is not None:
            return row._replace(concepts=twin.row.concepts, vector_E=twin.row.vector_E), None, twin
        ready = self.given(row.content) if self.given is not None else None
        if ready is not None:
            vector_E, problem = ready
            if vector_E is not None:
                self._check_width(len(vector_E))
            return row._replace(vector_E=vector_E, problem=problem), None, None
        try:
            picture = _reduced(self.reader.open(content, shown))
        except PictureError as error:
            return row._replace(problem=str(error)), None, None
        self._keep_copy(row.content.hex(), picture)
        return row, picture, None

    def _twin(self, row: Row) -> _Twin | None:
        """The same file under its own name; else one that is no longer there; else a copy of it."""
        copy = None
        for other in self.index.twins(row.size, row.content):
            if other.path == row.path:
                return _Twin(other, False)
            elsewhere = other.path not in self.left and other.path not in self.known
            if other.path in self.found.gone or (elsewhere and is_gone(other.path, self.mounts)):
                self.found.gone.pop(other.path, None)
                self.left.add(other.path)
                return _Twin(other, True)
            copy = _Twin(other, False)
        return copy

    def _count(self, row: Row, twin: _Twin | None) -> None:
        known = self.known.get(row.path)
        if known is not None and known.size != LOST:
            same = twin is not None and twin.row.path == row.path
            self.report.kept += same
            self.report.changed += not same
        elif twin is not None and twin.moved:
            self.report.moved += 1
        elif not row.problem:
            self.report.added += 1

    def _vectors(self, pictures: list[Image.Image]) -> np.ndarray:
        """Checked, float32, length one. The width of the first batch is the index's."""
        vectors_NE = np.asarray(self.model.embed(pictures), dtype=np.float32)
        width, count = self.index.manifest.width, len(pictures)
        if vectors_NE.ndim != 2 or len(vectors_NE) != count or (width and vectors_NE.shape[1] != width):
            expected = f"({count}, {width or 'width'})"
            raise StoreError(
                f"embedding gave shape {vectors_NE.shape} for {counted(count, 'picture')}; "
                f"expected {expected}"
            )
        lengths_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
        if not (np.isfinite(lengths_N1).all() and lengths_N1.all()):
            found = "embedding gave a vector that is zero or not finite"
            raise StoreError(f"{found}: nothing of this batch is stored; check the model")
        self.index.describe(width=vectors_NE.shape[1])
        return vectors_NE / lengths_N1

    def _check_width(self, width: int) -> None:
        held = self.index.manifest.width
        if held not in (0, width):
            raise StoreError(f"a vector has {width} numbers, and those of this index have {held}")
        self.index.describe(width=width)

    def _keep_copy(self, key: str, picture: Image.Image) -> None:
        if self.thumbnails is not None and not self.thumbnails.has(key):
            with explained(self.index.out):
                self.thumbnails.write(key, picture)


def forget(index: Writer, paths: Sequence[bytes]) -> None:
    """Take pictures out of an index, with the small copies that no other picture of it needs."""
    rows = [index.row(path) for path in paths]
    index.publish(gone=paths)
    if not isinstance(index.out, Path):
        return
    copies = Thumbnails(index.out)
    for row in rows:
        if row is not None and row.content and not any(index.twins(row.size, row.content)):
            copies.remove(row.content.hex())


def _reduced(picture: Image.Image) -> Image.Image:
    """A large photograph by a whole factor smaller: a batch of them stays within some hundred megabytes, and
    towers look at far less."""
    factor = min(picture.size) // LEAST_SIDE
    return picture.reduce(factor) if factor > 1 else picture


def same_concepts(index: Writer, concepts: Concepts | None) -> None:
    """An index without pictures takes the words it is given; later runs must bring the same ones, or its
    pictures would differ."""
    given, held = sorted(concepts.words) if concepts is not None else [], index.manifest.concepts
    if given == held:
        return
    if index.pictures:
        found = (
            f"{counted(len(given), 'concept is', 'concepts are')} given and this index holds "
            f"pictures with {len(held)} others"
        )
        do = "index with the codebook that it was begun with, or make a new index in another folder"
        raise StoreError(f"{index.out}: {found}; {do}")
    index.describe(concepts=given)
