"""Whether an index is what was written, and how to mend one that is not, so that only what is lost is
embedded again."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.errors import StoreError
from patchword.search import manifest as manifests
from patchword.search import vectors
from patchword.search.manifest import DamagedIndex, Manifest, SegmentFacts, file_name
from patchword.search.records import LOST, Row, facts_sum, vector_sum
from patchword.search.segments import BROKEN, COLUMNS, HEADER, verify, write_segment
from patchword.search.upgrade import is_old, upgrade
from patchword.search.walk import OLD_LOCK
from patchword.search.writer import explained, only_writer, refuse_other, write_manifest

_LOST = "its vector was lost with a damaged file of the index: index its folder again"


class CheckReport(NamedTuple):
    """What `patchword index --check` found."""

    pictures: int
    segments: int
    damaged: tuple[tuple[str, str], ...]
    """(file, what is wrong with it); empty for an index that is as it was written."""


class RepairReport(NamedTuple):
    """What `patchword index --repair` did before it embedded anything."""

    damaged: tuple[tuple[str, str], ...]
    """(file, what was wrong with it)."""
    kept: int
    """Pictures that kept their vector."""
    lost: int
    """Pictures that are to be embedded again, as far as their paths are still known."""
    roots: tuple[str, ...]
    """The folders that were indexed, where index.json still said so."""


def check_index(out: Path | str, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Compare every byte of an index with the sums that were computed when it was written.

    Raises:
        StoreError: there is no index, or index.json itself is damaged.
    """
    out = Path(out)
    if is_old(out):
        raise StoreError(
            f"{out}: an index of format 1, which has no sums; `patchword index` brings it up to date"
        )
    manifest = manifests.read(out)
    if manifest is None:
        raise StoreError(f"{out}: no index here (no index.json)")
    files = [(segment, kind) for segment in manifest.segments for kind in segment.files]
    wrong = []
    for done, (segment, kind) in enumerate(files):
        if progress is not None:
            progress(done, len(files))
        said = _fault(out, segment, kind)
        if said is not None:
            wrong.append((file_name(kind, segment.number), said))
    if progress is not None:
        progress(len(files), len(files))
    return CheckReport(manifest.pictures, len(manifest.segments), tuple(wrong))


def _fault(out: Path, segment: SegmentFacts, kind: str) -> str | None:
    try:
        verify(out, segment, kind, whole=True)
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except DamagedIndex as error:
        return error.found
    return None


def repair_index(out: Path | str, model: str, name: str) -> RepairReport:
    """Keep every picture of an index that fits its sums, and forget the rest; an update then embeds what is
    lost.

    Where index.json is damaged, the segments themselves say what they are. A picture whose vector alone is
    damaged stays known, so that the next update of its folder embeds it again. Does nothing to an index that
    is whole.

    Raises:
        StoreError: another process writes the index, its vectors are those of another model, or it cannot be
        written.
    """
    out = Path(out)
    if not out.is_dir():
        raise StoreError(f"{out}: no index here; make one with `patchword index FOLDER --out {out}`")
    try:
        if (out / OLD_LOCK).exists():
            manifests.read_json(out)
        if is_old(out):
            upgrade(out)
    except StoreError as error:
        return _begun_anew(out, model, name, str(error))
    with only_writer(out):
        try:
            manifest = manifests.read(out)
            wrong: list[tuple[str, str]] = []
        except StoreError as error:
            manifest, wrong = None, [(manifests.NAME, str(error))]
        if manifest is None:
            manifest = Manifest(model=model, name=name, segments=[])
            segments = _found(out, model)
            wrong = wrong or [(manifests.NAME, "the file is missing")]
        else:
            refuse_other(out, manifest.model, model)
            segments = manifest.segments
        return _repaired(out, manifest, segments, wrong)


def _begun_anew(out: Path, model: str, name: str, said: str) -> RepairReport:
    """An index of format 1 that is damaged has no sums: nothing in it can be trusted."""
    with only_writer(out), explained(out):
        write_manifest(out, Manifest(generation=_last_number(out), model=model, name=name))
        for pattern in ("vectors-*.faiss", "pictures-*.sqlite", "work.sqlite*", OLD_LOCK):
            for path in out.glob(pattern):
                path.unlink(missing_ok=True)
    return RepairReport(((manifests.NAME, said),), 0, 0, ())


def _last_number(out: Path) -> int:
    found = [re.fullmatch(r"[a-z]+-(\d{1,12})\.[a-z]+", path.name) for path in out.iterdir()]
    return max((int(one[1]) for one in found if one), default=0)


def _found(out: Path, model: str) -> list[SegmentFacts]:
    """The segments whose files lie in the folder, the newest first, without trust in any of them."""
    found = []
    for path in out.glob("pictures-*.sqlite"):
        number = re.fullmatch(r"pictures-(\d{1,12})", path.stem)
        if number is not None and _setting(path, "model") in (model, None):
            found.append(SegmentFacts(number=int(number[1]), pictures=0, vectors=0, removed=[], files={}))
    return sorted(found, key=lambda segment: -segment.number)


