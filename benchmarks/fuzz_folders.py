"""Mutate model folders, feature stores and codebooks, open them, use them: every damage is an error of ours,
or changes nothing.

    python benchmarks/fuzz_folders.py --count 10000 --seed 1

Each mutant is a copy of a small folder of tests/kits/format1 (saved anew, so that it carries digests), or of
a store or a codebook made here, with one to three mutations: a byte changed, a file cut, emptied, removed or
exchanged, a value of a JSON file replaced, removed or repeated. What is not allowed: an exception that is
none of `patchword.errors`, more than ten seconds, or another result without an error where the mutation did
not change a setting. The same mutations run small in tests/checkpoints/test_fuzz.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "checkpoints"))
import mutants  # noqa: E402


def fuzz(
    count: Annotated[int, typer.Option(help="Mutants of each kind of folder.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the mutations.")] = 1,
) -> None:
    """Print what became of the mutants; exits with 1 where one gave a traceback, took too long, or another
    result in silence.
    """
    found: Counter[tuple[str, str]] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind, victim in mutants.victims(Path(temporary)).items():
            began = time.monotonic()
            for number in range(count):
                mutation = mutants.mutate(
                    victim.folder, Path(temporary) / "mutant", seed * 1_000_003 + number
                )
                outcome = mutants.judge(victim, Path(temporary) / "mutant", mutation)
                found[kind, outcome.kind] += 1
                if outcome.wrong:
                    wrong.append(f"{kind} {number}: {mutation} -> {outcome}")
                    print(wrong[-1], file=sys.stderr)
            print(f"{kind}: {count} mutants in {time.monotonic() - began:.0f} s")
    for (kind, outcome), times in sorted(found.items()):
        print(f"{kind:10} {outcome:22} {times}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(fuzz)
