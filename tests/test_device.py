"""What a process has held is told in one unit on every system."""

import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from patchword.device import peak_mebibytes


def test_the_peak_counts_what_was_held():
    """64 MiB that are held and given back are in the peak, in MiB."""
    before = max(peak_mebibytes(), psutil.Process().memory_info().rss / 2**20)
    held = np.ones(64 * 2**20, np.uint8)
    held_now = psutil.Process().memory_info().rss / 2**20
    del held
    assert held_now - 1 <= peak_mebibytes() < before + 64 + 64


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_linux_counts_kibibytes_and_macos_bytes(monkeypatch, system, unit):
    used = SimpleNamespace(
        RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    )
    monkeypatch.setitem(sys.modules, "resource", used)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_mebibytes() == 300


def test_windows_has_no_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # its import fails, as on Windows
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(
        "patchword.device.psutil.Process",
        lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=300 * 2**20)),
    )
    assert peak_mebibytes() == 300
