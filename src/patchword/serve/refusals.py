"""Requests that are not served: one JSON shape for all, which says what to do, and never a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from patchword.html.page import clean


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    """A stable code for programs."""
    message: str
    """What was found and what was expected."""
    do: str
    """What to do about it."""


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


class Refusal(Exception):
    """An error that becomes the JSON response {"error": {"code", "message", "do"}} with its HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, do: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.do, self.headers = status, code, message, do, headers or {}

    def body(self) -> dict:
        """The body of the response."""
        return {"error": {"code": self.code, "message": clean(self.message), "do": clean(self.do)}}

    def response(self) -> JSONResponse:
        """The response with its HTTP status."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


class ClientGone(Exception):
    """The client closed its connection, so nobody waits for the answer."""


def full(retry_seconds: int, more: dict[str, str] | None = None) -> Refusal:
    """The queue is full."""
    wait = {"Retry-After": str(retry_seconds), **(more or {})}
    return Refusal(
        503,
        "queue_full",
        "as many requests as allowed are waiting already",
        f"try again in {retry_seconds} seconds",
        wait,
    )


def stopping(retry_seconds: int) -> Refusal:
    """The service is ending."""
    wait = {"Retry-After": str(retry_seconds)}
    return Refusal(
        503,
        "stopping",
        "the service is ending and takes nothing new",
        "try again when it has been started again",
        wait,
    )


def too_late(seconds: float) -> Refusal:
    """The deadline of a request has passed."""
    return Refusal(
        504,
        "deadline",
        f"there was no answer within {seconds:g} seconds",
        "try again later, or with fewer beams",
    )


def unknown_words(error: Exception) -> Refusal:
    """A text without a word that the model knows."""
    return Refusal(422, "unknown_words", str(error), "use other words")


def configured(ability: object, what: str, does: str) -> None:
    """Raises `Refusal` where a service was started without an ability."""
    if ability is None:
        do = f"start or use a service that {does}; GET /models says which can"
        raise Refusal(404, "not_configured", f"this service was started without {what}", do)


def invalid_request(errors: Sequence[Any]) -> Refusal:
    """Says where and what, without repeating what the client sent; `errors` are those of pydantic."""
    said = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}" for error in errors[:5])
    return Refusal(422, "invalid_request", said, "GET /openapi.json says what each path takes")


def internal() -> Refusal:
    """A fault of the service itself."""
    return Refusal(
        500,
        "internal",
        "the service met an error of its own; its log says which",
        "tell the person who runs the service",
    )
