"""Measures how long commands take from nothing: CPU seconds and seconds of a process that answers once.

    python benchmarks/cold_start.py                     # a table; two minutes on a quiet core
    python benchmarks/cold_start.py --repeats 9 --only search
    PYTHONPATH=OLD/src python benchmarks/cold_start.py --index OLD.index    # an index that it has made

`search` is asked for words in an index of 1,000 vectors of the shipped two towers; `label` and `caption` get
the photograph that comes with matplotlib; `serve` is ready when /ready answers. `import torch` is what two
of them cannot do without. Every line is the median of processes of their own, with one thread, begun in
turns, so that other work on the machine falls on all of them; a first turn that is not counted compiles
Python's files, as an installation does. PYTHONPATH says which version is measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PICTURES = 1000


class Cost(NamedTuple):
    """What one process took."""

    cpu: float
    seconds: float


def make_index(out: Path) -> None:
    """An index of as many vectors as a folder of pictures would give."""
    from patchword.search.records import Row
    from patchword.search.writer import open_writer
    from patchword.tasks.retrieve.load import load_two_towers

    towers = load_two_towers("two-towers")
    generator = np.random.default_rng(0)
    vectors_NE = generator.standard_normal((PICTURES, towers.settings.two_towers.width), dtype=np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    rows = [
        Row(f"/pictures/{number}.jpg".encode(), number, 0, b"", "", (), vector_E)
        for number, vector_E in enumerate(vectors_NE)
    ]
    with open_writer(out, towers.identity, "two-towers") as index:
        index.describe(width=vectors_NE.shape[1])
        index.publish(rows)


def run_once(command: Sequence[str]) -> Cost:
    """One process to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{said}")
    return Cost(_cpu_since_last(), seconds)


_before = 0.0


def _cpu_since_last() -> float:
    """CPU seconds of the child processes that ended since the last call."""
    global _before
    times = os.times()
    now = times.children_user + times.children_system
    spent, _before = now - _before, now
    return spent


def serve_once(command: Sequence[str], port: int) -> Cost:
    """A service until it says that it is ready."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)}: ended before it was ready") from None
                time.sleep(0.02)
        seconds = time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return Cost(_cpu_since_last(), seconds)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main() -> None:
    """Prints one row per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--index", type=Path, help="search this one, of a version whose index is another")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import matplotlib

    photo = str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    own = [sys.executable, "-m", "patchword"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        index = arguments.index or Path(folder) / "index"
        if arguments.index is None and (not arguments.only or "search" in arguments.only):
            make_index(index)
        commands = {
            "python": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "search": [*own, "search", str(index), "two dogs in snow"],
            "label": [*own, "label", photo, "--labels", "a dog, a person"],
            "caption": [*own, "caption", photo],
            "serve": [*own, "serve"],
        }
        found: dict[str, list[Cost]] = {name: [] for name in commands}
        for turn in range(arguments.repeats + 1):
            for name, command in commands.items():
                if arguments.only and name not in arguments.only:
                    continue
                _cpu_since_last()
                if name == "serve":
                    port = free_port()
                    cost = serve_once([*command, "--port", str(port)], port)
                else:
                    cost = run_once(command)
                if turn:
                    found[name].append(cost)
                    print(f"{name}: {cost.cpu:.2f} CPU s", file=sys.stderr, flush=True)
    print("| | CPU s | seconds |\n| --- | --: | --: |")
    for name, costs in found.items():
        if costs:
            cpu = statistics.median(cost.cpu for cost in costs)
            print(f"| {name} | {cpu:.2f} | {statistics.median(cost.seconds for cost in costs):.2f} |")


if __name__ == "__main__":
    main()
