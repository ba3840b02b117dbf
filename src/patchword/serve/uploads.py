"""From a request to a picture: the body within its limits, the picture out of it by content, all in memory.

Neither the name of a file nor its declared type decides anything, no address is fetched, and nothing is
written to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from patchword.data.headers import starts_like_a_picture
from patchword.data.isolated import Upright
from patchword.errors import NotAPicture, PictureError, PictureTooLarge
from patchword.serve.decoders import Decoders
from patchword.serve.forms import file_of_form
from patchword.serve.limits import Limits
from patchword.serve.refusals import ClientGone, Refusal, full

_DO = "send the picture itself as the body, or as the file 'image' of multipart/form-data"
_CLOSE = {"Connection": "close"}  # what is left of the body is not read
_DRAINED = 4  # a declared body of up to so many times the limit is read and forgotten before it is refused

Result = TypeVar("Result")


class BodyBudget:
    """Bytes of bodies in memory, of all requests together."""

    def __init__(self, most: int) -> None:
        self.bytes, self.most = 0, most


async def read_body(request: Request, limit: int, limits: Limits, held: BodyBudget) -> bytes:
    """The whole body. Raises `Refusal` above `limit` bytes (by the declared length at once), when it takes
    too long, or when the bodies of all requests together are too much. The caller takes its length off
    `held` when it is done with it."""
    declared = request.headers.get("content-length", "")
    try:
        if declared.isdigit() and int(declared) > limit:
            if int(declared) <= _DRAINED * limit and "expect" not in request.headers:
                await asyncio.wait_for(_drain(request), limits.body_seconds)
            raise _too_large(limit)
        return await asyncio.wait_for(_collect(request, limit, limits, held), limits.body_seconds)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise Refusal(
            408,
            "slow_body",
            message,
            "send it again over a faster connection, or make the picture smaller",
            _CLOSE,
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


async def _collect(request: Request, limit: int, limits: Limits, held: BodyBudget) -> bytes:
    chunks: list[bytes] = []  # one long buffer would be copied again and again as it grows
    length = 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            length += len(chunk)
            held.bytes += len(chunk)
            if length > limit:
                raise _too_large(limit)
            if held.bytes > held.most:
                raise full(limits.retry_seconds, _CLOSE)
        return b"".join(chunks)
    except BaseException:  # cancelled by the deadline as well
        held.bytes -= length
        raise


async def _drain(request: Request) -> None:
    """Read and forget: a client that sends its whole body first would otherwise meet a broken connection in
    place of the answer."""
    async for _ in request.stream():
        pass


def _too_large(limit: int) -> Refusal:
    allowed = f"{limit / 2**20:g} MB" if limit >= 2**20 else f"{limit} bytes"
    return Refusal(
        413, "body_too_large", f"the body is larger than {allowed}", "send a smaller picture", _CLOSE
    )


async def read_picture(
    request: Request, limits: Limits, held: BodyBudget, decoders: Decoders, deadline: float
) -> Upright:
    """The picture of a request: the file part of multipart/form-data, or the whole body, whatever other
    type is declared (curl and Python declare a form where nothing else is said).

    Decoding ends when the client leaves, and at the deadline. Raises `Refusal` and `ClientGone`.
    """
    declared = request.headers.get("content-type", "")
    kind = declared.partition(";")[0].strip().lower()
    body = await read_body(request, limits.body_bytes, limits, held)
    length = len(body)
    try:
        if kind.startswith("multipart/") and not starts_like_a_picture(body[:16]):
            body = await asyncio.to_thread(file_of_form, declared, body)
        if not body:
            raise Refusal(422, "empty_upload", "the upload has 0 bytes", _DO)
        return await unless_gone(request, decoders.decode(body, deadline))
    except PictureError as error:
        raise _refused(error, kind) from error
    finally:
        held.bytes -= length


def _refused(error: PictureError, kind: str) -> Refusal:
    """The answer to an upload that is not decoded; `kind` is its declared type."""
    if isinstance(error, PictureTooLarge):
        return Refusal(413, "too_many_pixels", str(error), "make the picture smaller first")
    if isinstance(error, NotAPicture):
        message = "the upload is not a picture of a known kind, whatever its name or type says"
        do = f"{_DO}: JPEG, PNG, WebP, HEIC, AVIF, GIF, TIFF or BMP (SVG is not drawn)"
        return Refusal(415, "not_a_picture", message, do)
    do = "save the picture again, or send another one"
    if kind == "application/x-www-form-urlencoded":
        do += "; curl leaves bytes out with --data: use --data-binary"
    return Refusal(422, "damaged_picture", str(error), do)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away. The body must have been read.
    Raises `ClientGone`."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for unneeded in (task, gone):
            unneeded.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
