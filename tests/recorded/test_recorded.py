"""Nothing that a user gets has changed: a new recording is compared with `recorded.json`.

`record.py` says what is recorded. On a machine like the one of the recording, with the same type of
processor and the same versions of torch and the other libraries that compute, every value and every digest
must be equal, bit for bit.

On another type of machine the last bits of sums differ, because other instructions are used. There the test
falls back to a tolerance: texts and whole numbers must be equal, and other numbers must agree within 1e-4.
What only one type of machine can repeat is not compared there. That is every digest, and whatever follows
from many training steps; such values stand under keys that begin with `sha256` or `exact`.

Where a change is intended, make a new recording and say in the commit what changed and why:

    python tests/recorded/record.py tests/recorded/recorded.json
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import patchword

HERE = Path(__file__).resolve().parent
RECORDED = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-4
ONE_MACHINE = ("sha256", "exact")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """A new recording, made in a process of its own by the package that this test imports."""
    out = tmp_path_factory.mktemp("recorded") / "made.json"
    source = Path(patchword.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "record.py"), str(out)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def differences(before: Any, now: Any, exact: bool, where: str = "") -> Iterator[str]:
    """One line for each value that differs: where it is, what was recorded, and what is there now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if key not in before or key not in now:
                yield f"{where}/{key}: only in the {'recording' if key in before else 'new one'}"
            elif exact or not key.startswith(ONE_MACHINE):
                yield from differences(before[key], now[key], exact, f"{where}/{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, exact, f"{where}/{place}")
    elif isinstance(before, float) and isinstance(now, float) and not exact:
        if not abs(before - now) <= TOLERANCE:
            yield f"{where}: {before} was recorded, and now it is {now}"
    elif type(before) is not type(now) or before != now:
        yield f"{where}: {before!r} was recorded, and now it is {now!r}"


def compare(before: Any, now: Any, exact: bool) -> None:
    """Fail with the first twenty differences, if there are any."""
    found = list(differences(before, now, exact))
    kind = "bit for bit" if exact else f"within {TOLERANCE}, as the recording is from another type of machine"
    assert not found, "\n".join([f"{len(found)} values differ (compared {kind}):", *found[:20]])


@pytest.mark.parametrize("part", [part for part in RECORDED if part not in ("machine", "trainings")])
def test_what_a_user_gets_is_as_recorded(part, made):
    before, now = RECORDED[part], made[part]
    if part == "search" and not now:
        pytest.skip("faiss is not installed, so there is no search to compare")
    if part == "scores" and importlib.util.find_spec("pycocoevalcap") is None:
        kept = {kind: [key for key in rows if key != "METEOR"] for kind, rows in before.items()}
        before = {kind: {key: before[kind][key] for key in keys} for kind, keys in kept.items()}
    compare(before, now, RECORDED["machine"] == made["machine"])


@pytest.mark.parametrize("task", RECORDED["trainings"])
def test_a_short_training_is_as_recorded(task, made):
    compare(RECORDED["trainings"][task], made["trainings"][task], RECORDED["machine"] == made["machine"])


def test_a_change_is_noticed():
    before = {
        "text": "a dog",
        "score": 0.5,
        "parts": [{"sha256": "1", "numbers": [1.0, 2.0]}],
        "exact_loss": 1.0,
    }
    now = {
        "text": "a cat",
        "score": 0.50001,
        "parts": [{"sha256": "2", "numbers": [1.0, 2.1]}],
        "exact_loss": 2.0,
    }
    places = [[line.split(":")[0] for line in differences(before, now, exact)] for exact in (True, False)]
    assert places[0] == ["/text", "/score", "/parts/0/sha256", "/parts/0/numbers/1", "/exact_loss"]
    assert places[1] == ["/text", "/parts/0/numbers/1"]
    assert not list(differences(before, before, exact=True))
    assert len(list(differences({"one": 1}, {"other": 1}, exact=False))) == 2
