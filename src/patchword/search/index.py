"""An index of pictures: their vectors in faiss, what belongs to each in SQLite, and a manifest that makes both appear at once.

    OUT/index.json            names the generation that can be searched, the model, the count; replaced atomically, last
    OUT/vectors-<n>.faiss     flat up to FLAT_LIMIT pictures, then an inverted file trained for the number of pictures
    OUT/pictures-<n>.sqlite   path, size, time, vector, problem; concepts of each picture
    OUT/work.sqlite           the next generation while it is being made; every batch is a transaction

Killed at any moment, an index loses at most the batch in hand: the next run goes on with work.sqlite, and a search sees the last
complete generation. The index knows no model: it takes a function from pictures to vectors, and the model's identity as a string.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchword.data.pictures import open_picture
from patchword.errors import DataError, PictureError, StoreError
from patchword.search.vectors import build, load_faiss

FORMAT = 1
LEAST_SIDE = 1024
"""Pictures are handed to the model with a shorter side of at least this many pixels (or as they are)."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2", ".avif"}
_SCHEMA = """
create table pictures (
    id integer primary key autoincrement, path blob unique not null, size integer, time_ns integer, vector blob, problem text);
create table concepts (picture integer not null, concept text not null, primary key (concept, picture)) without rowid;
create table settings (name text primary key, value text not null);
"""

Embed = Callable[[list[Image.Image]], np.ndarray]
"""RGB pictures to vectors (n, width), one row each; they are set to length one here."""


class Concepts(NamedTuple):
    """Words that a picture can have, and the function that says which it has."""

    words: tuple[str, ...]
    of: Callable[[list[Image.Image]], Sequence[Sequence[str]]]


class Match(NamedTuple):
    """One picture that a search gave."""

    path: str
    """As the system names it: bytes that are no UTF-8 stand as surrogates (os.fsdecode)."""
    score: float
    """Cosine of picture and query."""


