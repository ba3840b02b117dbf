"""Memory that is free but not yet given back to the system, and memory that need not be looked through."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache


def trim() -> None:
    """Have the C library return what is free to the system, where it can (glibc): after many small
    allocations, as a picture of many tiles makes them, it keeps hundreds of megabytes."""
    function = _function()
    if function is not None:
        function(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Work that makes millions of small objects without cycles, such as tuples of numbers, and drops them
    soon: Python's garbage collector would look through those that are alive every few thousand and find
    nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@cache
def _function() -> Callable[[int], int] | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return getattr(library, "malloc_trim", None)  # other C libraries have none
