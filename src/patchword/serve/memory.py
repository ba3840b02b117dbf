"""What keeps the service's memory small: garbage is found soon, and free memory goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
import time

_APART = 1.0
"""Seconds between two times at which memory is given back: the model needs some of it again, and a page that
was given back costs time when it is taken."""


def settle() -> None:
    """Once everything is loaded: what is there stays, so that looking for garbage is quick and is done often.
    Requests that fail leave cycles of errors and tasks, which hold pictures until then."""
    gc.collect()
    gc.freeze()


class Trimming:
    """Has the C library return what is free to the system, where it can (glibc)."""

    def __init__(self) -> None:
        self._last = 0.0
        library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self._trim = getattr(library, "malloc_trim", None)  # other C libraries have none

    def give_back(self) -> None:
        """Not more than once in `_APART` seconds."""
        now = time.monotonic()
        if self._trim is not None and now - self._last >= _APART:
            self._last = now
            self._trim(0)
