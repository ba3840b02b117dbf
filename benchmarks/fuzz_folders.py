"""Mutate model folders, feature stores, codebooks, indexes and data files, open them, use them: every damage
is an error of ours, or changes nothing.

    python benchmarks/fuzz_folders.py --count 10000 --seed 1
    python benchmarks/fuzz_folders.py --count 10000 --state fuzz.json --seconds 150 --kinds index,store

Each mutant is a copy of a small folder (those of models are of tests/kits/format1, saved anew, so that they
carry digests) with one to three mutations: a byte changed, a file cut, emptied, removed or exchanged, a value
of a JSON file replaced, removed or repeated. What is not allowed: an exception that is none of
`patchword.errors`, more than ten seconds, or another result without an error where the mutation did not
change what a person may edit. With --state it goes on where it stopped. The same mutations run small in
tests/checkpoints/test_fuzz.py and tests/data/formats/test_fuzz.py.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS / "checkpoints"))
import mutant_files  # noqa: E402
import mutants  # noqa: E402


def fuzz(
    count: Annotated[int, typer.Option(help="Mutants of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the mutations.")] = 1,
    kinds: Annotated[str, typer.Option(help="Kinds, with commas; all where left out.")] = "",
    state: Annotated[Path | None, typer.Option(help="File of what was done, to go on from.")] = None,
    seconds: Annotated[float, typer.Option(help="No mutant is begun after so long.")] = math.inf,
) -> None:
    """Print what became of the mutants; exits with 1 where one gave a traceback, took too long, or another
    result in silence.
    """
    done: dict[str, dict[str, Any]] = {}
    if state is not None and state.exists():
        done = json.loads(state.read_text(encoding="utf-8"))
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        place = Path(temporary)
        wanted = kinds.split(",") if kinds else []
        victims = mutant_files.victims(place)
        if not wanted or set(wanted) - set(victims):
            victims |= mutants.victims(place)
        for kind in wanted or victims:
            found = done.setdefault(kind, {"mutants": 0, "outcomes": {}, "wrong": []})
            outcomes = Counter(found["outcomes"])
            while found["mutants"] < count and time.monotonic() < ends:
                mutation = mutants.mutate(
                    victims[kind].folder, place / "mutant", seed * 1_000_003 + found["mutants"]
                )
                outcome = mutants.judge(victims[kind], place / "mutant", mutation)
                outcomes[outcome.kind] += 1
                if outcome.wrong:
                    found["wrong"].append(f"{found['mutants']}: {mutation} -> {outcome}")
                    print(kind, found["wrong"][-1], file=sys.stderr)
                found["mutants"] += 1
            found["outcomes"] = dict(outcomes)
            if state is not None:
                state.write_text(json.dumps(done), encoding="utf-8")
    for kind, found in done.items():
        told = ", ".join(f"{name} {times}" for name, times in sorted(found["outcomes"].items()))
        print(f"| {kind} | {found['mutants']} | {told} | {len(found['wrong'])} |")
    sys.exit(1 if any(found["wrong"] for found in done.values()) else 0)


if __name__ == "__main__":
    typer.run(fuzz)