@dataclass
class IndexReport:
    """What a run did. `bad` lists (path, reason) of all pictures that are in the folder and not in the index."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    pictures: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


def update_index(
    folder: Path | str,
    out: Path | str,
    embed: Embed,
    model: str,
    *,
    name: str = "",
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
    concepts: Concepts | None = None,
) -> IndexReport:
    """Bring the index at `out` up to the pictures under `folder` (with its sub-folders), embedding only new and changed files.

    `model` identifies the weights behind `embed` (an index holds vectors of one model); `name` is what a search loads them by.
    `concepts` gives the words that `PictureIndex.search` can filter by; an index keeps to the words it was begun with. `progress` is called
    with (done, all) after every batch. Files of other folders in the same index stay as they are. Raises StoreError for an index of
    another model or of other concepts, or one that another process is writing, DataError for a folder that does not exist.
    """
    faiss = load_faiss()
    folder, out = Path(os.path.abspath(folder)), Path(out)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a folder of pictures to index")
    out.mkdir(parents=True, exist_ok=True)
    with _only_writer(out):
        unfinished = (out / "work.sqlite").exists() or not (out / "index.json").exists()
        with closing(_work(out, model, name)) as work:
            _same_concepts(work, out, concepts)
            report, found, waiting = _compare(work, folder)
            if progress is not None:
                progress(0, len(waiting))
            for start in range(0, len(waiting), batch):
                _embed_batch(work, waiting[start : start + batch], found, embed, concepts, report)
                if progress is not None:
                    progress(min(start + batch, len(waiting)), len(waiting))
            if unfinished or waiting or report.removed:
                _publish(faiss, work, out, model, name)
            report.pictures = work.execute(
                "select count(*) from pictures where vector is not null"
            ).fetchone()[0]
            problems = work.execute("select path, problem from pictures where problem is not null").fetchall()
            report.bad += [(os.fsdecode(path), problem) for path, problem in problems if path in found]
        (out / "work.sqlite").unlink()
    return report


def _compare(
    work: sqlite3.Connection, folder: Path
) -> tuple[IndexReport, dict[bytes, tuple[int, int]], list[bytes]]:
    """Walk the folder, forget what is gone, and list what is new or changed (bad pictures too are tried again only when changed)."""
    report = IndexReport()
    found: dict[bytes, tuple[int, int]] = {}
    for place, folders, names in os.walk(
        folder, onerror=lambda error: report.bad.append((str(error.filename), str(error.strerror)))
    ):
        folders.sort()
        for file in sorted(names):
            if os.path.splitext(file)[1].lower() in SUFFIXES:
                path = os.path.join(place, file)
                try:
                    status = os.stat(path)
                except OSError as error:
                    report.bad.append((path, str(error.strerror)))
                    continue
                found[os.fsencode(path)] = (status.st_size, status.st_mtime_ns)
    within = os.fsencode(folder) + os.fsencode(os.sep)
    known = {
        bytes(path): (size, time)
        for path, size, time in work.execute("select path, size, time_ns from pictures")
    }
    gone = [path for path in known if path.startswith(within) and path not in found]
    with work:
        for path in gone:
            _forget(work, path)
    report.removed = len(gone)
    waiting = [path for path, status in found.items() if known.get(path) != status]
    report.changed = sum(path in known for path in waiting)
    report.kept = len(found) - len(waiting)
    return report, found, waiting


def _same_concepts(work: sqlite3.Connection, out: Path, concepts: Concepts | None) -> None:
    """An index without pictures takes the words it is given; later runs must bring the same ones, or its pictures would differ in them."""
    given = json.dumps(sorted(concepts.words), ensure_ascii=False) if concepts is not None else "[]"
    known = _setting(work, "concepts") or "[]"
    if given == known:
        return
    if work.execute("select 1 from pictures limit 1").fetchone():
        found = f"{len(json.loads(given))} concepts are given and this index holds pictures with {len(json.loads(known))} others"
        raise StoreError(
            f"{out}: {found}; index with the codebook that it was begun with, or make a new index in another folder"
        )
    with work:
        work.execute("insert or replace into settings values ('concepts', ?)", (given,))


def _embed_batch(
    work, paths: list[bytes], found: dict, embed: Embed, concepts: Concepts | None, report: IndexReport
) -> None:
    pictures, good, problems = [], [], {}
    for path in paths:
        try:
            pictures.append(_reduced(open_picture(os.fsdecode(path))))
            good.append(path)
        except PictureError as error:
            problems[path] = str(error)
    vectors_NE = _vectors(embed(pictures), len(pictures), work) if pictures else []
    words = concepts.of(pictures) if concepts is not None and pictures else [()] * len(pictures)
    with work:
        for path, problem in problems.items():
            _forget(work, path)
            work.execute(
                "insert into pictures (path, size, time_ns, problem) values (?, ?, ?, ?)",
                (path, *found[path], problem),
            )
        for path, vector_E, own in zip(good, vectors_NE, words, strict=True):
            report.added += not _forget(work, path)
            row = (path, *found[path], vector_E.tobytes())
            picture = work.execute(
                "insert into pictures (path, size, time_ns, vector) values (?, ?, ?, ?)", row
            ).lastrowid
            work.executemany(
                "insert or ignore into concepts values (?, ?)", [(picture, word) for word in own]
            )


def _reduced(picture: Image.Image) -> Image.Image:
    """A large photograph by a whole factor smaller: a batch of them stays within some hundred megabytes, and towers look at far less."""
    factor = min(picture.size) // LEAST_SIDE
    return picture.reduce(factor) if factor > 1 else picture


def _forget(work: sqlite3.Connection, path: bytes) -> bool:
    """Take a picture out; whether it was there."""
    work.execute("delete from concepts where picture in (select id from pictures where path = ?)", (path,))
    return work.execute("delete from pictures where path = ?", (path,)).rowcount > 0


def _vectors(vectors_NE: np.ndarray, count: int, work: sqlite3.Connection) -> np.ndarray:
    """Checked, float32, length one. The width of the first batch is the index's."""
    vectors_NE = np.asarray(vectors_NE, dtype=np.float32)
    known = _setting(work, "width")
    if vectors_NE.ndim != 2 or len(vectors_NE) != count or (known and vectors_NE.shape[1] != int(known)):
        raise StoreError(
            f"embedding gave shape {vectors_NE.shape} for {count} pictures; expected ({count}, {known or 'width'})"
        )
    lengths_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    if not (np.isfinite(lengths_N1).all() and lengths_N1.all()):
        raise StoreError(
            "embedding gave a vector that is zero or not finite: nothing of this batch is stored; check the model"
        )
    if not known:
        with work:
            work.execute("insert into settings values ('width', ?)", (str(vectors_NE.shape[1]),))
    return vectors_NE / lengths_N1


