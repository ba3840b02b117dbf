"""Processes that decode the pictures of requests, so that none can hold up the service.

Decoders are C code that no thread can interrupt; a process can be ended. Each has one picture at a time, is
ended when that picture's deadline passes or its client has left, and is replaced. Before a picture is decoded
its process says what that will hold, and waits until all pictures together stay within one budget.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

import patchword
from patchword.data.headers import Bounds
from patchword.errors import NotAPicture, PictureError, PictureTooLarge
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import stopping, too_late

_ERRORS = {kind.__name__: kind for kind in (PictureError, NotAPicture, PictureTooLarge)}
_GRACE = 1.0
"""Seconds in which the picture of a client that has left may still be finished: starting a process costs as
much as decoding many pictures."""


Result = TypeVar("Result")


class Upload(NamedTuple):
    """The picture of a request, upright and perhaps reduced, and the size at which it was sent."""

    picture: Image.Image
    width: int
    height: int


class _DecoderGone(Exception):
    """The process is gone."""


class Decoder:
    """One process (`data/worker.py`) and the pipes to it. Its methods block; they belong into a thread."""

    def __init__(self) -> None:
        package = str(Path(patchword.__file__).parents[1])
        paths = os.pathsep.join([package, *(path for path in sys.path if path)])
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "patchword.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def begin(self, body: bytes, bounds: Bounds) -> int:
        """Send a picture; the bytes that decoding it will hold. Raises `PictureError`."""
        head = json.dumps({"bounds": asdict(bounds), "bytes": len(body)}).encode()
        self._send(head + b"\n", body)
        return self._answer()["held"]

    def finish(self) -> Upload:
        """Have it decoded. Raises `PictureError`."""
        self._send(b"\n")
        answer = self._answer()
        width, height = answer["size"]
        pixels = self._stdout.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            raise _DecoderGone
        return Upload(Image.frombytes("RGB", (width, height), pixels), *answer["stored"])

    def _send(self, *parts: bytes) -> None:
        try:
            for part in parts:
                self._stdin.write(part)
            self._stdin.flush()
        except OSError as error:
            raise _DecoderGone from error

    def _answer(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise _DecoderGone
        answer = json.loads(line)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer

    def kill(self) -> None:
        """End the process, whatever it does; a thread that waits for it is told."""
        self._process.kill()

    def close(self) -> None:
        """After `kill`, when no thread waits for it any more."""
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            try:
                pipe.close()
            except OSError:  # what was not yet written to a process that is gone
                continue


class Decoders:
    """Some processes and the budget of all; each is started when it is first needed.

    To be made and used within one event loop."""

    def __init__(self, limits: Limits, numbers: Numbers) -> None:
        self._limits, self._numbers = limits, numbers
        self._bounds = Bounds(
            file_bytes=limits.body_bytes,
            pixels=limits.pixels,
            decoded_bytes=limits.decoding_bytes,
            scans=limits.scans,
            raw=False,
        )
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="patchword-decode")
        self._free = asyncio.Semaphore(limits.decoders)
        self._idle: list[Decoder] = []
        self._busy: set[Decoder] = set()
        self._held = 0
        self._released = asyncio.Event()
        self._pending: set[asyncio.Task] = set()
        self._settling: set[asyncio.Task] = set()
        self.closing = False

    async def decode(self, body: bytes, deadline: float) -> Upload:
        """The picture of a request. `deadline` is a time of the event loop's clock.

        Raises:
            Refusal: the deadline has passed, or the service is ending.
            PictureError: no picture, too large, or damaged.
        """
        left = deadline - asyncio.get_running_loop().time()
        task = asyncio.ensure_future(self._decode(body))
        self._pending.add(task)
        try:
            done, _ = await asyncio.wait({task}, timeout=max(left, 0))
            if self.closing and (not done or task.cancelled() or task.exception() is not None):
                raise stopping(self._limits.retry_seconds)
            if not done:
                raise too_late(self._limits.deadline_seconds)
            return task.result()
        finally:
            self._pending.discard(task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _decode(self, body: bytes) -> Upload:
        await self._free.acquire()
        try:
            decoder = self._idle.pop() if self._idle else Decoder()
        except BaseException:
            self._free.release()
            raise
        self._busy.add(decoder)
        lease = _Lease(decoder)
        try:
            held = await self._in_thread(lease, decoder.begin, body, self._bounds)
            lease.in_step = False  # it waits to be told to go on
            while self._held and self._held + held > self._limits.decoding_bytes:
                self._released.clear()
                await self._released.wait()
            self._held, lease.held = self._held + held, held
            found = await self._in_thread(lease, decoder.finish)
            lease.in_step = True
        except PictureError:
            lease.in_step = True
            raise
        except _DecoderGone as error:
            lease.in_step = False
            said = "its decoder broke down. Save the picture again, or send another one."
            raise PictureError(f"the upload: {said}") from error
        finally:
            settling = asyncio.ensure_future(self._settle(lease))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
        return found

    async def _in_thread(self, lease: _Lease, work: Callable[..., Result], *arguments: object) -> Result:
        """What a method of the decoder gives; cancelling leaves it running, for `_settle` to see to."""
        lease.work = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        return await asyncio.shield(lease.work)

    async def _settle(self, lease: _Lease) -> None:
        """Take a decoder back. One whose picture is not wanted any more has a moment to finish, then it is
        ended, and another one is started when it is needed."""
        decoder, work = lease.decoder, lease.work
        if work is not None and not work.done():
            if lease.held and not self.closing:
                await asyncio.wait({work}, timeout=_GRACE)
                lease.in_step = work.done() and work.exception() is None
            else:
                lease.in_step = False
        if lease.in_step and not self.closing:
            self._idle.append(decoder)
        else:
            decoder.kill()
            self._numbers.decoders_ended += not self.closing
            if work is not None:
                await asyncio.wait({work})
                work.exception()  # nobody else asks for it
            await asyncio.get_running_loop().run_in_executor(self._threads, decoder.close)
        self._busy.discard(decoder)
        self._held -= lease.held
        self._released.set()
        self._free.release()

    def end(self) -> None:
        """End every process at once; requests that wait for one are told that the service is ending."""
        self.closing = True
        for task in self._pending:
            task.cancel()
        for decoder in [*self._busy, *self._idle]:
            decoder.kill()

    async def close(self) -> None:
        """End every process and let go of what is left."""
        self.end()
        await asyncio.gather(*self._settling, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for decoder in self._idle:
            await loop.run_in_executor(self._threads, decoder.close)
        self._threads.shutdown()


class _Lease:
    """A decoder on loan to one picture."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.work: asyncio.Future | None = None
        self.held = 0
        """What it takes off the budget."""
        self.in_step = True
        """Whether it waits for a new picture, as far as is known."""
