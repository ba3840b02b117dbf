"""Measures the rules over texts at the size of a crawl: rows a second, memory by number of rows, and how many
of the clean pairs are kept among how many others.

    python benchmarks/filter.py                     # 1,000,000 rows; some minutes
    python benchmarks/filter.py --rows 100000

Texts are drawn: sentences of a vocabulary of 20,000 words by a Zipf law, one in ten a boiler-plate, one in
ten one of 1,000 texts that come again and again, one in twenty a code. They are written to Parquet first,
which is not measured. Peak memory is that of the process after each tenth. A pair is clean whose text is a
sentence of three words or more and whose picture the rule of sizes lets through. The rest is of the kinds
that the rules were written for, so that precision and recall are those of rules that work as they say, not of
a crawl, whose noise is of more kinds.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from patchword.jobs.filter import filter_pairs
from patchword.jobs.rules import Boilerplate, Length, Letters, RareWords, SameText, Size

ROWS = 50_000


def write(path: Path, rows: int, generator: np.random.Generator) -> set[str]:
    """One Parquet file of texts; the names of its clean pairs."""
    shares = 1 / np.arange(1, 20_001)
    letters = [chr(97 + number) for number in range(26)]
    every = [a + b + c + d for a in letters for b in letters for c in letters for d in "eno"]
    words = np.array(every[:20_000])
    drawn = words[generator.choice(20_000, size=(rows, 9), p=shares / shares.sum())]
    lengths, kinds = generator.integers(2, 10, rows), generator.random(rows)
    texts = [" ".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
    for number, kind in enumerate(kinds):
        if kind < 0.1:
            texts[number] = f"stock photo of {texts[number]}"
        elif kind < 0.2:
            texts[number] = f"the shop page {number % 1000}"
        elif kind < 0.25:
            texts[number] = f"{number:x}-{kind:.12f}"
    sides = generator.integers(100, 2000, (rows, 2))
    names = [f"http://{path.stem}/{number}" for number in range(rows)]
    large = (sides.min(1) >= 200) & (sides.max(1) <= 3 * sides.min(1))
    clean = np.flatnonzero((kinds >= 0.25) & (lengths >= 3) & large)
    table = {"text": texts, "url": names}
    table |= {"width": sides[:, 0], "height": sides[:, 1]}
    parquet.write_table(pyarrow.table(table), path)
    return {names[number] for number in clean}


def main() -> None:
    """Prints the report of the pass, its rate, and the memory at each tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    clean: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "crawl"
        source.mkdir()
        for number in range(0, arguments.rows, ROWS):
            clean |= write(source / f"{number:09d}.parquet", min(ROWS, arguments.rows - number), generator)
        peaks: dict[int, float] = {}

        def progress(read: int, kept: int) -> None:
            peaks[10 * read // arguments.rows] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        rules = [Length(), Letters(), Boilerplate(), SameText(), RareWords(), Size()]
        began, cpu = time.perf_counter(), time.process_time()
        report = filter_pairs([str(source)], Path(folder) / "out", rules, progress)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        shards = sorted((Path(folder) / "out").glob("*.parquet"))
        right = sum(
            name in clean
            for path in shards
            for name in parquet.read_table(path, columns=["name"]).column("name").to_pylist()
        )
    print(f"{report.read} rows in {cpu:.1f} CPU s ({seconds:.1f} s): {report.read / cpu:.0f} rows per CPU s")
    print(f"{report.kept} kept; dropped: {', '.join(f'{one.rule} {one.pairs}' for one in report.dropped)}")
    print(
        f"clean: {len(clean)} of {report.read}; of these {right} kept: "
        f"precision {right / report.kept:.4f}, recall {right / len(clean):.4f}"
    )
    print(f"peak MiB by tenth: {', '.join(f'{peak:.0f}' for peak in peaks.values())}")


if __name__ == "__main__":
    main()
