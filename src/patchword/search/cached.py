"""`patchword search FOLDER "two dogs"`: the index of a folder that nobody asked for, kept where programs keep
what can be made again."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from patchword.errors import DataError
from patchword.search import manifest as manifests
from patchword.search.find import Embedder
from patchword.search.index import IndexReport, update_index
from patchword.search.records import IndexModel

CACHE_VARIABLE = "PATCHWORD_CACHE"
"""Environment variable that names another place for what can be made again."""


def cache_folder() -> Path:
    """Where programs of this system keep what can be made again."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "patchword" / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "patchword"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchword"


def cached_index(folder: Path, model: str) -> Path:
    """Where the index of a folder is kept that belongs to a model's name."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder)) + b"\0" + os.fsencode(model)).hexdigest()
    return cache_folder() / "indexes" / key[:32]


def update_cached(
    folder: Path, towers: Embedder, model: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, IndexReport]:
    """Bring the kept index of a folder up to it, and give its place.

    A kept index that is damaged, or of other weights under the same name, is made anew: nobody asked for it.

    Raises:
        DataError: the folder does not exist.
        StoreError: the cache cannot be written, or the folder is empty and held pictures before.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: neither an index nor a folder of pictures: there is no such folder")
    out = cached_index(folder, model)
    try:
        held = manifests.read(out)
        usable = held is None or held.model == towers.identity
        report = _updated(folder, out, towers, model, progress) if usable else None
    except manifests.DamagedIndex:
        report = None
    if report is None:
        shutil.rmtree(out, ignore_errors=True)
        report = _updated(folder, out, towers, model, progress)
    return out, report


def _updated(
    folder: Path, out: Path, towers: Embedder, model: str, progress: Callable[[int, int], None] | None
) -> IndexReport:
    seen_by = IndexModel(towers.embed_images, towers.identity, model)
    return update_index(folder, out, seen_by, progress=progress)
