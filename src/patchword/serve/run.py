"""Starts the service and ends it in order."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from patchword.errors import ConfigError
from patchword.serve.connections import bounded_protocol
from patchword.serve.guards import is_loopback
from patchword.serve.limits import Limits

_LEAST_TOKEN = 16


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


def serve(app: ASGIApp, host: str, port: int, limits: Limits) -> None:
    """Answers requests until SIGINT or SIGTERM, then finishes accepted requests and returns.

    The caller must check the address first (`check_address`).
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    # uvicorn raises the signal again at its end; an orderly end has exit status 0.
    signal.signal(signal.SIGTERM, leave)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=bounded_protocol(limits),
        ws="none",
        loop="asyncio",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.body_seconds),
        timeout_graceful_shutdown=int(limits.deadline_seconds + limits.body_seconds) + 1,
        log_level="warning",
    )
    uvicorn.Server(config).run()
