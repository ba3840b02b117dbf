"""What it costs to add pictures to an index, against making it anew: seconds, memory, files written.

    python benchmarks/index_growth.py                                      # to 10^4, 10^5, 2 x 10^5
    python benchmarks/index_growth.py --sizes 10000 --additions 1 100      # some seconds

Vectors are synthetic (points around 2,000 centres, as embeddings of pictures lie) and no picture is opened,
so that what is measured is the index alone. Each line runs in a process of its own: its peak memory is that
of the whole process, Python and faiss included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

WIDTH = 512
CENTRES = 2000
BATCH = 10_000


def rows(first: int, count: int) -> list:
    """Pictures number `first` and the `count` from there on, the same at every call."""
    from patchword.search.records import Row

    middle_CE = np.random.default_rng(0).standard_normal((CENTRES, WIDTH), dtype=np.float32)
    generator = np.random.default_rng(first + 1)
    vectors_NE = middle_CE[generator.integers(CENTRES, size=count)]
    vectors_NE = vectors_NE + 0.7 * generator.standard_normal((count, WIDTH), dtype=np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return [
        Row(
            b"/pictures/%08d.jpg" % (first + n),
            10**6 + first + n,
            1,
            b"%032d" % (first + n),
            "",
            (),
            vector_E,
        )
        for n, vector_E in enumerate(vectors_NE)
    ]


def add(out: Path, first: int, count: int) -> None:
    """Add pictures in batches, as an update does; each batch is published."""
    from patchword.search.writer import open_writer

    with open_writer(out, "synthetic", "") as index:
        index.describe(width=WIDTH)
        for start in range(first, first + count, BATCH):
            index.publish(rows(start, min(BATCH, first + count - start)))
        index.tidy(count)


def search(out: Path, count: int) -> None:
    """Open the index and search once."""
    from patchword.search.index import open_index

    with open_index(out) as opened:
        opened.search(rows(count, 1)[0].vector_E, 10)


def measured(*words: object) -> dict[str, float]:
    """One call of this script in a process of its own: wall time and CPU time of the work, peak memory of the
    process."""
    line = [sys.executable, __file__, "--alone", *map(str, words)]
    finished = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def alone(words: list[str]) -> None:
    """What a measured process does."""
    import patchword.search.index  # noqa: F401 - imports are no part of the work

    work, out, first, count = words[0], Path(words[1]), int(words[2]), int(words[3])
    began, cpu = time.perf_counter(), time.process_time()
    if work == "search":
        search(out, first)
    else:
        add(out, first, count)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", None) or _peak_of_linux()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": peak / 2**20}))


def _peak_of_linux() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Print a line for each size and addition."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 200_000])
    parser.add_argument("--additions", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone)
        return
    print("| to | added | seconds | CPU s | peak MiB | first search after, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            built = measured("add", base, 0, size)
            print(_line("0 (made anew)", size, built, measured("search", base, size, 0)), flush=True)
            for count in options.additions:
                copy = Path(folder) / "copy"
                shutil.copytree(base, copy, copy_function=os.link)
                grown = measured("add", copy, size, count)
                print(_line(f"{size:,}", count, grown, measured("search", copy, size + count, 0)), flush=True)
                shutil.rmtree(copy)


def _line(to: str, count: int, work: dict[str, float], found: dict[str, float]) -> str:
    values = f"{work['seconds']:.2f} | {work['cpu']:.2f} | {work['memory']:.0f} | {found['seconds']:.2f}"
    return f"| {to} | {count:,} | {values} |"


if __name__ == "__main__":
    main()