def _setting(path: Path, name: str) -> Any:
    try:
        with closing(_connection(path)) as source:
            row = source.execute("select value from settings where name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])
    except BROKEN:
        return None


def _connection(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def _repaired(
    out: Path, manifest: Manifest, segments: list[SegmentFacts], wrong: list[tuple[str, str]]
) -> RepairReport:
    """Segments that are whole stay; what can be trusted of the others goes into one new segment."""
    whole: list[SegmentFacts] = []
    salvaged: list[SegmentFacts] = []
    for segment in segments:
        faults = [(file_name(kind, segment.number), _fault(out, segment, kind)) for kind in segment.files]
        found = [(file, fault) for file, fault in faults if fault is not None]
        wrong += found
        (salvaged if found or not segment.files else whole).append(segment)
    if not wrong:
        return RepairReport((), manifest.pictures, 0, tuple(manifest.roots))
    rows: dict[bytes, Row] = {}
    for segment in salvaged:
        for row in _salvage(out, segment):
            rows.setdefault(row.path, row)
    ordered = sorted(rows.values(), key=lambda row: row.vector_E is None)
    widths = [row.vector_E.shape[0] for row in ordered if row.vector_E is not None]
    manifest = manifest.model_copy(
        update={
            "generation": max(manifest.generation, _last_number(out)) + 1,
            "width": manifest.width or (widths[0] if widths else 0),
            "concepts": manifest.concepts or _concepts(out, salvaged),
        }
    )
    with explained(out):
        new = []
        if ordered:
            counts = (len(ordered), len(widths))
            cells = len(widths) > vectors.FLAT_LIMIT
            new = [write_segment(out, manifest.generation, ordered, counts, manifest, cells)]
        write_manifest(out, manifest.model_copy(update={"segments": [*whole, *new]}))
        for segment in salvaged:
            for kind in ("pictures", "vectors", "cells"):
                (out / file_name(kind, segment.number)).unlink(missing_ok=True)
    lost = sum(row.size == LOST for row in ordered)
    kept = len(widths) + sum(segment.searchable for segment in whole)
    return RepairReport(tuple(wrong), kept, lost, tuple(manifest.roots))


def _concepts(out: Path, segments: list[SegmentFacts]) -> list[str]:
    for segment in segments:
        words = _setting(out / file_name("pictures", segment.number), "concepts")
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return []


def _salvage(out: Path, segment: SegmentFacts) -> Iterator[Row]:
    """The pictures of a damaged segment that fit their sums; one whose vector does not is kept without it."""
    path = out / file_name("pictures", segment.number)
    removed, stored_NE = set(segment.removed), _stored(out, segment)
    if not path.exists():
        return
    with closing(_connection(path)) as source:
        for number in _numbers(source, segment):
            if number in removed:
                continue
            try:
                statement = f"select {COLUMNS} from pictures where id = ?"
                values = source.execute(statement, (number,)).fetchone()
                words = source.execute("select concept from concepts where picture = ?", (number,)).fetchall()
                _, name, size, time_ns, content, problem, facts, vector = values
                said = bytes(problem).decode("utf-8", "surrogatepass")
                concepts = tuple(sorted(word for (word,) in words))
                row = Row(bytes(name), int(size), int(time_ns), bytes(content), said, concepts, None)
                if facts_sum(row) != facts:
                    continue
            except BROKEN:
                continue  # this picture cannot be read any more; the update finds it in its folder
            vector_E = stored_NE[number] if number < len(stored_NE) else None
            if vector_sum(vector_E) == vector and (vector_E is not None or said):
                yield row._replace(vector_E=vector_E)
            else:
                yield row._replace(size=LOST, problem=_LOST, vector_E=None)


def _numbers(source: sqlite3.Connection, segment: SegmentFacts) -> range:
    """The numbers that pictures of the segment may have."""
    if segment.pictures:
        return range(segment.pictures)
    try:
        last = source.execute("select max(id) from pictures").fetchone()[0]
        return range(min(int(last), 10**8) + 1)
    except BROKEN:
        return range(0)


def _stored(out: Path, segment: SegmentFacts) -> np.ndarray:
    """The rows of vectors that the file still holds; none where it is not readable."""
    path = out / file_name("vectors", segment.number)
    width = _setting(out / file_name("pictures", segment.number), "width")
    try:
        rows = (path.stat().st_size - HEADER) // (4 * width)
        return np.memmap(path, dtype="<f4", mode="r", offset=HEADER, shape=(rows, width))
    except (OSError, ValueError, TypeError, ZeroDivisionError, OverflowError):
        return np.zeros((0, 1), dtype=np.float32)
