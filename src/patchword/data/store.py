"""Arrays of a data set on disk, made once and memory-mapped: decoded pictures (uint8) and features of a
frozen tower (fp16).

A store is a folder with one `.npy` per field, all with one row per picture, and a `manifest.json`. The folder
appears under its name when it is complete. The manifest holds a fingerprint of everything that the arrays
depend on (files with size and time of change, preprocessing, tower weights, layer) and SHA-256 of the arrays
and of itself; a store with another fingerprint is stale, and stale or damaged stores are errors, never a
source of wrong numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from patchword.data.pictures import Preprocessing
from patchword.errors import StoreError, WriteError
from patchword.files import allocate, file_digest, json_digest, whole_folder, write_json
from patchword.lookup import look_up

FORMAT = 2
"""Format of manifest.json. Stores of format 1 have no digests, and are opened without a comparison."""

MANIFEST = "manifest.json"
CHECKED_AT_OPENING = 64 * 2**20
"""Bytes of a field up to which its SHA-256 is compared at opening; `patchword models --check` compares
all."""

_CURE = "make the store again with `patchword features`"


def cache_folder() -> Path:
    """Where caches go unless a configuration says otherwise: $PATCHWORD_CACHE, else patchword/ under
    $XDG_CACHE_HOME or ~/.cache.
    """
    given = os.environ.get("PATCHWORD_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "patchword"
    )


def fingerprint(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return json_digest(content)


def picture_files(images: Path, files: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of each picture.

    Raises StoreError naming the first that is missing.
    """
    listing = []
    for name in files:
        if ".tar#" in name:
            listing.append(look_up("data.shards:member_listing")(images, name))
            continue
        try:
            status = (images / name).stat()
        except OSError as error:
            raise StoreError(
                f"{images / name}: {error.strerror or error}; `patchword check` lists every picture that is "
                "missing"
            ) from error
        listing.append((name, status.st_size, status.st_mtime_ns))
    return listing


def view_name(file: str, view: int) -> str:
    """Name of the row of a picture's random view; view 0 is the plain picture.

    No path in a data set has two slashes in a row.
    """
    return file if view == 0 else f"{file}//{view}"


