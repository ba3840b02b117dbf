"""Memory that is free but not yet given back to the system, and memory that need not be looked through."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache


def trim() -> None:
    """Have the C library return what is free to the system, where it can (glibc): after many small
    allocations, as a picture of many tiles makes them, it keeps hundreds of megabytes."""
    function = _function("malloc_trim")
    if function is not None:
        function(0)


def keep() -> None:
    """Have the C library keep what a model frees for what it takes next, 256 MiB at the end of its heap at
    most (glibc), where nobody has set that by a variable. Otherwise it gives maps of some megabytes back
    after each operation and takes them again page by page: 3,300 page faults for each caption."""
    function = _function("mallopt")
    if function is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        function(_MAP_FROM, 2**27)
        function(_TRIM_FROM, 2**28)


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


_TRIM_FROM, _MAP_FROM = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""


@cache
def _function(name: str) -> Callable[..., int] | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return getattr(library, name, None)  # other C libraries have none
