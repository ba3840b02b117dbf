"""Processes that decode the pictures of requests, so that none can hold up the service.

Decoders are C code that no thread can interrupt; a process can be ended. Each has one picture at a time, is
ended when that picture's deadline passes or its client has left, and is replaced. Before a picture is decoded
its process says what that will hold. Pictures that hold much are decoded one after the other, by a process of
their own at a lower priority; others do not wait for them. Clients take turns by the time that their pictures
took (`fairness.py`), and none has all processes at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from patchword.data.headers import Bounds
from patchword.data.isolated import Decoder, DecoderGone, Upright
from patchword.errors import PictureError
from patchword.serve.fairness import Client, Turn, Turns
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import stopping, too_late

_GRACE = 1.0
"""Seconds in which the picture of a client that has left may still be finished: starting a process costs as
much as decoding many pictures."""

_STEPS = 5
"""Steps of priority between the model and decoders, and between those of small and of large pictures: who is
answered is not to wait for files that only take time to decode."""

Result = TypeVar("Result")


class Decoders:
    """Processes for small pictures, and one for large ones.

    To be made and used within one event loop."""

    def __init__(self, limits: Limits, numbers: Numbers) -> None:
        self._limits, self._numbers = limits, numbers
        self._bounds = Bounds(
            file_bytes=limits.body_bytes,
            pixels=limits.pixels,
            decoded_bytes=limits.decoding_bytes,
            scans=limits.scans,
            raw=False,
            whole_pixels=limits.whole_pixels,
            least_side=limits.least_side,
        )
        self._threads = ThreadPoolExecutor(limits.decoders + 1, thread_name_prefix="patchword-decode")
        self._small, self._large = _Seats(limits.decoders, limits), _Seats(1, limits, yielding=True)
        self._pending: set[asyncio.Task] = set()
        self._settling: set[asyncio.Task] = set()
        self.closing = False

    async def decode(self, body: bytes | bytearray, deadline: float, client: Client) -> Upright:
        """The picture of a request of `client`. `deadline` is a time of the event loop's clock.

        Raises:
            Refusal: the deadline has passed, or the service is ending.
            PictureError: no picture, too large, or damaged.
        """
        left = deadline - asyncio.get_running_loop().time()
        task = asyncio.ensure_future(self._decode(body, client))
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

    async def _decode(self, body: bytes | bytearray, client: Client) -> Upright:
        for seats in (self._small, self._large):
            found = await self._decode_in(seats, body, client)
            if found is not None:
                return found
        raise PictureError("the upload: it is larger than every decoder takes. Send a smaller one.")

    async def _decode_in(self, seats: _Seats, body: bytes | bytearray, client: Client) -> Upright | None:
        """None where the picture belongs among the large ones."""
        lease = await seats.take(client)
        decoder = lease.decoder
        try:
            seconds = None if seats.yielding else self._limits.small_seconds
            first = seconds if decoder.started else None  # a new process takes its time to start
            lease.beginning = True
            held = await self._in_thread(lease, first, decoder.begin, body, "the upload", self._bounds)
            lease.beginning = False
            if held > self._limits.small_bytes and not seats.yielding:
                await self._in_thread(lease, seconds, decoder.forget)
                lease.in_step = True
                return None
            lease.decoding = True
            found = await self._in_thread(lease, seconds, decoder.finish)
            lease.in_step = True
        except asyncio.TimeoutError:
            lease.beginning = lease.decoding = False  # it is ended, and begun anew where it may take longer
            return None
        except PictureError:
            lease.in_step = True
            raise
        except DecoderGone as error:
            said = "its decoder broke down. Save the picture again, or send another one."
            raise PictureError(f"the upload: {said}") from error
        finally:
            settling = asyncio.ensure_future(self._settle(lease))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
        return found

    async def _in_thread(
        self, lease: _Lease, seconds: float | None, work: Callable[..., Result], *arguments: object
    ) -> Result:
        """What a method of the decoder gives; cancelling leaves it running, for `_settle` to see to. Raises
        `asyncio.TimeoutError` after `seconds`, and leaves it running likewise."""
        lease.work = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        return await asyncio.wait_for(asyncio.shield(lease.work), seconds)

    async def _settle(self, lease: _Lease) -> None:
        """Take a decoder back. One whose picture is not wanted any more has a moment to finish, then it is
        ended, and another one is started when it is needed."""
        decoder, work = lease.decoder, lease.work
        if work is not None and not lease.in_step and (lease.beginning or lease.decoding):
            if not self.closing:
                await asyncio.wait({work}, timeout=_GRACE)
            lease.in_step = work.done() and await self._is_free(lease, work)
        if lease.in_step and not self.closing:
            lease.seats.idle.append(decoder)
        else:
            decoder.kill()
            self._numbers.decoders_ended += not self.closing
            if work is not None:
                await asyncio.wait({work})
                work.exception()  # nobody else asks for it
            await asyncio.get_running_loop().run_in_executor(self._threads, decoder.close)
        lease.seats.leave(lease)

    async def _is_free(self, lease: _Lease, work: asyncio.Future) -> bool:
        """Whether a process whose picture nobody wants any more waits for a new one; where it has read only
        the header, it is told to forget the picture."""
        error = work.exception()
        if error is not None or lease.decoding:
            return error is None or isinstance(error, PictureError)
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, lease.decoder.forget)
        except DecoderGone:
            return False
        return True

    def end(self) -> None:
        """End every process at once; requests that wait for one are told that the service is ending."""
        self.closing = True
        for task in self._pending:
            task.cancel()
        for decoder in [*self._small.all, *self._large.all]:
            decoder.kill()

    async def close(self) -> None:
        """End every process and let go of what is left."""
        self.end()
        await asyncio.gather(*self._settling, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for decoder in [*self._small.idle, *self._large.idle]:
            await loop.run_in_executor(self._threads, decoder.close)
        self._threads.shutdown()


class _Lease:
    """A decoder on loan to one picture."""

    def __init__(self, decoder: Decoder, seats: _Seats, turn: Turn) -> None:
        self.decoder, self.seats, self.turn = decoder, seats, turn
        self.began = asyncio.get_running_loop().time()
        self.work: asyncio.Future | None = None
        self.beginning = self.decoding = False
        """Whether it was told to read the header, and to decode."""
        self.in_step = False
        """Whether it is known to wait for a new picture."""


class _Seats:
    """Some processes; each is started when it is first needed."""

    def __init__(self, count: int, limits: Limits, yielding: bool = False) -> None:
        self.yielding = yielding
        """Whether they have a lower priority than others; all have one that is lower than the model's."""
        self.idle: list[Decoder] = []
        self._busy: set[Decoder] = set()
        self._count = self._free = count
        self._taken: Counter[Client] = Counter()
        self._turns = Turns(limits.about_seconds)
        self._waiting: list[tuple[Turn, asyncio.Future]] = []

    @property
    def all(self) -> list[Decoder]:
        return [*self._busy, *self.idle]

    async def take(self, client: Client) -> _Lease:
        """A process, when it is this client's turn; while others are about, one is left for them."""
        turn = self._turns.enter(client)
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, granted))
        self._grant()
        try:
            await granted
        except BaseException:
            if granted.done() and not granted.cancelled():
                self._give_up(turn)
            else:
                self._waiting.remove((turn, granted))
                self._turns.leave(turn, 0.0)
            raise
        try:
            decoder = self.idle.pop() if self.idle else Decoder(2 * _STEPS if self.yielding else _STEPS)
        except BaseException:
            self._give_up(turn)
            raise
        self._busy.add(decoder)
        return _Lease(decoder, self, turn)

    def _grant(self) -> None:
        waiting = dict(self._waiting)
        for turn in self._turns.in_order(waiting):
            granted = waiting[turn]
            most = self._count if self._turns.alone(turn.client) else max(self._count - 1, 1)
            if self._free and self._taken[turn.client] < most and not granted.done():
                self._waiting.remove((turn, granted))
                self._free -= 1
                self._taken[turn.client] += 1
                self._turns.begin(turn)
                granted.set_result(None)

    def _give_up(self, turn: Turn, seconds: float = 0.0) -> None:
        """The seat of a turn is free."""
        self._free += 1
        self._taken[turn.client] -= 1
        self._taken += Counter()  # forgets those that have none
        self._turns.leave(turn, seconds)
        self._grant()

    def leave(self, lease: _Lease) -> None:
        """After its process has been put among the idle ones, or ended."""
        self._busy.discard(lease.decoder)
        self._give_up(lease.turn, asyncio.get_running_loop().time() - lease.began)
