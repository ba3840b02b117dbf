"""Memory and speed of reading a corpus: words counted, ids written, pairs counted, for growing corpora.

    python benchmarks/corpus.py --tokens 1000000 10000000

The text is drawn by Zipf's law from 100,000 made-up words, in lines of 20. Each size runs in a process of its
own; printed are the peak of its resident memory and the seconds of processor time of both parts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_text(path: Path, tokens: int) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 100_001)
    edges = np.cumsum(shares / shares.sum())
    names = np.array([f"w{number}" for number in range(100_000)])
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(tokens // 100_000):
            drawn = names[np.searchsorted(edges, random.random(100_000)).clip(max=99_999)].reshape(-1, 20)
            file.writelines(" ".join(line) + "\n" for line in drawn)


def measure(path: Path, folder: Path) -> dict:
    from patchword.data.corpus import count_pairs, encode_corpus, text_lines

    began = time.process_time()
    corpus = encode_corpus(lambda: text_lines([path]), folder / "corpus", most_words=20_000)
    encoded = time.process_time() - began
    pairs = count_pairs(corpus.ids_P, 2, 5000)
    counted = time.process_time() - began - encoded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "pairs": len(pairs.rows_E),
        "ids_s": round(encoded, 1),
        "pairs_s": round(counted, 1),
        "peak_MiB": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--inside", type=Path)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside / "text.txt", options.inside)))
        return
    for tokens in options.tokens:
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder) / "text.txt", tokens)
            done = subprocess.run(
                [sys.executable, __file__, "--inside", folder], capture_output=True, text=True, check=False
            )
            print(f"{tokens:,} words  {done.stdout.strip() or done.stderr[-500:]}", flush=True)


if __name__ == "__main__":
    main()
