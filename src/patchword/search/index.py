"""An index of pictures: their vectors, what belongs to each, and a manifest that makes a change appear at
once.

    OUT/index.json               the segments that can be searched, the model, sums of all files; replaced
    atomically, last OUT/pictures-<n>.sqlite      segments.py: path, size, time, SHA-256 and concepts of the
    pictures of a segment OUT/vectors-<n>.npy          segments.py: their vectors, memory-mapped; in a large
    segment cells-<n>.faiss beside them OUT/thumbnails/              thumbnails.py: small copies to show
    OUT/index.lock               walk.py: held by the one process that changes the index

Each finished batch is a change, so a search sees it at once, and an index that is killed at any moment loses
at most the batch in hand. The index knows no model: it takes a function from pictures to vectors, and the
model's identity as a string."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from patchword.data.isolated import PictureReader
from patchword.errors import DataError, StoreError
from patchword.lookup import look_up
from patchword.search import manifest as manifests
from patchword.search.manifest import Manifest
from patchword.search.records import Concepts, Embed, IndexModel, IndexReport, Match
from patchword.search.segments import Segment, open_segments
from patchword.search.update import Changes, KnownVectors, Update, Writer, forget, same_concepts
from patchword.search.upgrade import is_old, upgrade
from patchword.search.vectors import load_faiss
from patchword.search.walk import compare, is_gone, is_index, known_name, missing, prefix_of, walk
from patchword.search.writer import open_writer, refuse_other

__all__ = [
    "Concepts",
    "Embed",
    "IndexReport",
    "Match",
    "PictureIndex",
    "open_index",
    "prune_index",
    "update_index",
]


def update_index(
    folder: Path | str,
    out: Path | str,
    model: IndexModel,
    *,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
    allow_empty: bool = False,
    thumbnails: bool = True,
    given: KnownVectors | None = None,
) -> IndexReport:
    """Bring the index at `out` up to the pictures under `folder` (with its sub-folders), embedding only new
    and changed files.

    Files of other folders in the same index stay as they are. A file that moved keeps its vector.

    Args:
        progress: called with (done, all) after every batch.
        allow_empty: whether pictures of a folder that is empty now, or of a drive that is not mounted, are
            forgotten.
        thumbnails: whether small copies are kept, for pages that show what was found.
        given: what is known of files by their SHA-256, which are then not decoded; for vectors that a job on
            a cluster has made (`jobs/index.py`).

    Raises:
        DataError: the folder does not exist.
        StoreError: the index is of another model or of other concepts, is damaged, is written by another
            process, cannot be written, or the folder is empty and the index holds pictures of it.
    """
    folder = _folder_of_pictures(folder, out)
    with _writer(out, model.identity, model.name) as index, PictureReader() as reader:
        same_concepts(index, model.concepts)
        folder = known_name(folder, index.manifest.roots)
        changes = _changes(index, folder, allow_empty)
        update = Update(index, model, changes, reader, thumbnails, given)
        waiting = len(changes.found.waiting)
        if progress is not None:
            progress(0, waiting)
        update.begin(folder)
        for done in update.batches(batch):
            if progress is not None:
                progress(done, waiting)
        return update.end()


def _changes(index: Writer, folder: Path, allow_empty: bool) -> Changes:
    """What has changed under a folder since an index was brought up to it. Raises StoreError as `compare`."""
    seen, known = walk(folder), index.known_under(prefix_of(folder))
    mounts = [os.fsencode(mount) for mount in index.manifest.mounts]
    return Changes(known, seen, compare(folder, seen, known, mounts, allow_empty))


def prune_index(out: Path | str, *, allow_empty: bool = False) -> IndexReport:
    """Take the pictures out of which the file no longer exists, whatever folder they were in.

    What lies on a drive that is not mounted, or under a folder that is empty or cannot be read, stays and is
    counted as absent; `allow_empty` takes that out as well.

    Raises:
        StoreError: there is no index, it is damaged, is written by another process, or cannot be written.
    """
    with open_index(out) as opened:
        model, name = opened.model, opened.name
    with _writer(out, model, name) as index:
        mounts = {os.fsencode(mount) for mount in index.manifest.mounts}
        lost = missing(index.known_under(b""))
        gone = [path for path in lost if allow_empty or is_gone(path, mounts)]
        report = IndexReport(removed=len(gone))
        for path in set(lost).difference(gone):
            place = os.fsdecode(os.path.dirname(path))
            report.absent[place] = report.absent.get(place, 0) + 1
        if gone:
            forget(index, gone)
            index.tidy(0)
        report.pictures = index.pictures
    return report


def what_waits(
    folder: Path | str, out: Path | str, model: IndexModel, allow_empty: bool = False
) -> list[bytes]:
    """The pictures of a folder that the next `update_index` would read: new ones, and those that changed.

    Raises as `update_index`.
    """
    folder = _folder_of_pictures(folder, out)
    with _writer(out, model.identity, model.name) as index:
        folder = known_name(folder, index.manifest.roots)
        return _changes(index, folder, allow_empty).found.waiting


def _folder_of_pictures(folder: Path | str, out: Path | str) -> Path:
    """Its absolute path. Raises DataError for no folder, and for one that is an index, or becomes one."""
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a folder of pictures to index")
    if not names_milvus(out) and os.path.realpath(out) == str(folder.resolve()):
        raise DataError(f"{folder}: an index lies in a folder of its own: name another one with --out")
    if is_index(folder):
        raise DataError(
            f"{folder}: this folder is an index, which holds no pictures; expected one of pictures"
        )
    return folder


def _writer(out: Path | str, model: str, name: str) -> AbstractContextManager[Any]:
    """The index at `out` for changes, of the engine that its name says."""
    if names_milvus(out):
        return look_up("search.milvus:open_milvus_writer")(out, model, name)
    load_faiss()
    if is_old(Path(out)):
        upgrade(Path(out))
    return open_writer(Path(out), model, name)


def names_milvus(out: Path | str) -> bool:
    """Whether an index is one in Milvus (`search/milvus.py`), a cluster's or a file of milvus-lite."""
    return str(out).startswith("milvus:") or str(out).endswith(".milvus.db")


