"""Limits connections: how many are open, and how long one may stay open without a request."""

from __future__ import annotations

import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from patchword.serve.limits import Limits
from patchword.serve.refusals import full


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """Returns uvicorn's HTTP protocol with `limits`.

    A connection beyond the limit is answered with 503 and closed. One that has not sent the whole head of a
    request within `body_seconds` is closed (uvicorn itself waits for ever).
    """

    class BoundedProtocol(H11Protocol):
        _served: RequestResponseCycle | None

        def connection_made(self, transport: Any) -> None:  # a stream's; asyncio declares any transport
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_crowded(limits))
                transport.close()
                return
            self._served = None
            self._watch = self.loop.call_later(limits.body_seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "_watch"):
                self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Closes the connection where nothing began and nothing was answered since the last call.

            It is called every `body_seconds`.
            """
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._served:
                self.transport.close()
                return
            self._served = self.cycle if idle else None
            self._watch = self.loop.call_later(limits.body_seconds, self._look)

    return BoundedProtocol


def _crowded(limits: Limits) -> bytes:
    refusal = full(limits.retry_seconds)
    body = json.dumps(refusal.body()).encode()
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Retry-After: {limits.retry_seconds}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
