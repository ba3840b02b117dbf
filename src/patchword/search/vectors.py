"""Nearest vectors of a segment: all of them compared or, in a large segment, those in the nearest of many
cells of faiss."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from patchword.errors import MissingExtra

FLAT_LIMIT = 100_000
"""Up to this many pictures every vector is compared (exact); beyond, the nearest of about 4 sqrt(n) cells."""
_ROWS_AT_ONCE = 16_384


def load_faiss() -> ModuleType:
    """Raises MissingExtra where it is not installed."""
    try:
        with warnings.catch_warnings():
            # Its generated bindings use types that newer Pythons announce to drop; no user of ours can act on
            # that.
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise MissingExtra(
            "searching pictures needs faiss, which is not installed: pip install 'patchword[search]'"
        ) from error
    return faiss


def nearest(
    vectors_NE: np.ndarray, query_E: np.ndarray, k: int, kept_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and row numbers of the `k` nearest of all vectors, best first; only those that `kept_N` (bool)
    marks, of which there are at least `k`. Of equal scores the earlier row comes first.

    One product reads all vectors once, as faiss would, whose import takes longer than this.
    """
    scores_N = vectors_NE @ query_E
    if kept_N is not None:
        scores_N[~kept_N] = -np.inf
    best_k = np.arange(len(scores_N))
    if k < len(scores_N):
        least = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        best_k = np.flatnonzero(scores_N >= least)
    best_k = best_k[np.argsort(-scores_N[best_k], kind="stable")][:k]
    return scores_N[best_k], best_k


def nearest_in_cells(
    faiss: ModuleType, cells: Any, query_E: np.ndarray, k: int, kept_N: np.ndarray | None, everywhere: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Searches as `nearest` does, in the nearest cells, or with `everywhere` in all of them: the few pictures
    that a filter leaves may lie in none of the nearest ones, and the others are skipped by their number."""
    bits, selector = _selector(faiss, kept_N)
    probed = cells.nlist if everywhere else cells.nprobe
    settings = faiss.SearchParametersIVF(sel=selector, nprobe=probed)
    scores_1k, rows_1k = cells.search(np.ascontiguousarray(query_E[None]), k, params=settings)
    del bits
    return scores_1k[0], rows_1k[0]


def _selector(faiss: ModuleType, kept_N: np.ndarray | None) -> tuple[np.ndarray | None, Any]:
    if kept_N is None:
        return None, None
    bits = np.packbits(kept_N, bitorder="little")
    return bits, faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))


def build_cells(faiss: ModuleType, vectors_NE: np.ndarray) -> Any:
    """An inverted file over all rows. The cells come of K-Means over a sample; a search visits 8 % of them
    (at least 16)."""
    count, width = vectors_NE.shape
    cells = max(1, int(4 * count**0.5))
    built = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    # Forty vectors for each cell, spread evenly by a multiplicative hash: the same pictures always make the
    # same cells.
    share = min(2**32, int(2**32 * 40 * cells / count))
    sample = np.flatnonzero(np.arange(1, count + 1, dtype=np.uint64) * 2654435761 % 2**32 < share)
    built.cp.niter = 10
    built.train(np.ascontiguousarray(vectors_NE[sample]))
    for start in range(0, count, _ROWS_AT_ONCE):
        built.add(np.ascontiguousarray(vectors_NE[start : start + _ROWS_AT_ONCE]))
    built.nprobe = max(16, int(0.08 * cells))
    return built


def write_cells(faiss: ModuleType, cells: Any, path: Path) -> None:
    """Through a Python file, for faiss itself takes no file name that is not UTF-8."""
    with open(path, "wb") as file:
        faiss.write_index(cells, faiss.PyCallbackIOWriter(file.write))


def read_cells(faiss: ModuleType, path: Path) -> Any:
    """The inverted file, mapped into memory where the system and its name allow that. Raises RuntimeError for
    what is none."""
    name = os.fsencode(path)
    if os.name != "nt" and name.decode("utf-8", "replace").encode("utf-8") == name:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    with open(path, "rb") as file:
        return faiss.read_index(faiss.PyCallbackIOReader(file.read))


def head_of_cells(size: int, rows: int, width: int) -> int:
    """Bytes of the file before the lists of vectors and their numbers: everything that steers how the rest is
    read."""
    return max(0, size - rows * (4 * width + 8))