class PictureIndex:
    """An index at a moment, open for searching (`open_index`): later changes do not reach it."""

    def __init__(self, out: Path, manifest: Manifest, segments: list[Segment]) -> None:
        self._segments, self._manifest = segments, manifest
        self.out = out
        self.generation = manifest.generation
        """Grows with every change of the index."""
        self.model, self.name, self.width = manifest.model, manifest.name, manifest.width
        self.count = manifest.pictures
        """Pictures that can be found."""
        self.waiting = manifest.waiting
        """Pictures that the last run of `update_index` had not come to."""
        self.kind = "cells" if any("cells" in one.facts.files for one in segments) else "flat"

    def __enter__(self) -> PictureIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for segment in self._segments:
            segment.close()

    def refuse_other(self, model: str) -> None:
        """Raises StoreError where `model` is not the identity of the model that the index was made with."""
        refuse_other(self.out, self.model, model)

    def pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and vector (E,) of every picture that can be found, segment by segment, verified against its
        sums.

        Raises StoreError for damage.
        """
        for segment in self._segments:
            for row in segment.rows(with_vector=True):
                assert row.vector_E is not None  # it was asked for
                yield os.fsdecode(row.path), row.vector_E

    def search(
        self, query_E: np.ndarray, k: int = 10, concepts: Sequence[str] = (), under: str = ""
    ) -> list[Match]:
        """The `k` pictures nearest to a vector, best first; with `concepts` only among pictures that have all
        of them, with `under` only those in that folder and its sub-folders.

        Raises:
            StoreError: the query has another width, or what was found is not what was written.
            DataError: `k` is below one, or the index does not know a concept.
        """
        query_E = np.asarray(query_E, dtype=np.float32).reshape(-1)
        if k < 1:
            raise DataError(f"k of {k}: expected at least one picture to find")
        wanted = self._wanted(concepts)
        if self.count == 0:
            return []
        if len(query_E) != self.width or not np.isfinite(query_E).all():
            expected = f"this index of {self.model!r} expects {self.width} finite numbers"
            raise StoreError(f"query of width {len(query_E)}; {expected}")
        query_E = query_E / max(float(np.linalg.norm(query_E)), 1e-12)
        found = [
            (score, segment, number)
            for segment in self._segments
            for score, number in segment.search(query_E, k, _among(segment, wanted, under))
        ]
        best = heapq.nsmallest(k, found, key=lambda one: -one[0])
        rows = [(segment.verified(number, query_E, score), score) for score, segment, number in best]
        return [Match(os.fsdecode(row.path), score, row.content.hex()) for row, score in rows]

    def _wanted(self, concepts: Sequence[str]) -> list[str]:
        known = self._manifest.concepts
        strange = [word for word in concepts if word not in known]
        if strange:
            some = f"it has {len(known)}, such as {', '.join(known[:5])}"
            some = some if known else "it was made without --concepts"
            raise DataError(f"this index knows no concept {', '.join(map(repr, sorted(strange)))}: {some}")
        return sorted(set(concepts))


def _among(segment: Segment, wanted: Sequence[str], under: str) -> set[int] | None:
    """Numbers of the pictures that a search may find; None for all."""
    sets = [segment.having(wanted)] if wanted else []
    if under:
        prefix = prefix_of(Path(os.path.abspath(under)))
        sets.append({known.picture for _, known in segment.under(prefix)})
    return set.intersection(*sets) if sets else None


def open_index(out: Path | str, model: str | None = None) -> PictureIndex:
    """Open an index as it is now, a `PictureIndex` or one in Milvus with the same interface. `model`, where
    given, must be the model of the index.

    An index of an earlier format is brought to this one first, for which its folder must be writable.

    Raises:
        StoreError: there is no index, it is of another model, or damaged.
        MissingExtra: it is so large that faiss searches it, and faiss is not installed.
    """
    if names_milvus(out):
        opened: PictureIndex = look_up("search.milvus:open_milvus")(out, model)  # has the same methods
        return opened
    out = Path(out)
    if is_old(out):
        upgrade(out)
    while True:
        manifest = manifests.read(out)
        if manifest is None:
            make = f"make one with `patchword index FOLDER --out {out}`"
            raise StoreError(f"{out}: no index here (no index.json); {make}")
        if model is not None:
            refuse_other(out, manifest.model, model)
        try:
            return PictureIndex(out, manifest, open_segments(out, manifest, searched=True))
        except FileNotFoundError as error:
            if manifests.read(out) == manifest:
                raise manifests.damaged(Path(os.fsdecode(error.filename)), "the file is missing") from error
            # An update has replaced the segment since index.json was read: begin again with what it names
            # now.


def model_of(out: Path | str) -> str | None:
    """What the model of an index is loaded by; None where there is no index, or none that says so."""
    if names_milvus(out):
        return look_up("search.milvus:model_of")(out)
    try:
        content = manifests.read_json(Path(out))
    except StoreError:
        return None
    content = content.get("index", content) if content is not None else {}
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) and name else None
