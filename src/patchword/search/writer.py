"""The one process that changes an index: new pictures become a segment, small segments are merged into larger
ones now and then.

Every change ends with a new index.json, written aside and renamed. Killed at any moment, an index is what it
was before the batch in hand; files that no index.json names are removed by the next writer.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from patchword.errors import StoreError
from patchword.files import why_not_written, write_text
from patchword.search import manifest as manifests
from patchword.search import vectors
from patchword.search.manifest import Manifest, SegmentFacts, damaged, file_name
from patchword.search.records import Row
from patchword.search.segments import KnownPicture, Segment, open_segments, write_segment
from patchword.search.walk import LOCK, is_index

FAN = 8
"""Segments of about the same size are merged when there are so many."""
LARGE_RUN = 1000
"""A run that added fewer pictures puts none into cells, so that a few pictures never wait for it, until there
are far more than FLAT_LIMIT without."""
REMOVED_SHARE = 0.25
"""A segment is written anew when more of its pictures than this are removed."""
_FILES = re.compile(r"(pictures-\d+\.sqlite|vectors-\d+\.npy|cells-\d+\.faiss)(-journal)?")


class IndexWriter:
    """An index that is open for changes. `open_writer` gives one, and holds the lock."""

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.out, self.manifest = out, manifest
        try:
            self._segments = {one.facts.number: one for one in open_segments(out, manifest, searched=False)}
        except FileNotFoundError as error:
            raise damaged(Path(error.filename), "the file is missing") from error
        self._remove_leftovers()

    def close(self) -> None:
        """Let go of the files."""
        for segment in self._segments.values():
            segment.close()

    @property
    def pictures(self) -> int:
        """Pictures that a search can find."""
        return self.manifest.pictures

    def known_under(self, prefix: bytes) -> dict[bytes, KnownPicture]:
        """The pictures whose path begins with `prefix`."""
        return dict(chain.from_iterable(segment.under(prefix) for segment in self._segments.values()))

    def problems(self) -> dict[bytes, str]:
        """The pictures that could not be read, with the reason."""
        return dict(chain.from_iterable(segment.problems() for segment in self._segments.values()))

    def twins(self, size: int, content: bytes) -> Iterator[Row]:
        """The pictures with a vector whose file had this size and this SHA-256."""
        for segment in self._segments.values():
            for _, known in list(segment.of_size(size)):
                if known.picture < segment.facts.vectors:
                    row = self._row(known)
                    if row.content == content:
                        yield row

    def row(self, path: bytes) -> Row | None:
        """A picture with all that the index holds of it; None where it holds no such picture."""
        for segment in self._segments.values():
            known = segment.find(path)
            if known is not None:
                return self._row(known)
        return None

    def _row(self, known: KnownPicture) -> Row:
        try:
            return self._segments[known.segment].row(known.picture)
        except FileNotFoundError as error:
            raise damaged(Path(error.filename), "the file is missing") from error

    def describe(self, **changes: object) -> None:
        """Change facts of the index (`width`, `roots`, `concepts`, `waiting`); the next `publish` writes
        them."""
        self.manifest = self.manifest.model_copy(update=changes)

    def publish(self, rows: Sequence[Row] = (), gone: Iterable[bytes] = ()) -> None:
        """Make one change, whole or not at all: take the pictures with the paths `gone` out, put others in.

        A path of `rows` that the index holds already must be among `gone`.

        Raises:
            StoreError: the disk is full or read-only, or a segment that is to be merged is damaged; the index
            is as before.
        """
        for path in gone:
            for segment in self._segments.values():
                known = segment.find(path)
                if known is not None:
                    segment.removed.add(known.picture)
        self._replace(rows, self._to_merge(len(rows)) if rows else [], cells=False)

    def tidy(self, added: int) -> None:
        """Write segments anew that hold many removed pictures, and put many vectors into cells, so that
        searches stay fast.

        `added` is the number of pictures that the run has added.
        """
        for segment in list(self._segments.values()):
            if len(segment.removed) > REMOVED_SHARE * segment.facts.pictures:
                self._replace(
                    [],
                    [segment],
                    "cells" in segment.facts.files and _found_in([segment]) > vectors.FLAT_LIMIT,
                )
        flat = [one for one in self._segments.values() if "cells" not in one.facts.files]
        most = vectors.FLAT_LIMIT if added >= LARGE_RUN else 4 * vectors.FLAT_LIMIT
        if _found_in(flat) > most:
            self._replace([], flat, cells=True)
        large = [one for one in self._segments.values() if "cells" in one.facts.files]
        for tier in {_tier(_live(one)) for one in large}:
            same = [one for one in large if _tier(_live(one)) == tier]
            if len(same) >= FAN:
                self._replace([], same, cells=True)

    def _to_merge(self, count: int) -> list[Segment]:
        """The segments that become one with `count` new pictures: all of a size where there are FAN of it,
        then those of the next."""
        flat = [one for one in self._segments.values() if "cells" not in one.facts.files]
        chosen: list[Segment] = []
        while True:
            same = [one for one in flat if one not in chosen and _tier(_live(one)) == _tier(count)]
            together = count + sum(map(_live, same))
            if len(same) + 1 < FAN or together > vectors.FLAT_LIMIT:
                return chosen
            chosen, count = [*chosen, *same], together

    def _replace(self, rows: Sequence[Row], merged: Sequence[Segment], cells: bool) -> None:
        """Put the pictures of some segments, and new ones, into one new segment; drop segments of which
        nothing is left."""
        number = self.manifest.generation + 1
        dropped = [one for one in self._segments.values() if one in merged or not _live(one)]
        kept = [_with_removed(one) for one in self._segments.values() if one not in dropped]
        try:
            with explained(self.out):
                new = self._written(number, rows, merged, cells)
                update = {"generation": number, "segments": [*kept, *new]}
                following = self.manifest.model_copy(update=update)
                write_manifest(self.out, following)
        except BaseException:
            written = manifests.read(self.out)
            if (
                written is None or written.generation < number
            ):  # what was begun is removed: its space is free again
                _remove(self.out / file_name(kind, number) for kind in ("pictures", "vectors", "cells"))
            raise
        self.manifest = following
        for facts in new:
            self._segments[facts.number] = Segment(self.out, facts, following.width, searched=False)
        for segment in dropped:
            segment.close()
            del self._segments[segment.facts.number]
            _remove(self.out / file_name(kind, segment.facts.number) for kind in segment.facts.files)

    def _written(
        self, number: int, rows: Sequence[Row], merged: Sequence[Segment], cells: bool
    ) -> list[SegmentFacts]:
        """The new segment; none where there is no picture for it."""
        searchable = _found_in(merged) + sum(row.vector_E is not None for row in rows)
        counts = (len(rows) + sum(map(_live, merged)), searchable)
        if not counts[0]:
            return []
        own = sorted(rows, key=lambda row: row.vector_E is None)
        with_vector = chain.from_iterable(one.rows(with_vector=True) for one in merged)
        without = chain.from_iterable(one.rows(with_vector=False) for one in merged)
        ordered = chain(with_vector, own, without)
        return [write_segment(self.out, number, ordered, counts, self.manifest, cells)]

    def _remove_leftovers(self) -> None:
        """Files that no index.json names: a run was killed while it wrote them, or before it removed them."""
        named = {file_name(kind, one.number) for one in self.manifest.segments for kind in one.files}
        if self.manifest.generation:
            _remove(
                path for path in self.out.iterdir() if _FILES.fullmatch(path.name) and path.name not in named
            )


def _live(segment: Segment) -> int:
    return segment.facts.pictures - len(segment.removed)


def _tier(count: int) -> int:
    """0 for less than FAN pictures, 1 for less than FAN times as many, and so on."""
    tier = 0
    while count >= FAN:
        tier, count = tier + 1, count // FAN
    return tier


def _found_in(segments: Sequence[Segment]) -> int:
    """Pictures that a search can find in these segments."""
    return sum(_with_removed(one).searchable for one in segments)


def _with_removed(segment: Segment) -> SegmentFacts:
    if len(segment.removed) == len(segment.facts.removed):
        return segment.facts
    return segment.facts.model_copy(update={"removed": sorted(segment.removed)})


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # Windows keeps a file that a search has open: the next writer removes it


def write_manifest(out: Path, manifest: Manifest) -> None:
    """Replace index.json, whole or not at all, also when the machine stops. Raises WriteError."""
    write_text(out / manifests.NAME, manifests.encode(manifest))


@contextmanager
def open_writer(out: Path, model: str, name: str) -> Iterator[IndexWriter]:
    """The index at `out`, or a new one, for changes by this process alone.

    Raises:
        StoreError: another process writes it, it is damaged, holds vectors of another model, or cannot be
        written.
    """
    with only_writer(out):
        manifest = manifests.read(out)
        if manifest is not None:
            refuse_other(out, manifest.model, model)
        writer = IndexWriter(out, manifest or Manifest(model=model, name=name))
        try:
            yield writer
        finally:
            writer.close()


def refuse_other(out: Path | str, held: str, asked: str) -> None:
    """Raises StoreError where the model at hand is not the index's own."""
    if held != asked:
        raise StoreError(
            f"{out}: this index holds vectors of the model {held!r}, but the model at hand is {asked!r}; "
            "vectors of two models cannot be compared: use the index's own model, or make a new index in "
            "another folder"
        )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """A lock on a file, which the system takes away with the process however that dies; the folder is made
    where there is none."""
    if (out / manifests.NAME).exists() and not is_index(out):
        found = f"it holds an {manifests.NAME} that is none of an index"
        raise StoreError(f"{out}: {found}, which would be overwritten: choose another folder for --out")
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / LOCK, "ab")  # noqa: SIM115 - closed below
    with file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise StoreError(
                f"{out}: another process is writing this index; wait until it has finished"
            ) from error
        except OSError as error:
            raise StoreError(f"{out}: the file system cannot lock {LOCK} ({error.strerror})") from error
        yield


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Errors of the system and of SQLite while an index is written, as one line with their cause. Raises
    StoreError."""
    unchanged = "what it held before is unchanged"
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is not None and re.fullmatch(_FILES, Path(os.fsdecode(error.filename)).name):
            raise damaged(Path(os.fsdecode(error.filename)), "the file is missing") from error
        raise StoreError(f"{out}: this index cannot be written: {error.strerror}; {unchanged}") from error
    except OSError as error:
        cause = why_not_written(error) or error.strerror
        raise StoreError(f"{out}: this index cannot be written: {cause}; {unchanged}") from error
    except sqlite3.Error as error:
        full = why_not_written(OSError(errno.ENOSPC, str(error)))
        cause = full if "full" in str(error) else f"SQLite says {error}"
        raise StoreError(f"{out}: this index cannot be written: {cause}; {unchanged}") from error
