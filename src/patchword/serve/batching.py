"""Gathers requests and runs them as batches, one at a time, in one thread beside the event loop.

While a batch runs, the next one gathers; only when the model is idle does the first request wait a few
milliseconds for others. Jobs with the same `Call` (same model, same options) run together, and the job whose
client's turn it is (`fairness.py`) decides which call is next. Before another call is turned to, clients that
have just been answered, and would come before it, have a moment to ask again (anticipatory scheduling: Iyer
and Druschel 2001): a batch that runs is not interrupted, and all of them would wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from patchword.serve.fairness import Client, Turn, Turns
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import Refusal, full, internal, stopping, too_late

log = logging.getLogger("patchword.serve")


class Call(NamedTuple):
    """What is to be done with an item; equal calls may share a batch."""

    ability: str
    """Of the service: caption, stream, search, ask, paint or label."""
    options: tuple


class Job:
    """An item in the queue. `await job.answer()` returns its result or raises `Refusal`."""

    def __init__(
        self, call: Call, item: object, weight: int, deadline: float, turn: Turn, batcher: Batcher
    ) -> None:
        self.call, self.item, self.weight, self.deadline, self.turn = call, item, weight, deadline, turn
        self._batcher = batcher
        self.future: asyncio.Future = asyncio.get_running_loop().create_future()

    async def answer(self) -> Any:
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self.future, max(left, 0))
        except asyncio.TimeoutError:
            raise too_late(self._batcher.limits.deadline_seconds) from None
        finally:
            self._batcher.leave(self)


class Batcher:
    """Runs batches of jobs.

    `run(call, items)` must return one result per item, in order; it is called from one thread only. Create,
    start and use a batcher within one event loop.
    """

    def __init__(
        self, run: Callable[[Call, Sequence[object]], Sequence[object]], limits: Limits, numbers: Numbers
    ) -> None:
        self._run, self.limits, self._numbers = run, limits, numbers
        self._waiting: list[Job] = []
        self._turns = Turns(limits.about_seconds)
        self._running: list[Job] = []
        self._last: list[Job] = []
        self._ended = 0.0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patchword-model")
        self.closing = False
        self._task = asyncio.get_running_loop().create_task(self._work())

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return len(self._waiting)

    def has_room(self, client: Client) -> bool:
        """True where the queue accepts another job of this client."""
        crowded = len(self._waiting) >= self.limits.queue
        return not self.closing and not (crowded and self._who_yields(client, 1, 0) is None)

    def enter(self, call: Call, item: object, weight: int, deadline: float, client: Client) -> Job:
        """Puts an item into the queue.

        `weight` is its number of pixels, `deadline` a time of the event loop's clock. A full queue refuses
        the last job of whoever has the most in it, if that is more than `client` has. Raises `Refusal` where
        that is `client`, or the service is ending.
        """
        if self.closing:
            raise stopping(self.limits.retry_seconds)
        while self._waiting and (
            len(self._waiting) >= self.limits.queue
            or weight + sum(job.weight for job in self._waiting) > self.limits.queued_pixels
        ):
            job = self._who_yields(client, 1, weight)
            if job is None:
                raise full(self.limits.retry_seconds)
            self._waiting.remove(job)
            if not job.future.done():
                job.future.set_exception(full(self.limits.retry_seconds))
            self._turns.leave(job.turn, 0.0)
        job = Job(call, item, weight, deadline, self._turns.enter(client), self)
        self._waiting.append(job)
        self._arrived.set()
        return job

    def _who_yields(self, client: Client, count: int, weight: int) -> Job | None:
        """The last job of the client that would still have more in the queue than `client`, whose further
        jobs and pixels are given; None where nobody has."""
        shares: defaultdict[Client, float] = defaultdict(float)
        for job in self._waiting:
            shares[job.turn.client] += self._share(1, job.weight)
        most = max(shares, key=lambda one: shares[one])
        if most == client or shares[most] <= shares[client] + self._share(count, weight):
            return None
        return next(job for job in reversed(self._waiting) if job.turn.client == most)

    def _share(self, count: int, weight: int) -> float:
        return max(count / self.limits.queue, weight / self.limits.queued_pixels)

    def leave(self, job: Job) -> None:
        """Removes a job whose client has gone, or whose deadline has passed.

        A job in the running batch only loses its result.
        """
        if job in self._waiting:
            self._waiting.remove(job)
            self._turns.leave(job.turn, 0.0)
            self._numbers.cancelled += 1
        if not job.future.done():
            job.future.cancel()

    def give_up(self) -> None:
        """Accepts no new jobs, and answers those that are not done with 503."""
        self.closing = True
        for job in [*self._waiting, *self._running]:
            if not job.future.done():
                job.future.set_exception(stopping(self.limits.retry_seconds))
        for job in self._waiting:
            self._turns.leave(job.turn, 0.0)
        self._waiting = []
        self._arrived.set()

    async def close(self) -> None:
        """Accepts no new jobs, finishes those in the queue, and ends the thread."""
        self.closing = True
        self._arrived.set()
        await self._task
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if self._waiting and not self.closing and self._together() < self.limits.batch:
                await asyncio.sleep(self.limits.gather_seconds)
            if not self._waiting:
                if self.closing:
                    return
                self._arrived.clear()
                continue
            if await self._waited_for_others():
                continue
            jobs = self._next()
            self._waiting = [job for job in self._waiting if job not in jobs]
            self._running = jobs
            for job in jobs:
                self._turns.begin(job.turn)
            began = time.perf_counter()
            await self._answer(jobs[0].call, jobs)
            for job in jobs:
                self._turns.leave(job.turn, (time.perf_counter() - began) / len(jobs))
            self._running, self._last, self._ended = [], jobs, time.monotonic()

    async def _waited_for_others(self) -> bool:
        """Wait a little, where a job of another call than the last batch's is in the queue and clients of
        that batch would come before it; whether it was waited. All in all it is at most what the job is
        guessed to take, from when they were answered: whoever is gone costs no more than it."""
        other = next((job for job in self._in_order() if self._last and job.call != self._last[0].call), None)
        if other is None or self.closing:
            return False
        left = self._ended + self._turns.guess(other.turn.client) - time.monotonic()
        if left <= 0 or not self._turns.are_awaited({job.turn.client for job in self._last}, other.turn):
            return False
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), left)
        except asyncio.TimeoutError:
            return True  # and none is waited for any more
        finally:
            self._arrived.set()
        return True

    def _in_order(self) -> list[Job]:
        """The jobs that wait, the next one first."""
        by_turn = {job.turn: job for job in self._waiting}
        return [by_turn[turn] for turn in self._turns.in_order(by_turn)]

    def _next(self) -> list[Job]:
        """The jobs of the next batch, by the turns of their clients."""
        waiting = self._in_order()
        same = [job for job in waiting if job.call == waiting[0].call]
        most = self.limits.batch if len(same) == len(waiting) else self.limits.beside_others
        alone = self._turns.alone(waiting[0].turn.client)
        jobs: list[Job] = []
        had: Counter[Client] = Counter()
        for job in same:
            client = job.turn.client
            seconds = had[client] * self._turns.guess(client)
            if len(jobs) < min(most, self.limits.batch) and (
                alone or not had[client] or seconds + self._turns.guess(client) <= self.limits.beside_seconds
            ):
                jobs.append(job)
                had[client] += 1
        return jobs

    def _together(self) -> int:
        return sum(job.call == self._waiting[0].call for job in self._waiting)

    async def _answer(self, call: Call, jobs: list[Job]) -> None:
        """Runs one batch.

        Where it fails, each job runs alone, so that a picture that the model cannot process does not fail the
        others.
        """
        began = time.perf_counter()
        # Any error of the model belongs to these requests and must not end the service.
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, call, [job.item for job in jobs]
            )
            if len(results) != len(jobs):
                raise RuntimeError(f"{call.ability} gave {len(results)} results for {len(jobs)} items")
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    if not job.future.done():
                        await self._answer(call, [job])
                return
            refused = isinstance(error, Refusal)
            if not refused:
                log.error("%s failed", call.ability, exc_info=error)
            if not jobs[0].future.done():
                jobs[0].future.set_exception(error if refused else internal())
            return
        self._numbers.ran(len(jobs), time.perf_counter() - began)
        for job, result in zip(jobs, results, strict=True):
            if not job.future.done():
                job.future.set_result(result)
