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
from patchword.serve.fairness import Client
from patchword.serve.forms import file_of_form
from patchword.serve.limits import Limits
from patchword.serve.memory import Trimming
from patchword.serve.refusals import ClientGone, Refusal, full

_KINDS = "JPEG, PNG, WebP, HEIC, AVIF, GIF, TIFF or BMP"
_HOW = "as the body itself, or as the file 'image' of multipart/form-data"
_CLOSE = {"Connection": "close"}  # what is left of the body is not read
_DRAINED = 4  # a declared body of up to so many times the limit is read and forgotten before it is refused

Result = TypeVar("Result")


class BodyBudget:
    """Bytes of bodies in memory, of all requests together, and how fast they come in."""

    def __init__(self, limits: Limits) -> None:
        self.bytes, self.most = 0, limits.held_bytes
        self._limits, self._next, self._trimming = limits, 0.0, Trimming()

    def saw(self, length: int) -> None:
        """So many bytes of a body, or of a picture, are in memory for a while."""
        if length > self._limits.short_bytes:
            self._trimming.give_back()

    async def take(self, length: int, so_far: int) -> None:
        """Count a piece of a body of which there are `so_far` bytes. Those of long bodies come in at a rate:
        whoever sends them again and again would otherwise take the processor from others. Raises `Refusal`
        where all bodies together are too much."""
        self.bytes += length
        if self.bytes > self.most:
            raise full(self._limits.retry_seconds, _CLOSE)
        if length and so_far > self._limits.short_bytes:
            now = asyncio.get_running_loop().time()
            self._next = max(self._next, now) + length / self._limits.intake_bytes
            await asyncio.sleep(self._next - now)

    def release(self, body: bytearray) -> None:
        """A body is not needed any more: its memory is free at once, though an error or a task that nobody
        has collected yet may still refer to it."""
        self.bytes -= len(body)
        try:
            body.clear()
        except BufferError:  # a decoder that will be ended is still being told of it
            return


async def read_body(request: Request, limit: int, limits: Limits, held: BodyBudget) -> bytearray:
    """The whole body. Raises `Refusal` above `limit` bytes (by the declared length at once), when it takes
    too long, or when the bodies of all requests together are too much. The caller releases it
    when it is done with it."""
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


async def _collect(request: Request, limit: int, limits: Limits, held: BodyBudget) -> bytearray:
    chunks: list[bytes] = []  # one long buffer would be copied again and again as it grows
    length = 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            length += len(chunk)
            await held.take(len(chunk), length)
            if length > limit:
                raise _too_large(limit)
        held.saw(length)
        return bytearray().join(chunks)
    except BaseException:  # cancelled by the deadline as well
        held.bytes -= length
        chunks.clear()
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
    request: Request,
    limits: Limits,
    held: BodyBudget,
    decoders: Decoders,
    deadline: float,
    client: Client,
) -> Upright:
    """The picture of a request of `client`: the file part of multipart/form-data, or the whole body, whatever
    other type is declared (curl and Python declare a form where nothing else is said).

    Decoding ends when the client leaves, and at the deadline. Raises `Refusal` and `ClientGone`.
    """
    declared = request.headers.get("content-type", "")
    kind = declared.partition(";")[0].strip().lower()
    body = await read_body(request, limits.body_bytes, limits, held)
    file = body
    try:
        if kind.startswith("multipart/") and not starts_like_a_picture(bytes(body[:16])):
            file = bytearray(await asyncio.to_thread(file_of_form, declared, bytes(body)))
        if not file:
            raise Refusal(422, "empty_upload", "the upload has 0 bytes", f"send a picture {_HOW}")
        found = await unless_gone(request, decoders.decode(file, deadline, client))
        held.saw(3 * found.picture.width * found.picture.height)
        return found
    except PictureError as error:
        raise _refused(error, kind) from error
    finally:
        held.release(body)


def _refused(error: PictureError, kind: str) -> Refusal:
    """The answer to an upload that is not decoded; `kind` is its declared type."""
    if isinstance(error, PictureTooLarge):
        return Refusal(413, "too_many_pixels", str(error), "make the picture smaller first")
    if isinstance(error, NotAPicture):
        message = "the upload is not a picture of a known kind, whatever its name or type says"
        # Who sends bytes as bytes, as the page does, knows how it is done.
        how = "" if kind == "application/octet-stream" else f", {_HOW}"
        do = f"send {_KINDS} (SVG is not drawn){how}"
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
