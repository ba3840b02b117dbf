"""What keeps the service's memory small: garbage is found soon, and free memory goes back to the system."""

from __future__ import annotations

import asyncio
import gc

from patchword.heap import trim

_APART = 1.0
"""Seconds between two times at which memory is given back: the model needs some of it again, and a page that
was given back costs time when it is taken (2 % of a processor at this rate)."""
_LINGER = 10.0
"""Seconds for which it is done after something large came."""


def settle() -> None:
    """Once everything is loaded: what is there stays, so that looking for garbage is quick and is done often.
    Requests that fail leave cycles of errors and tasks, which hold pictures until then."""
    gc.collect()
    gc.freeze()


class Trimming:
    """Returns what is free to the system while there is something.

    To be used within one event loop."""

    def __init__(self) -> None:
        self._until = 0.0
        self._next: asyncio.TimerHandle | None = None

    def give_back(self) -> None:
        """Something large was read: until its request is answered, and a while longer, free memory is given
        back now and then."""
        loop = asyncio.get_running_loop()
        self._until = loop.time() + _LINGER
        if self._next is None:
            self._next = loop.call_later(_APART, self._now, loop)

    def _now(self, loop: asyncio.AbstractEventLoop) -> None:
        trim()
        again = loop.time() < self._until
        self._next = loop.call_later(_APART, self._now, loop) if again else None
