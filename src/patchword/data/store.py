"""Arrays of a data set on disk, made once and memory-mapped: decoded pictures (uint8) and features of a frozen tower (fp16).

A store is a folder with one `.npy` per field, all with one row per picture, and a `manifest.json` that is written last: a folder without
it is a store that was interrupted. The manifest holds a fingerprint of everything that the arrays depend on (files with size and time of
change, preprocessing, tower weights, layer); a store with another fingerprint is stale, and stale or partial stores are errors, never
a source of wrong numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword.data.pictures import Preprocessing, open_picture
from patchword.errors import StoreError

FORMAT = 1


def cache_folder() -> Path:
    """Where caches go unless a configuration says otherwise: $PATCHWORD_CACHE, else patchword/ under $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("PATCHWORD_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "patchword"
    )


def fingerprint(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def picture_files(images: Path, files: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of each picture. Raises StoreError naming the first that is missing."""
    listing = []
    for name in files:
        try:
            status = (images / name).stat()
        except OSError as error:
            raise StoreError(
                f"{images / name}: {error.strerror or error}; `patchword check` lists every picture that is missing"
            ) from error
        listing.append((name, status.st_size, status.st_mtime_ns))
    return listing


def view_name(file: str, view: int) -> str:
    """Name of the row of a picture's random view; view 0 is the plain picture. No path in a data set has two slashes in a row."""
    return file if view == 0 else f"{file}//{view}"


class Store:
    """Rows of one or more arrays by file name. `fields[name]` is a read-only memory map with one row per picture."""

    def __init__(self, folder: Path, manifest: dict[str, Any], fields: dict[str, np.ndarray]) -> None:
        self.folder, self.manifest, self.fields = folder, manifest, fields
        self._rows = {name: row for row, name in enumerate(manifest["files"])}

    def rows(self, files: Sequence[str]) -> np.ndarray:
        """Row numbers of pictures. Raises StoreError naming a picture that is not in the store."""
        try:
            return np.array([self._rows[name] for name in files], dtype=np.int64)
        except KeyError as error:
            raise StoreError(
                f"{self.folder} has no row for {error.args[0]}: it was made from {len(self._rows)} other pictures; make it again"
            ) from None

    @classmethod
    def open(cls, folder: Path, expected: dict[str, Any] | None = None) -> Store:
        """A complete store. `expected` names entries of the manifest that must be equal, such as the tower's fingerprint.

        Raises:
            StoreError: no store, an interrupted one, a truncated array, another format, or an entry that differs.
        """
        path = folder / "manifest.json"
        if not path.exists():
            found = "was interrupted while it was written" if any(folder.glob("*.npy")) else "holds no store"
            raise StoreError(f"{folder} {found} (no manifest.json): make it with `patchword features`")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise StoreError(
                f"{folder} has format {manifest.get('format')!r}, this version reads {FORMAT}: make it again"
            )
        fields = {}
        for name, shape in manifest["fields"].items():
            try:
                fields[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"{folder / name}.npy cannot be read ({error}): make the store again"
                ) from error
            if list(fields[name].shape) != shape:
                raise StoreError(
                    f"{folder / name}.npy has shape {list(fields[name].shape)}, the manifest says {shape}: make the store again"
                )
        store = cls(folder, manifest, fields)
        store.check(expected or {})
        return store

    def check(self, expected: dict[str, Any]) -> None:
        """Raises StoreError for an entry of the manifest that is not as expected."""
        for name, value in expected.items():
            found = self.manifest.get(name)
            if found != value:
                raise StoreError(
                    f"{self.folder} is stale: its {name} is {_short(found)} and {_short(value)} is needed; make it again"
                )


def write_store(
    folder: Path,
    files: Sequence[str],
    entries: dict[str, Any],
    chunks: Iterator[dict[str, np.ndarray]],
    advance: Callable[[int], None],
) -> Store:
    """Write arrays chunk by chunk; `chunks` yields consecutive rows of every field, `advance` is told how many rows came.

    The store becomes visible under its name when it is complete. Raises StoreError when the rows do not add up to the files.
    """
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, np.memmap] = {}
    row = 0
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        for name, values in chunk.items():
            if name not in arrays:
                shape = (len(files), *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(
                    partial / f"{name}.npy", mode="w+", dtype=values.dtype, shape=shape
                )
            arrays[name][row : row + count] = values
        row += count
        advance(count)
    if row != len(files):
        raise StoreError(f"{folder}: {row} rows were made for {len(files)} pictures")
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    for array in arrays.values():
        array.flush()
    manifest = {"format": FORMAT, **entries, "fields": shapes, "files": list(files)}
    (partial / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return Store.open(folder)


def pixel_store(
    images: Path,
    files: Sequence[str],
    preprocessing: Preprocessing,
    cache: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> Store:
    """Decoded pictures at the preprocessing's size, field `pixels` (uint8, H, W, 3); made on the first call, reused while nothing changed.

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
    if (folder / "manifest.json").exists():
        return Store.open(folder, {"fingerprint": key})

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(files), 64):
            yield {
                "pixels": np.stack(
                    [preprocessing.apply(open_picture(images / name)) for name in files[first : first + 64]]
                )
            }

    return write_store(folder, files, {"fingerprint": key}, chunks(), advance)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
