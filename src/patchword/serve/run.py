"""Starts the service and ends it in order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from threading import Timer
from types import FrameType
from typing import Any

import uvicorn

from patchword.errors import ConfigError
from patchword.serve.connections import bounded_protocol
from patchword.serve.guards import is_loopback
from patchword.serve.limits import Limits
from patchword.serve.memory import settle

_LEAST_TOKEN = 16
_SWITCH = 0.0005
"""Seconds after which a thread lets others have the interpreter (Python's own: 0.005): the model takes it
anew for each of a thousand operations, and a flood of requests would make it wait as often."""


def check_address(host: str, token: str | None) -> None:
    """Raises ConfigError where others could reach the service without a token, or with a weak one."""
    if token is not None and (
        len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token
    ):
        do = 'make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        raise ConfigError(
            f"the token must be at least {_LEAST_TOKEN} printable ASCII characters without spaces; {do}"
        )
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} opens the service to other machines: give --token (or PATCHWORD_TOKEN), which "
            "every request must carry, "
            "or stay on 127.0.0.1"
        )


def take_port(host: str, port: int) -> socket.socket:
    """The address, taken from this moment on and answered only once `serve` runs. Raises ConfigError where it
    cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        try:
            if os.name != "nt":  # there this would let two programs have one port
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        do = f"choose another by --port, for instance --port {port + 1 if port < 65535 else port - 1}"
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): another program may have "
            f"the port; {do}"
        ) from error
    return taken


class _AnnouncingServer(uvicorn.Server):
    """A server that says when requests are answered, and not before, and that tells the service of the end as
    soon as a signal asks for it, not only when the last request is done."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None], most: float
    ) -> None:
        """`most`: seconds after a signal at which the process is gone, whatever is still running."""
        super().__init__(config)
        self._ready, self._ending, self._most = ready, ending, most

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the main thread by a signal."""
        self._ending()
        watch = Timer(self._most, os._exit, (0,))  # a batch of the model cannot be interrupted
        watch.daemon = True
        watch.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts as uvicorn does, and then calls `ready`."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def serve(
    app: Any,
    taken: socket.socket,
    limits: Limits,
    ready: Callable[[], None],
    end_soon: Callable[[], None] | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; then take nothing new, finish what has been taken, for
    `limits.stop_seconds` at most, and return.

    `ready` is called when the first request would be answered, `end_soon` by a signal (where left out, that
    of the service in the application). The address is for the caller to check (`check_address`) and to take
    (`take_port`).
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    settle()
    sys.setswitchinterval(_SWITCH)
    # uvicorn raises the signal again at its end; an orderly end has exit status 0.
    signal.signal(signal.SIGTERM, leave)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        loop="asyncio",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.body_seconds),
        timeout_graceful_shutdown=int(limits.stop_seconds) + 1,
        log_level="warning",
    )
    ending = app.state.service.end_soon if end_soon is None else end_soon
    _AnnouncingServer(config, ready, ending, limits.stop_seconds + 1).run(sockets=[taken])