class Store:
    """Rows of one or more arrays by file name.

    `fields[name]` is a read-only memory map with one row per picture.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], fields: dict[str, np.ndarray]) -> None:
        self.folder, self.manifest, self.fields = folder, manifest, fields
        self._rows = {name: row for row, name in enumerate(manifest["files"])}

    def rows(self, files: Sequence[str]) -> np.ndarray:
        """Row numbers of pictures. Raises StoreError naming a picture that is not in the store."""
        try:
            return np.array([self._rows[name] for name in files], dtype=np.int64)
        except KeyError as error:
            name, left_out = error.args[0], self.manifest.get("left_out", {})
            if name in left_out:
                raise StoreError(
                    f"{self.folder} has no row for {name}, which could not be read when it was made "
                    f"({left_out[name]}): take it out of the annotations, or put it right and make the store "
                    "again"
                ) from None
            raise StoreError(
                f"{self.folder} has no row for {name}: it was made from {len(self._rows)} other "
                "pictures; make it again"
            ) from None

    @classmethod
    def open(cls, folder: Path, expected: dict[str, Any] | None = None) -> Store:
        """A complete store.

        `expected` names entries of the manifest that must be equal, such as the tower's fingerprint.

        Raises:
            StoreError: no store, an interrupted one, a truncated array, another format, or an entry that
                differs.
        """
        manifest = _read_manifest(folder)
        fields = {}
        for name, shape in manifest["fields"].items():
            path = folder / f"{name}.npy"
            try:
                fields[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # numpy reads the header as Python text, which can fail in many ways
                raise StoreError(f"{path} cannot be read ({error}): {_CURE}") from error
            if list(fields[name].shape) != shape or shape[:1] != [len(manifest["files"])]:
                raise StoreError(
                    f"{path} has shape {list(fields[name].shape)}, the manifest says {shape} "
                    f"for {len(manifest['files'])} rows: {_CURE}"
                )
        store = cls(folder, manifest, fields)
        store.check_files(CHECKED_AT_OPENING)
        store.check(expected or {})
        return store

    def check_files(self, largest: int | None = None) -> list[str]:
        """Compare arrays with the SHA-256 that the manifest records, those beyond `largest` bytes left out.

        Returns:
            The names of the fields that were compared: none for a store of format 1.

        Raises:
            StoreError: an array is not the one that was written.
        """
        compared = []
        for name, digest in self.manifest.get("digests", {}).items():
            path = self.folder / f"{name}.npy"
            if largest is not None and path.stat().st_size > largest:
                continue
            if file_digest(path) != digest:
                raise StoreError(
                    f"{path} is damaged: its SHA-256 differs from the one in {MANIFEST}; {_CURE}"
                )
            compared.append(name)
        return compared

    def check(self, expected: dict[str, Any]) -> None:
        """Raises StoreError for an entry of the manifest that is not as expected."""
        for name, value in expected.items():
            found = self.manifest.get(name)
            if found != value:
                raise StoreError(
                    f"{self.folder} is stale: its {name} is {_short(found)} and {_short(value)} is needed; "
                    "make it again"
                )


def write_store(
    folder: Path,
    files: Sequence[str],
    entries: dict[str, Any],
    chunks: Iterator[dict[str, np.ndarray]],
    advance: Callable[[int], None],
    without: Container[str] = (),
) -> Store:
    """Write arrays chunk by chunk; `chunks` yields consecutive rows of every field, `advance` is told how
    many rows came.

    Files that are in `without` when the last chunk has come have no rows. The store becomes visible under its
    name when it is complete, in the place of an older one.

    Raises:
        StoreError: the rows do not add up to the files, or differ in shape.
        WriteError: there is something else at `folder`, or no space for the store; what is there stays as it
            is.
    """
    _refuse_other_folder(folder)
    with whole_folder(folder, over=True) as aside, ExitStack() as opened:
        fields: dict[str, _Field] = {}
        row = 0
        for chunk in chunks:
            count = len(next(iter(chunk.values())))
            if row + count > len(files):
                raise StoreError(f"{folder}: more than {len(files)} rows were made for {len(files)} pictures")
            for name, values in chunk.items():
                if name not in fields:
                    file = opened.enter_context(open(aside / f"{name}.npy", "w+b"))
                    fields[name] = _Field(file, values.dtype, (len(files), *values.shape[1:]))
                fields[name].append(values)
            row += count
            advance(count)
        kept = [name for name in files if name not in without]
        if row != len(kept):
            raise StoreError(f"{folder}: {row} rows were made for {len(kept)} pictures")
        if row < len(files):
            for field in fields.values():
                field.shorten(row)
        opened.close()
        manifest = {
            "format": FORMAT,
            **entries,
            "fields": {name: list(field.shape) for name, field in fields.items()},
            "digests": {name: field.digest.hexdigest() for name, field in fields.items()},
            "files": kept,
        }
        write_json(aside / MANIFEST, {**manifest, "digest": json_digest(manifest)})
    return Store.open(folder)


def _refuse_other_folder(folder: Path) -> None:
    """Raises WriteError for a folder that holds anything but a store, whole or damaged: the new store takes
    its place, and what is in it would be gone."""
    inside = [] if not folder.is_dir() else sorted(path.name for path in folder.iterdir())
    foreign = [name for name in inside if name != MANIFEST and not name.endswith(".npy")]
    if inside and not foreign and (folder / MANIFEST).is_file():
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            foreign = [] if isinstance(manifest, dict) and "files" in manifest else [MANIFEST]
        except ValueError:
            foreign = [MANIFEST] if inside == [MANIFEST] else []  # beside arrays, a store's that is damaged
    elif inside and not foreign:
        foreign = inside[:1]
    if foreign:
        raise WriteError(
            f"{folder} exists and is no store (it holds {foreign[0]}): choose another folder, or "
            "remove it first"
        )


class _Field:
    """An array that grows row by row in a file of known size.

    It is written, not mapped: a disk that is full is then an error at the write, where a map would end the
    process.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape = file, dtype, shape
        self.digest = hashlib.sha256()
        header = self._header()
        allocate(file, len(header) + dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        self._write(header)

    def _header(self) -> bytes:
        header = io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**about, "shape": self.shape})
        return header.getvalue()

    def shorten(self, rows: int) -> None:
        """Cut the array off after its first rows; numpy's header has room for any number of them."""
        self.shape = (rows, *self.shape[1:])
        header = self._header()
        self.file.truncate(len(header) + self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)))
        self.file.seek(0)
        self.file.write(header)
        self.file.seek(0)
        self.digest = hashlib.sha256()
        while part := self.file.read(2**20):
            self.digest.update(part)

    def append(self, values: np.ndarray) -> None:
        if values.shape[1:] != self.shape[1:] or values.dtype != self.dtype:
            raise StoreError(
                f"{self.file.name}: rows of {values.shape[1:]} {values.dtype} came after rows of "
                f"{self.shape[1:]} "
                f"{self.dtype}: every picture must give features of one shape"
            )
        self._write(np.ascontiguousarray(values).tobytes())

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json, checked as far as it is used. Raises StoreError."""
    path = folder / MANIFEST
    if not path.exists():
        found = "was interrupted while it was written" if any(folder.glob("*.npy")) else "holds no store"
        raise StoreError(f"{folder} {found} (no {MANIFEST}): make it with `patchword features`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON that can be read ({error}): {_CURE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (1, FORMAT):
        version = manifest.get("format") if isinstance(manifest, dict) else None
        raise StoreError(f"{path} has format {version!r}, this version reads 1 to {FORMAT}: {_CURE}")
    content = {name: value for name, value in manifest.items() if name != "digest"}
    has_digests = manifest["format"] > 1 or "digest" in manifest or "digests" in manifest
    if has_digests and manifest.get("digest") != json_digest(content):
        raise StoreError(f"{path} was altered after it was written (its digest differs): {_CURE}")
    fields, files = manifest.get("fields"), manifest.get("files")
    if not isinstance(fields, dict) or not fields or not all(re.fullmatch(r"\w+", name) for name in fields):
        raise StoreError(f"{path} lists no fields: {_CURE}")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise StoreError(f"{path} lists no pictures: {_CURE}")
    if len(set(files)) != len(files):
        raise StoreError(f"{path} lists a picture twice: {_CURE}")
    return manifest


def pixel_store(
    images: Path,
    files: Sequence[str],
    preprocessing: Preprocessing,
    cache: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> Store:
    """Decoded pictures at the preprocessing's size, field `pixels` (uint8, H, W, 3); made on the first call,
    reused while nothing changed.

    Raises PictureError naming the first picture that cannot be decoded.
    """
    key = fingerprint(
        {
            "files": picture_files(images, files),
            "preprocessing": preprocessing.model_dump(mode="json"),
            "format": FORMAT,
        }
    )
    folder = cache / "pixels" / key[:20]
    if (folder / MANIFEST).exists():
        return Store.open(folder, {"fingerprint": key})

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with look_up("data.isolated:PictureReader")() as reader:
            for first in range(0, len(files), 64):
                some = files[first : first + 64]
                yield {"pixels": np.stack([preprocessing.apply(reader.open(images / name)) for name in some])}

    return write_store(folder, files, {"fingerprint": key}, chunks(), advance)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
