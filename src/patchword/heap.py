"""Memory that is free but not yet given back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Have the C library return what is free to the system, where it can (glibc): after many small
    allocations, as a picture of many tiles makes them, it keeps hundreds of megabytes."""
    function = _function()
    if function is not None:
        function(0)


@cache
def _function() -> Callable[[int], int] | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return getattr(library, "malloc_trim", None)  # other C libraries have none
