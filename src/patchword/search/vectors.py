"""The vectors of a picture index in faiss: all of them compared up to a number, beyond it the nearest of many cells."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from patchword.errors import MissingExtra

FLAT_LIMIT = 100_000
"""Up to this many pictures every vector is compared (exact); beyond, the nearest of about 4 sqrt(n) cells."""
_ROWS_AT_ONCE = 16_384


def build(faiss: ModuleType, work: sqlite3.Connection, width: int) -> tuple[Any, str]:
    """The index of all vectors of the table `pictures`, and its kind: flat, or for many vectors an inverted file of cells.

    The cells come of K-Means over a sample; a search visits 8 % of them (at least 16).
    """
    count = work.execute("select count(*) from pictures where vector is not null").fetchone()[0]
    if count <= FLAT_LIMIT:
        vectors, kind = faiss.IndexIDMap(faiss.IndexFlatIP(width)), "flat"
    else:
        cells = int(4 * count**0.5)
        vectors, kind = (
            faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT),
            "cells",
        )
        # Forty vectors for each cell, spread evenly by a multiplicative hash: the same pictures always make the same cells.
        share = min(2**32, int(2**32 * 40 * cells / count))
        vectors.cp.niter = 10
        vectors.train(
            np.concatenate([rows for _, rows in _rows(work, f"and id * 2654435761 % 4294967296 < {share}")])
        )
        vectors.nprobe = max(16, int(0.08 * cells))
    for ids, rows in _rows(work):
        vectors.add_with_ids(rows, ids)
    return vectors, kind


def load_faiss() -> ModuleType:
    """Raises MissingExtra where it is not installed."""
    try:
        with warnings.catch_warnings():
            # Its generated bindings use types that newer Pythons announce to drop; nothing a user of ours can act on.
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise MissingExtra(
            "searching pictures needs faiss, which is not installed: pip install 'patchword[search]'"
        ) from error
    return faiss


def _rows(work: sqlite3.Connection, condition: str = "") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    cursor = work.execute(f"select id, vector from pictures where vector is not null {condition} order by id")
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        yield (
            np.array([row[0] for row in rows], dtype=np.int64),
            np.stack([np.frombuffer(row[1], dtype=np.float32) for row in rows]),
        )
