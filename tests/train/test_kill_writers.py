"""Killed at any operation on its files, what writes a file or a folder leaves the old one or the new one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_writers.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks of one process")
@pytest.mark.timeout(600)
def test_what_is_written_is_whole_after_a_kill_at_any_operation():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, SCRIPT, "table", "codebook", "save", "export"], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for kind, found in json.loads(finished.stdout.splitlines()[-1]).items():
        assert found["kills"] == found["operations"] > 2, kind
        assert found["halves"] == found["differences"] == found["left_behind"] == [], kind
