"""An index in Milvus: pictures of more than one machine, under the commands and types of the embedded one.

    milvus://HOST:PORT/NAME     a cluster; MILVUS_TOKEN holds the person's own credentials, where it needs any
    photos.milvus.db            milvus-lite in this process: one file on disk, for trying and for tests

A picture is a row of the collection NAME under the SHA-256 of its path, so that writing it twice is writing
it once; a run that was killed is repeated from where it was, as with the embedded index. What the index says
of itself (model, width, concepts, folders) lies in NAME_about, cut into pieces. Milvus has no transaction:
new rows are written first, then what is gone is removed. One run at a time may write.

Paths are bytes and Milvus holds text: bytes that are no UTF-8 are written as \\xNN, a backslash as two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.errors import DataError, MissingExtra, StoreError
from patchword.search.manifest import Manifest
from patchword.search.records import Match, Row
from patchword.search.segments import KnownPicture
from patchword.search.writer import refuse_other

SCHEME = "milvus://"
TOKEN_VARIABLE = "MILVUS_TOKEN"
_LONGEST_PATH, _LONGEST_WORD, _MOST_WORDS = 16_384, 512, 4096
_ROWS_AT_ONCE = 1000
_PIECE = 30_000
_FACTS = ["path", "size", "time_ns", "content", "problem", "concepts", "found"]


class Place(NamedTuple):
    """Where an index in Milvus is."""

    address: str
    """What a client connects to: a URL, or the path of a file."""
    name: str
    """Of its collection."""
    shown: str
    """As the person wrote it."""


def place_of(out: Path | str) -> Place:
    """Raises DataError for an address that names no collection."""
    shown = str(out)
    if not shown.startswith(SCHEME):
        return Place(os.path.abspath(shown), "pictures", shown)
    found = re.fullmatch(r"milvus://([\w.-]+:\d+)/([A-Za-z_]\w{0,200})", shown, re.ASCII)
    if found is None:
        raise DataError(f"{shown}: expected milvus://HOST:PORT/NAME, NAME of letters, digits and _")
    return Place(f"http://{found[1]}", found[2], shown)


class _Store:
    """A connection, and what is in it. Errors of Milvus are StoreErrors that name the place."""

    def __init__(self, place: Place) -> None:
        try:
            import pymilvus
        except ImportError as error:
            raise MissingExtra(
                "an index in Milvus needs pymilvus, which is not installed: pip install 'patchword[cluster]'"
            ) from error
        self.place, self._milvus = place, pymilvus
        self._loaded: set[str] = set()
        # It warns on standard error that milvus-lite counts time by this machine's clock.
        logging.getLogger("pymilvus").setLevel(logging.ERROR)
        with self.explained():
            token = os.environ.get(TOKEN_VARIABLE, "")
            self.client = pymilvus.MilvusClient(uri=place.address, token=token)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raises StoreError for what Milvus or the way to it refuses."""
        try:
            yield
        except (self._milvus.MilvusException, OSError) as error:
            said = " ".join(str(error).split())[:300]
            raise StoreError(f"{self.place.shown}: Milvus says: {said}") from error

    def _is_loaded(self, name: str) -> bool:
        """Whether there is such a collection; it can be searched then, also where nobody has since it was
        released."""
        if name not in self._loaded:
            if not self.client.has_collection(name):
                return False
            self.client.load_collection(name)
            self._loaded.add(name)
        return True

    def close(self) -> None:
        """Let go of the connection."""
        self.client.close()

    def about(self) -> Manifest | None:
        """What the index says of itself; None where there is none."""
        with self.explained():
            if not self._is_loaded(f"{self.place.name}_about"):
                return None
            pieces = self.client.query(
                f"{self.place.name}_about", filter="id >= 0", output_fields=["id", "generation", "piece"]
            )
        if not pieces:
            return None
        newest = max(piece["generation"] for piece in pieces)
        kept = sorted((piece["id"], piece["piece"]) for piece in pieces if piece["generation"] == newest)
        try:
            return Manifest.model_validate(json.loads("".join(piece for _, piece in kept)))
        except ValueError as error:
            raise StoreError(
                f"{self.place.shown}: {self.place.name}_about is no description of an index ({error}): "
                "drop the collection and index again"
            ) from error

    def write_about(self, manifest: Manifest) -> None:
        """Replace what the index says of itself: the new pieces first, then the old ones go."""
        name = f"{self.place.name}_about"
        content = json.dumps(manifest.model_dump())
        pieces = [content[at : at + _PIECE] for at in range(0, len(content), _PIECE)]
        rows = [
            {"id": manifest.generation * 1_000_000 + number, "generation": manifest.generation}
            | {"piece": piece, "nothing": [0.0, 1.0]}
            for number, piece in enumerate(pieces)
        ]
        kinds = self._milvus.DataType
        with self.explained():
            if not self.client.has_collection(name):
                schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", kinds.INT64, is_primary=True)
                schema.add_field("generation", kinds.INT64)
                schema.add_field("piece", kinds.VARCHAR, max_length=2 * _PIECE)
                schema.add_field("nothing", kinds.FLOAT_VECTOR, dim=2)  # Milvus has no rows without a vector
                self._create(name, schema, "nothing")
            self.client.upsert(name, rows)
            self.client.delete(name, filter=f"generation < {manifest.generation}")

    def make_pictures(self, width: int) -> None:
        """The collection of pictures, where there is none."""
        kinds = self._milvus.DataType
        with self.explained():
            if self.client.has_collection(self.place.name):
                return
            schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("path", kinds.VARCHAR, max_length=_LONGEST_PATH)
            schema.add_field("size", kinds.INT64)
            schema.add_field("time_ns", kinds.INT64)
            schema.add_field("content", kinds.VARCHAR, max_length=64)
            schema.add_field("problem", kinds.VARCHAR, max_length=_LONGEST_PATH)
            schema.add_field("found", kinds.BOOL)
            words = {"element_type": kinds.VARCHAR, "max_capacity": _MOST_WORDS, "max_length": _LONGEST_WORD}
            schema.add_field("concepts", kinds.ARRAY, **words)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=width)
            self._create(self.place.name, schema, "vector")

    def _create(self, name: str, schema: Any, vector: str) -> None:
        """FLAT compares every vector, as the embedded index does; a cluster's keeper may choose another."""
        index = self.client.prepare_index_params()
        index.add_index(vector, index_type="FLAT", metric_type="IP")
        self.client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def rows(self, condition: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows for which a condition holds, some at a time."""
        with self.explained():
            if not self._is_loaded(self.place.name):
                return
            found = self.client.query_iterator(
                self.place.name, batch_size=_ROWS_AT_ONCE, filter=condition, output_fields=list(fields)
            )
        try:
            while True:
                with self.explained():
                    some = found.next()
                if not some:
                    return
                yield from some
        finally:
            found.close()

    def count(self) -> int:
        """Pictures that a search can find."""
        with self.explained():
            if not self._is_loaded(self.place.name):
                return 0
            return int(
                self.client.query(self.place.name, filter="found == true", output_fields=["count(*)"])[0][
                    "count(*)"
                ]
            )


class MilvusIndex:
    """An index in Milvus, open for searching; see `search.index.PictureIndex`, whose place it takes."""

    kind = "milvus"

    def __init__(self, store: _Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        self.out = store.place.shown
        self.generation, self.waiting = manifest.generation, manifest.waiting
        self.model, self.name, self.width = manifest.model, manifest.name, manifest.width
        self.count = store.count()

    def __enter__(self) -> MilvusIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._store.close()

    def refuse_other(self, model: str) -> None:
        """See `PictureIndex.refuse_other`."""
        refuse_other(self._store.place.shown, self.model, model)

    def search(
        self, query_E: np.ndarray, k: int = 10, concepts: Sequence[str] = (), under: str = ""
    ) -> list[Match]:
        """See `PictureIndex.search`."""
        query_E = np.asarray(query_E, dtype=np.float32).reshape(-1)
        if k < 1:
            raise DataError(f"k of {k}: expected at least one picture to find")
        known = self._manifest.concepts
        strange = [word for word in concepts if word not in known]
        if strange:
            some = f"it has {len(known)}, such as {', '.join(known[:5])}"
            some = some if known else "it was made without --concepts"
            raise DataError(f"this index knows no concept {', '.join(map(repr, sorted(strange)))}: {some}")
        if self.count == 0:
            return []
        if len(query_E) != self.width or not np.isfinite(query_E).all():
            expected = f"this index of {self.model!r} expects {self.width} finite numbers"
            raise StoreError(f"query of width {len(query_E)}; {expected}")
        query_E = query_E / max(float(np.linalg.norm(query_E)), 1e-12)
        condition = ["found == true", *(f"array_contains(concepts, {_literal(word)})" for word in concepts)]
        if under:
            condition.append(_beginning_with(os.path.join(os.fsencode(os.path.abspath(under)), b"")))
        with self._store.explained():
            found = self._store.client.search(
                self._store.place.name,
                data=[query_E.tolist()],
                limit=min(k, self.count),
                filter=" and ".join(condition),
                output_fields=["path", "content"],
            )[0]
        return [
            Match(os.fsdecode(path_of(hit["entity"]["path"])), hit["distance"], hit["entity"]["content"])
            for hit in found
        ]


class MilvusWriter:
    """An index in Milvus, open for changes; see `search.writer.IndexWriter`, whose place it takes."""

    def __init__(self, store: _Store, manifest: Manifest) -> None:
        self._store, self.manifest = store, manifest
        self.out = store.place.shown
        self._early: list[Row] = []
        """Pictures that cannot be read, before there is a vector whose width makes the collection."""

    @property
    def pictures(self) -> int:
        """Pictures that a search can find."""
        return self._store.count()

    def known_under(self, prefix: bytes) -> dict[bytes, KnownPicture]:
        """The pictures whose path begins with `prefix`."""
        condition = _beginning_with(prefix) if prefix else 'path >= ""'
        rows = self._store.rows(condition, ["path", "size", "time_ns"])
        known = {path_of(row["path"]): KnownPicture(row["size"], row["time_ns"], 0, 0) for row in rows}
        return {path: one for path, one in known.items() if path.startswith(prefix)}

    def problems(self) -> dict[bytes, str]:
        """The pictures that could not be read, with the reason."""
        rows = self._store.rows("found == false", ["path", "problem"])
        stored = {path_of(row["path"]): row["problem"] for row in rows}
        return stored | {row.path: row.problem for row in self._early}

    def twins(self, size: int, content: bytes) -> Iterator[Row]:
        """The pictures with a vector whose file had this size and this SHA-256."""
        condition = f'size == {size} and content == "{content.hex()}" and found == true'
        yield from map(_row_of, list(self._store.rows(condition, [*_FACTS, "vector"])))

    def row(self, path: bytes) -> Row | None:
        """A picture with all that the index holds of it; None where it holds no such picture."""
        rows = list(self._store.rows(f'id == "{_id_of(path)}"', [*_FACTS, "vector"]))
        return _row_of(rows[0]) if rows else None

    def describe(self, **changes: object) -> None:
        """See `IndexWriter.describe`."""
        self.manifest = self.manifest.model_copy(update=changes)

    def publish(self, rows: Sequence[Row] = (), gone: Iterable[bytes] = ()) -> None:
        """Write rows, then take out the paths `gone`; killed in between, the next run takes them out."""
        self.manifest = self.manifest.model_copy(update={"generation": self.manifest.generation + 1})
        self._early += rows
        if self.manifest.width and self._early:
            self._store.make_pictures(self.manifest.width)
            written = [_fields_of(row, self.manifest.width) for row in self._early]
            with self._store.explained():
                for first in range(0, len(written), _ROWS_AT_ONCE):
                    self._store.client.upsert(self._store.place.name, written[first : first + _ROWS_AT_ONCE])
            self._early = []
        removed = sorted({_id_of(path) for path in gone} - {_id_of(row.path) for row in rows})
        if removed and self.manifest.width:
            with self._store.explained():
                for first in range(0, len(removed), _ROWS_AT_ONCE):
                    some = removed[first : first + _ROWS_AT_ONCE]
                    self._store.client.delete(self._store.place.name, ids=some)
        self._store.write_about(self.manifest)

    def tidy(self, added: int) -> None:
        """Nothing: Milvus merges its segments by itself."""


@contextmanager
def open_milvus_writer(out: Path | str, model: str, name: str) -> Iterator[MilvusWriter]:
    """The index in Milvus, or a new one, for changes. Raises StoreError where it holds vectors of another
    model, or Milvus cannot be reached."""
    store = _Store(place_of(out))
    try:
        manifest = store.about()
        if manifest is not None:
            refuse_other(store.place.shown, manifest.model, model)
        yield MilvusWriter(store, manifest or Manifest(model=model, name=name))
    finally:
        store.close()


def open_milvus(out: Path | str, model: str | None = None) -> MilvusIndex:
    """As `search.index.open_index`. Raises StoreError where there is no index."""
    place = place_of(out)
    missing = f"{place.shown}: no index here; make one with `patchword index FOLDER --out {place.shown}`"
    if not place.shown.startswith(SCHEME) and not Path(place.address).exists():
        raise StoreError(missing)
    store = _Store(place)
    try:
        manifest = store.about()
        if manifest is None:
            raise StoreError(missing)
        if model is not None:
            refuse_other(place.shown, manifest.model, model)
        return MilvusIndex(store, manifest)
    except BaseException:
        store.close()
        raise


def model_of(out: Path | str) -> str | None:
    """As `search.index.model_of`."""
    place = place_of(out)
    if not place.shown.startswith(SCHEME) and not Path(place.address).exists():
        return None
    store = _Store(place)
    try:
        manifest = store.about()
    finally:
        store.close()
    return manifest.name or None if manifest is not None else None


def text_of(path: bytes) -> str:
    """A path as text, of which `path_of` gives the bytes back."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_of(text: str) -> bytes:
    """The inverse of `text_of`."""
    parts = re.split(r"(\\\\|\\x[0-9a-f]{2})", text)
    return b"".join(
        b"\\" if part == "\\\\" else bytes([int(part[2:], 16)]) if part.startswith("\\x") else part.encode()
        for part in parts
    )


def _id_of(path: bytes) -> str:
    return hashlib.sha256(path).hexdigest()


def _literal(text: str) -> str:
    """A text inside a condition."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _beginning_with(prefix: bytes) -> str:
    """A condition that holds for all paths under a folder, whose name ends in a separator, and few others."""
    text = text_of(prefix)
    end = text[:-1] + chr(ord(text[-1]) + 1)
    return f"path >= {_literal(text)} and path < {_literal(end)}"


def _fields_of(row: Row, width: int) -> dict[str, Any]:
    vector_E = row.vector_E if row.vector_E is not None else np.eye(1, width, dtype=np.float32)[0]
    text = text_of(row.path)
    problem = row.problem.encode("utf-8", "backslashreplace").decode()[:4000]
    if len(text.encode()) > _LONGEST_PATH:
        raise StoreError(f"{text[:80]}...: a path of {len(text)} letters is too long for an index in Milvus")
    facts = {"id": _id_of(row.path), "path": text, "size": row.size, "time_ns": row.time_ns}
    facts |= {"content": row.content.hex(), "problem": problem, "concepts": list(row.concepts)}
    return facts | {"found": row.vector_E is not None, "vector": vector_E.tolist()}


def _row_of(fields: dict[str, Any]) -> Row:
    vector_E = np.asarray(fields["vector"], dtype=np.float32) if fields["found"] else None
    content, concepts = bytes.fromhex(fields["content"]), tuple(fields["concepts"])
    return Row(
        path_of(fields["path"]),
        fields["size"],
        fields["time_ns"],
        content,
        fields["problem"],
        concepts,
        vector_E,
    )
