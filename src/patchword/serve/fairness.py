"""Who is next: clients take turns by how much they have cost, so that one whose pictures are slow, or who
sends many, slows mostly itself.

Start-time fair queueing (Goyal, Vin and Cheng 1996, section 2): every request gets a start tag, which is the
end of its client's last one or, where that is past, the tag of what is being done; what it took is added to
its client's end. The least tag goes first.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

Client = tuple[str, int]
"""Address and port; port 0 for all connections of the address that are new."""

_KNOWN = 1024
"""Connections that are remembered; many more than may be open."""
_GUESS = 0.05
"""Seconds that the first request of a client is taken to cost until it has been seen."""


class Clients:
    """Tells clients apart by their connections.

    One that has been answered is a client of its own. All new ones of an address are one client together:
    whoever opens another connection for each request would otherwise be a new client each time, that has cost
    nothing yet."""

    def __init__(self) -> None:
        self._known: OrderedDict[Client, None] = OrderedDict()

    def of(self, scope: Mapping[str, Any]) -> Client:
        """The client of an ASGI request."""
        found = _connection(scope)
        return found if found in self._known else (found[0], 0)

    def answered(self, scope: Mapping[str, Any]) -> None:
        """A request of this connection was answered as it wished."""
        found = _connection(scope)
        self._known[found] = None
        self._known.move_to_end(found)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)


def _connection(scope: Mapping[str, Any]) -> Client:
    address, port = scope.get("client") or ("", 0)  # a Unix socket has neither
    return str(address), int(port or 0)


class Turn(NamedTuple):
    """A request's place among all that wait for the same thing."""

    start: float
    number: int
    """In which order they came: equal tags go by it."""
    client: Client
    guessed: float
    """Seconds that it was taken to cost."""


class Turns:
    """The tags of requests that wait for one thing: a decoder, or the model."""

    def __init__(self, about_seconds: float) -> None:
        """A client is about that waits, has its turn, or had it so long ago at most."""
        self._about_seconds = about_seconds
        self._now, self._number = 0.0, 0
        self._open: Counter[Client] = Counter()
        self._seen: dict[Client, float] = {}
        self._ends: dict[Client, float] = {}
        self._guesses: dict[Client, float] = {}

    def guess(self, client: Client) -> float:
        """Seconds that a request of this client will cost, by its last ones."""
        return self._guesses.get(client, _GUESS)

    def enter(self, client: Client) -> Turn:
        """A request that waits from now on. `leave` must follow."""
        guess = self.guess(client)
        start = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = start + guess
        self._open[client] += 1
        self._number += 1
        return Turn(start, self._number, client, guess)

    def alone(self, client: Client) -> bool:
        """Whether nobody else is about."""
        since = time.monotonic() - self._about_seconds
        self._seen = {one: when for one, when in self._seen.items() if when > since}
        return not {*self._open, *self._seen} - {client}

    def begin(self, turn: Turn) -> None:
        """It is its turn."""
        self._now = max(self._now, turn.start)

    def leave(self, turn: Turn, seconds: float) -> None:
        """It is over, or not wanted any more, and has cost so much (0: it never had its turn)."""
        client = turn.client
        if client in self._ends:
            self._ends[client] += seconds - turn.guessed
        if seconds:
            self._guesses[client] = (self._guesses.get(client, seconds) + seconds) / 2
            self._seen[client] = time.monotonic()
        self._open[client] -= 1
        self._open += Counter()  # forgets those that have none
        if not self._open:  # nobody waits: what was is forgotten
            self._now = 0.0
            self._ends.clear()
            self._guesses.clear()
        elif len(self._ends) > _KNOWN:
            self._ends = {one: end for one, end in self._ends.items() if end > self._now}
            self._guesses = {one: guess for one, guess in self._guesses.items() if one in self._ends}
