"""Who is next: clients take turns by how much they have cost, so that one whose pictures are slow, or who
sends many, slows mostly itself.

Fair queueing (Demers, Keshav and Shenker 1989; start tags by Goyal, Vin and Cheng 1996, section 2): a
client's next request has a start tag, which is the end of its last one or, where it was away, the tag of
what is being done; its end tag is later by what it is guessed to cost, by its client's last ones. The least
end tag goes first, so that of two who have had nothing yet the quick one does not wait for the slow one. What
a request took is added to its client's end when it is over: tags are of the moment, not of when it came.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Client = tuple[str, int]
"""Address and port; port 0 for all connections of the address that are new."""

_KNOWN = 1024
"""Connections that are remembered; many more than may be open."""
_GUESS = 0.1
"""Seconds that the first request of a client is taken to cost until it has been seen."""
_NEW = 2.0
"""How many times the time of new connections counts: who opens one for each request has a smaller share than
others, who are known and wait for one answer after the other."""


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


def _cost(client: Client, seconds: float) -> float:
    """What so many seconds count."""
    return seconds * _NEW if client[1] == 0 else seconds


class Turn(NamedTuple):
    """A request that waits, or has its turn."""

    number: int
    """In which order they came."""
    client: Client


class Turns:
    """Who is next of the requests that wait for one thing: a decoder, or the model."""

    def __init__(self, about_seconds: float) -> None:
        """A client is about that waits, has its turn, or had it so long ago at most."""
        self._about_seconds = about_seconds
        self._now, self._number = 0.0, 0
        self._open: Counter[Client] = Counter()
        self._seen: dict[Client, float] = {}
        self._ends: OrderedDict[Client, float] = OrderedDict()
        self._guesses: dict[Client, float] = {}
        self._begun: dict[Turn, float] = {}

    def guess(self, client: Client) -> float:
        """Seconds that a request of this client will cost, by its last ones."""
        return self._guesses.get(client, _GUESS)

    def enter(self, client: Client) -> Turn:
        """A request that waits from now on. `leave` must follow."""
        if not self._open[client]:  # whoever was away has saved nothing
            self._ends[client] = max(self._now, self._ends.get(client, 0.0))
            self._ends.move_to_end(client)
            self._forget()
        self._open[client] += 1
        self._number += 1
        return Turn(self._number, client)

    def in_order(self, waiting: Iterable[Turn]) -> list[Turn]:
        """Those that wait, the next one first. What a client has cost until now counts for all that it has
        waiting: tags that were given when its requests came would be those of a guess, and sixty slow
        requests that came at once would all be taken for quick ones."""
        ahead: Counter[Client] = Counter()
        tags: dict[Turn, float] = {}
        for turn in sorted(waiting):
            ahead[turn.client] += 1
            tags[turn] = self._end(turn.client, ahead[turn.client])
        return sorted(tags, key=lambda turn: (tags[turn], turn.number))

    def alone(self, client: Client) -> bool:
        """Whether nobody else is about."""
        since = time.monotonic() - self._about_seconds
        self._seen = {one: when for one, when in self._seen.items() if when > since}
        return not {*self._open, *self._seen} - {client}

    def are_awaited(self, clients: Iterable[Client], turn: Turn) -> bool:
        """Whether requests of all these clients would have their turn before this one, and some have none."""
        last = max(self._end(client, 1) for client in clients)
        return last < self._end(turn.client, 1) and not all(self._open[client] for client in clients)

    def begin(self, turn: Turn) -> None:
        """It is its turn, and counts as what is guessed until it is over."""
        self._now = max(self._now, self._ends[turn.client])
        self._begun[turn] = _cost(turn.client, self.guess(turn.client))
        self._ends[turn.client] += self._begun[turn]

    def leave(self, turn: Turn, seconds: float) -> None:
        """It is over, or not wanted any more, and has cost so much (0: it never had its turn)."""
        client = turn.client
        self._ends[client] += _cost(client, seconds) - self._begun.pop(turn, 0.0)
        if seconds:
            self._guesses[client] = (self._guesses.get(client, seconds) + seconds) / 2
            self._seen[client] = time.monotonic()
        self._open[client] -= 1
        self._open += Counter()  # forgets those that have none

    def _end(self, client: Client, count: int) -> float:
        """The end tag of so many further requests of a client; of one that was forgotten the last of all."""
        return self._ends.get(client, math.inf) + count * _cost(client, self.guess(client))

    def _forget(self) -> None:
        """Clients that have been away the longest, where they are too many."""
        away = (client for client in list(self._ends) if not self._open[client])
        for client in away if len(self._ends) > _KNOWN else ():
            del self._ends[client]
            self._guesses.pop(client, None)
            if len(self._ends) <= _KNOWN:
                return
