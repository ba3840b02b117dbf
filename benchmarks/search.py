"""Measures the picture index at 100,000 vectors: time to build and search, recall against exact search.

    python benchmarks/search.py                      # 100,000 vectors of width 512; some minutes on two cores
    python benchmarks/search.py --vectors 300000

Vectors are synthetic: points around random centres (as embeddings of pictures are distributed) and, as the
worst case, without centres. Queries are noisy copies of vectors. Search time includes the look-up of the
paths.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import patchword.search.vectors as vectors_file
from patchword.search.index import PictureIndex, open_index
from patchword.search.records import Row
from patchword.search.writer import open_writer

BATCH = 10_000


def vectors(count: int, width: int, centres: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields unit vectors in batches, around that many centres (0: none)."""
    middle = generator.standard_normal((max(centres, 1), width), dtype=np.float32) * (centres > 0)
    for start in range(0, count, BATCH):
        rows = min(BATCH, count - start)
        points = (
            generator.standard_normal((rows, width), dtype=np.float32) * 0.7
            + middle[generator.integers(len(middle), size=rows)]
        )
        yield points / np.linalg.norm(points, axis=1, keepdims=True)


def fill(out: Path, batches: Iterator[np.ndarray], flat_limit: int) -> tuple[PictureIndex, np.ndarray, float]:
    """Builds an index as `update_index` does, but from vectors instead of pictures.

    Returns the opened index, a sample of the vectors, and the seconds.
    """
    vectors_file.FLAT_LIMIT = flat_limit
    sample, number = [], 0
    start = time.perf_counter()
    with open_writer(out, "synthetic", "") as index:
        for points in batches:
            index.describe(width=points.shape[1])
            index.publish(
                [
                    Row(f"/pictures/{number + i}.jpg".encode(), number + i, 0, b"", "", (), point)
                    for i, point in enumerate(points)
                ]
            )
            number += len(points)
            sample.append(points[:50])
        index.tidy(number)
    return open_index(out), np.concatenate(sample), time.perf_counter() - start


def search(opened: PictureIndex, queries: np.ndarray) -> tuple[list[list[str]], np.ndarray, float]:
    """Returns the results of each query, the milliseconds of each, and the mean milliseconds of CPU time.

    Other work on the machine does not lengthen CPU time.
    """
    found, seconds, cpu = [], [], time.process_time()
    for query in queries:
        start = time.perf_counter()
        found.append([one.path for one in opened.search(query, 10)])
        seconds.append(time.perf_counter() - start)
    return found, np.array(seconds) * 1000, (time.process_time() - cpu) * 1000 / len(queries)


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    for centres in (2000, 0):
        print(
            f"{options.vectors} vectors of width {options.width}, "
            f"{f'around {centres} centres' if centres else 'without centres'}"
        )
        results = {}
        for kind, limit in (("flat", options.vectors), ("cells", 0)):
            generator = np.random.default_rng(0)
            with tempfile.TemporaryDirectory() as folder:
                opened, sample, built = fill(
                    Path(folder) / "out", vectors(options.vectors, options.width, centres, generator), limit
                )
                with opened:
                    queries = sample[generator.integers(len(sample), size=options.queries)]
                    noise = generator.standard_normal(queries.shape, dtype=np.float32) / options.width**0.5
                    results[kind], milliseconds, cpu = search(opened, queries + 0.5 * noise)
                size = (
                    sum(
                        path.stat().st_size
                        for path in (Path(folder) / "out").iterdir()
                        if path.suffix in (".faiss", ".npy")
                    )
                    / 2**20
                )
            middle, high = np.percentile(milliseconds, [50, 95])
            print(
                f"  {kind:5}: stored and built in {built:.1f} s, {size:.0f} MiB; a search takes "
                f"{middle:.1f} ms (95 %: {high:.1f} ms, "
                f"CPU {cpu:.1f} ms)",
                flush=True,
            )
        pairs = list(zip(results["flat"], results["cells"], strict=True))
        first = np.mean([exact[0] == found[0] for exact, found in pairs])
        ten = np.mean([len(set(exact) & set(found)) / 10 for exact, found in pairs])
        print(
            f"  cells against flat: the same first picture {first:.1%}, recall of the ten nearest {ten:.1%}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