def _publish(faiss: ModuleType, work: sqlite3.Connection, out: Path, model: str, name: str) -> None:
    """Make work.sqlite the generation that is searched. Until the manifest is replaced nothing has happened."""
    manifest = _manifest(out)
    generation = manifest["generation"] + 1 if manifest else 1
    vectors, kind = build(faiss, work, int(_setting(work, "width") or 1))
    _write(out / f"vectors-{generation}.faiss", lambda path: faiss.write_index(vectors, str(path)))
    copy = out / f"pictures-{generation}.sqlite"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(copy)) as target:
        work.backup(target)
    content = {
        "format": FORMAT,
        "generation": generation,
        "model": model,
        "name": name,
        "width": vectors.d,
        "kind": kind,
    }
    content["pictures"] = vectors.ntotal
    _write(out / "index.json", lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))
    for old in [*out.glob("vectors-*.faiss"), *out.glob("pictures-*.sqlite")]:
        if old.stem.rpartition("-")[2] != str(generation):
            old.unlink()


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all, also when the machine stops: written aside, forced to the disk, renamed."""
    aside = path.with_name(path.name + ".part")
    write(aside)
    with open(aside, "rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(aside, path)


def _work(out: Path, model: str, name: str) -> sqlite3.Connection:
    """work.sqlite: that of an interrupted run, a copy of the searchable generation, or an empty one."""
    manifest, path = _manifest(out), out / "work.sqlite"
    if manifest:
        _refuse_other(out, manifest["model"], model)
    if not path.exists():
        aside = out / "work.sqlite.part"
        aside.unlink(missing_ok=True)
        with closing(sqlite3.connect(aside)) as fresh:
            if manifest:
                with closing(sqlite3.connect(out / f"pictures-{manifest['generation']}.sqlite")) as source:
                    source.backup(fresh)
            else:
                fresh.executescript(_SCHEMA)
                with fresh:
                    fresh.executemany(
                        "insert into settings values (?, ?)", [("model", model), ("name", name)]
                    )
        os.replace(aside, path)
    work = sqlite3.connect(path)
    begun_with = _setting(work, "model")
    if begun_with != model:
        work.close()
        _refuse_other(out, begun_with, model)
    return work


def _refuse_other(out: Path, held: str, asked: str) -> None:
    if held != asked:
        raise StoreError(
            f"{out}: this index holds vectors of the model {held!r}, but the model at hand is {asked!r}; vectors of two models cannot be "
            "compared: use the index's own model, or make a new index in another folder"
        )


def _setting(work: sqlite3.Connection, name: str) -> str:
    row = work.execute("select value from settings where name = ?", (name,)).fetchone()
    return row[0] if row else ""


def _manifest(out: Path) -> dict | None:
    path = out / "index.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error}); delete the index folder and index again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            f"{path}: not an index of format {FORMAT}; delete the index folder and index again with this version"
        )
    return manifest


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Held by a transaction, which the system ends with the process however that dies."""
    with closing(sqlite3.connect(out / "lock.sqlite", timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{out}: another process is writing this index ({error}); wait until it has finished"
            ) from error
        yield


class PictureIndex:
    """A complete generation of an index, open for searching (`open_index`)."""

    def __init__(self, vectors, pictures: sqlite3.Connection, manifest: dict):
        self._vectors, self._pictures = vectors, pictures
        self.model: str = manifest["model"]
        self.name: str = manifest["name"]
        self.width: int = manifest["width"]
        self.kind: str = manifest["kind"]
        self.count: int = manifest["pictures"]

    def __enter__(self) -> PictureIndex:
        return self

    def __exit__(self, *_) -> None:
        self._pictures.close()

    def search(self, query_E: np.ndarray, k: int = 10, concepts: Sequence[str] = ()) -> list[Match]:
        """The `k` pictures nearest to a vector, best first; with `concepts` only among pictures that have all of them.

        Raises StoreError for a query of another width, DataError for a `k` below one and for a concept that the index does not know.
        """
        query_E = np.asarray(query_E, dtype=np.float32).reshape(-1)
        if k < 1:
            raise DataError(f"k of {k}: expected at least one picture to find")
        if self.count == 0:
            return []
        if len(query_E) != self.width or not np.isfinite(query_E).all():
            raise StoreError(
                f"query of width {len(query_E)}; this index of {self.model!r} expects {self.width} finite numbers"
            )
        query_1E = (query_E / max(float(np.linalg.norm(query_E)), 1e-12))[None]
        scores, ids = self._vectors.search(query_1E, min(k, self.count), params=self._among(concepts))
        found = []
        for picture, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
            if picture >= 0:
                path = self._pictures.execute(
                    "select path from pictures where id = ?", (picture,)
                ).fetchone()[0]
                found.append(Match(os.fsdecode(path), score))
        return found

    def _among(self, concepts: Sequence[str]):
        if not concepts:
            return None
        faiss = load_faiss()
        wanted = sorted(set(concepts))
        known = json.loads(_setting(self._pictures, "concepts") or "[]")
        strange = [word for word in wanted if word not in known]
        if strange:
            some = (
                f"it has {len(known)}, such as {', '.join(known[:5])}"
                if known
                else "it was made without --concepts"
            )
            raise DataError(f"this index knows no concept {', '.join(map(repr, strange))}: {some}")
        marks = ", ".join("?" * len(wanted))
        statement = (
            f"select picture from concepts where concept in ({marks}) group by picture having count(*) = ?"
        )
        ids = np.array(
            [row[0] for row in self._pictures.execute(statement, (*wanted, len(wanted)))], dtype=np.int64
        )
        chosen = faiss.IDSelectorBatch(ids)
        if self.kind == "flat":
            return faiss.SearchParameters(sel=chosen)
        # All cells: the few pictures with a rare concept may lie in none of the nearest ones, and others are skipped by their number.
        return faiss.SearchParametersIVF(sel=chosen, nprobe=self._vectors.nlist)


def open_index(out: Path | str, model: str | None = None) -> PictureIndex:
    """Open what was last completed. `model`, where given, must be the model of the index.

    Raises StoreError where there is no index, where its first indexing was interrupted, and for another model.
    """
    faiss, out = load_faiss(), Path(out)
    manifest = _manifest(out)
    if manifest is None:
        if (out / "work.sqlite").exists():
            with closing(sqlite3.connect(out / "work.sqlite")) as work:
                done = work.execute("select count(*) from pictures").fetchone()[0]
            raise StoreError(
                f"{out}: this index was never completed ({done} pictures are kept); run `patchword index` again to finish it"
            )
        raise StoreError(
            f"{out}: no index here (no index.json); make one with `patchword index FOLDER --out {out}`"
        )
    if model is not None:
        _refuse_other(out, manifest["model"], model)
    files = [
        out / f"vectors-{manifest['generation']}.faiss",
        out / f"pictures-{manifest['generation']}.sqlite",
    ]
    missing = [file.name for file in files if not file.exists()]
    if missing and _manifest(out) != manifest:
        return open_index(out, model)  # a writer has just put the next generation in place
    if missing:
        raise StoreError(
            f"{out}: {' and '.join(missing)} missing from the index; run `patchword index` again on a new folder"
        )
    return PictureIndex(
        faiss.read_index(str(files[0])), sqlite3.connect(files[1], check_same_thread=False), manifest
    )
