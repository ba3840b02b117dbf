"""Measures both engines of an index on the same vectors: the first ten, times to fill, to open and to search.

    python benchmarks/engines.py             # 50,000 vectors; a folder, and milvus-lite
    python benchmarks/engines.py --milvus milvus://10.0.0.5:19530/bench    # a cluster in place of milvus-lite

Vectors are synthetic, around 2,000 random centres, of the width of the shipped two towers. Queries are noisy
copies of vectors. Both engines compare every vector. milvus-lite works in this process, so that CPU seconds
are comparable; a cluster works elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from patchword.search.index import open_index
from patchword.search.milvus import open_milvus_writer
from patchword.search.records import Row
from patchword.search.writer import open_writer

BATCH = 5000


def main() -> None:
    """Prints one row per engine, and how many queries have the same first ten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--milvus", default="", help="milvus://HOST:PORT/NAME; else milvus-lite")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((2000, arguments.width), dtype=np.float32)
    vectors_NE = centres[generator.integers(2000, size=arguments.vectors)]
    vectors_NE = vectors_NE + 0.7 * generator.standard_normal(vectors_NE.shape, dtype=np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    queries = vectors_NE[generator.integers(arguments.vectors, size=arguments.queries)]
    queries = queries + 0.03 * generator.standard_normal(queries.shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "folder": _measured(open_writer, Path(folder) / "index", vectors_NE, queries),
            "Milvus": _measured(
                open_milvus_writer, arguments.milvus or Path(folder) / "index.milvus.db", vectors_NE, queries
            ),
        }
    print("| | fill, CPU s (s) | open, CPU s (s) | a search, CPU ms (ms) |\n| --- | --: | --: | --: |")
    for name, (times, _) in found.items():
        fill, opened, search = times
        print(
            f"| {name} | {fill[0]:.1f} ({fill[1]:.1f}) | {opened[0]:.2f} ({opened[1]:.2f}) | "
            f"{1000 * search[0]:.1f} ({1000 * search[1]:.1f}) |"
        )
    pairs = list(zip(found["folder"][1], found["Milvus"][1], strict=True))
    same = sum([path for path, _ in ours] == [path for path, _ in theirs] for ours, theirs in pairs)
    apart = max(abs(a[1] - b[1]) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    print(
        f"the same first ten in the same order: {same} of {len(pairs)} queries; scores apart by {apart:.1e}"
    )


def _measured(
    opener: Callable[..., AbstractContextManager[Any]], out: Path | str, vectors_NE: np.ndarray, queries: Any
) -> tuple[list[tuple[float, float]], list[list[tuple[str, float]]]]:
    """CPU seconds and seconds of the three things, and what the queries found."""
    clock = (time.process_time(), time.perf_counter())

    def spent() -> tuple[float, float]:
        nonlocal clock
        now = (time.process_time(), time.perf_counter())
        before, clock = clock, now
        return now[0] - before[0], now[1] - before[1]

    with opener(out, "synthetic", "") as index:
        index.describe(width=vectors_NE.shape[1])
        for first in range(0, len(vectors_NE), BATCH):
            index.publish(
                [
                    Row(f"/pictures/{first + number}.jpg".encode(), number, 0, b"", "", (), vector_E)
                    for number, vector_E in enumerate(vectors_NE[first : first + BATCH])
                ]
            )
    times = [spent()]
    with open_index(out) as opened:
        opened.search(queries[0])  # what an engine loads at its first search belongs to opening
        times.append(spent())
        found, each = [], []
        for query_E in queries:
            found.append([(one.path, one.score) for one in opened.search(query_E)])
            each.append(spent())
    times.append(
        (statistics.median(cpu for cpu, _ in each), statistics.median(seconds for _, seconds in each))
    )
    return times, found


if __name__ == "__main__":
    main()
