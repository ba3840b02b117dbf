"""Killed at any operation on its files, or with a full disk there, a training is the same when resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_everywhere.py")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks of one process"),
    pytest.mark.timeout(1500),  # seconds on a free machine, minutes on one that is shared
]


def trials(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def test_killed_at_every_operation_it_is_the_same_training():
    """Two stages, the second from the best model: model, optimiser, log and best are equal, bit for bit."""
    found = trials("plain")
    assert found["runs"] == found["stopped"] == found["operations"] > 100
    assert found["differences"] == [] and found["wrong_endings"] == []


def test_memory_and_rewards_survive_kills_too():
    """A stage in which the memory fills and a self-critical one from the best, through the command's code."""
    found = trials("captioner", "--every", 29)
    assert found["stopped"] == found["runs"] > 10
    assert found["differences"] == [] and found["wrong_endings"] == []


def test_a_full_disk_ends_a_training_in_one_line_and_loses_nothing():
    """From an operation on nothing can be written; with space again it goes on as if nothing had been."""
    found = trials("plain", "--full-disk", "--every", 3)
    assert (
        found["runs"] > 40 and found["stopped"] >= found["runs"] - 2
    )  # the last operations remove, which frees
    assert found["differences"] == [] and found["wrong_endings"] == []
