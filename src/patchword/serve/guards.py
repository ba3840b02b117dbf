"""Checks every request: who may ask, the security headers, the count, and the last catch for errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchword.serve.fairness import Clients
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import ClientGone, Refusal, internal

log = logging.getLogger("patchword.serve")

# These reveal nothing and cost nothing.
_OPEN = frozenset({"/", "/page.js", "/words.js", "/page.css", "/health", "/ready"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """True where the host is this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Pace:
    """Lets so many a second pass: whoever is refused, or told facts, and asks again at once would otherwise
    take the processor from those whose pictures are looked at."""

    def __init__(self, per_second: float, at_once: int, most: float) -> None:
        """`at_once` need not wait after a time without any; nobody waits longer than `most` seconds."""
        self._seconds, self._most = 1 / per_second, most
        self._burst = at_once * self._seconds
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        now = asyncio.get_running_loop().time()
        self._next = min(max(self._next + self._seconds, now - self._burst), now + self._most)
        await asyncio.sleep(max(self._next - now, 0))


class Guard:
    """ASGI middleware.

    With a `token`, requests must send it as `Authorization: Bearer`. Without one, the service listens on
    loopback only, and the Host header of a request must name loopback; a page of another site that resolves
    its own name to 127.0.0.1 does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        numbers: Numbers,
        paths: frozenset[str],
        limits: Limits,
        clients: Clients,
        ending: Callable[[], bool],
    ) -> None:
        """`clients` is told who was answered; `ending`: whether the service ends, when nothing waits any
        more."""
        self.app, self.token, self.numbers, self.paths = app, token, numbers, paths
        self._clients, self._ending = clients, ending
        self._refusals = _Pace(limits.refusals_per_second, limits.refusals_at_once, limits.refusal_seconds)
        self._reads = _Pace(limits.reads_per_second, limits.reads_at_once, limits.read_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if scope["method"] == "POST" and status < 400:
                    self._clients.answered(scope)
                elif not self._ending():
                    await (self._refusals if scope["method"] == "POST" else self._reads).turn()
                headers = MutableHeaders(scope=message)
                kept = headers.get("Cache-Control")
                for name, value in _HEADERS.items():
                    headers[name] = value
                if kept is not None and status < 400:
                    headers["Cache-Control"] = (
                        kept  # small copies of pictures may be kept by the browser that asked
                    )
            await send(message)

        try:
            refused = await self._refused(scope, receive, send_guarded)
            if refused is not None and not status:
                await refused(scope, receive, send_guarded)
        except ClientGone:
            status = 499
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.numbers.answered(path, status, time.perf_counter() - began)

    async def _refused(self, scope: Scope, receive: Receive, send: Send) -> JSONResponse | None:
        """Let the application answer. Returns the answer that is left to be sent where it did not: without
        its error, which would keep the request's body in memory until then."""
        try:
            self._admit(scope)
            await self.app(scope, receive, send)
        except ClientGone:
            raise
        # The last catch: the answer has no traceback; the log has it.
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else internal()
            if refusal is not error:
                log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            return refusal.response()
        return None

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(
                403,
                "other_site",
                "the request comes from a page of another site",
                "use the page of this service, or no browser",
            )
        if self.token is None:
            if not is_loopback(_name(host)):
                raise Refusal(
                    403,
                    "wrong_host",
                    "the request names another host",
                    "call the service as 127.0.0.1 or localhost",
                )
            return
        given = headers.get("authorization", "").encode()
        if scope["path"] not in _OPEN and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refusal(
                401,
                "token",
                "the token is missing or wrong",
                "send the header 'Authorization: Bearer TOKEN'",
                challenge,
            )


def _name(host: str) -> str:
    """Returns the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
