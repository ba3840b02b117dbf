import asyncio
import threading
import time

import pytest

from patchword.serve.batching import Batcher, Call
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import Refusal

CALL = Call("double", ())


class Doubler:
    """Doubles numbers, waits at a gate, keeps what it ran; 1300 breaks it."""

    def __init__(self):
        self.gate, self.ran, self.entered = threading.Event(), [], threading.Event()
        self.gate.set()

    def __call__(self, call, items):
        self.entered.set()
        assert self.gate.wait(20)
        self.ran.append((call.ability, list(items)))
        if 1300 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


@pytest.fixture
def run():
    """Run an async test function with a batcher: `run(test, limits)`."""

    def start(test, **limits):
        async def inside():
            work, numbers = Doubler(), Numbers()
            batcher = Batcher(work, Limits(**limits), numbers)
            enter = lambda item, call=CALL, weight=1, seconds=20.0, client=("a", 0): batcher.enter(  # noqa: E731
                call, item, weight, asyncio.get_running_loop().time() + seconds, client
            )
            try:
                await test(work, batcher, enter, numbers)
            finally:
                work.gate.set()
                await batcher.close()

        asyncio.run(inside())

    return start


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_requests_run_together_and_in_order(run):
    async def test(work, batcher, enter, numbers):
        jobs = [enter(item) for item in range(40)]
        assert await asyncio.gather(*(job.answer() for job in jobs)) == [2 * item for item in range(40)]
        assert [len(items) for _, items in work.ran] == [16, 16, 8]
        assert (numbers.batches, numbers.batched) == (3, 40)

    run(test)


def test_only_equal_calls_share_a_batch_and_the_oldest_goes_first(run):
    async def test(work, batcher, enter, numbers):
        calls = [Call("a", ()), Call("b", (1,)), Call("a", ()), Call("b", (2,))]
        await asyncio.gather(*(enter(i, call).answer() for i, call in enumerate(calls)))
        assert work.ran == [("a", [0, 2]), ("b", [1]), ("b", [3])]

    run(test)


def test_while_others_wait_batches_are_small(run):
    """Ten of one kind do not keep the one of another kind waiting for all of them."""

    async def test(work, batcher, enter, numbers):
        others = [enter(item, Call("many", ())) for item in range(10)]
        jobs = [*others, enter(99, Call("one", ()))]
        await asyncio.gather(*(job.answer() for job in jobs))
        assert [items for _, items in work.ran] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [99]]

    run(test, beside_others=4)


def test_a_full_queue_refuses(run):
    async def test(work, batcher, enter, numbers):
        work.gate.clear()
        jobs = [enter(0)]
        await until(work.entered.is_set)
        jobs += [enter(1), enter(2)]
        assert not batcher.has_room(("a", 0))
        with pytest.raises(Refusal) as refusal:
            enter(3)
        assert (refusal.value.status, refusal.value.headers["Retry-After"]) == (503, "2")
        work.gate.set()
        assert await asyncio.gather(*(job.answer() for job in jobs)) == [0, 2, 4]
        assert await enter(5).answer() == 10

    run(test, queue=2)


def test_pixels_that_wait_are_bounded_but_one_picture_always_passes(run):
    async def test(work, batcher, enter, numbers):
        heavy = enter(1, weight=500)
        with pytest.raises(Refusal):
            enter(2, weight=1)
        assert await heavy.answer() == 2

    run(test, queued_pixels=100)


def test_a_deadline_ends_the_waiting(run):
    async def test(work, batcher, enter, numbers):
        work.gate.clear()
        running = enter(0)
        await until(work.entered.is_set)
        late = enter(1, seconds=0.05)
        with pytest.raises(Refusal, match="504 deadline"):
            await late.answer()
        assert batcher.waiting == 0
        work.gate.set()
        assert await running.answer() == 0
        assert work.ran == [("double", [0])], "what is too late is not computed"

    run(test)


def test_a_client_that_goes_takes_its_job_along(run):
    async def test(work, batcher, enter, numbers):
        work.gate.clear()
        tasks = [asyncio.ensure_future(enter(item).answer()) for item in range(1)]
        await until(work.entered.is_set)
        tasks += [asyncio.ensure_future(enter(item).answer()) for item in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        tasks[0].cancel()
        await until(lambda: batcher.waiting == 2)
        work.gate.set()
        assert await asyncio.gather(tasks[1], tasks[3]) == [2, 6]
        assert work.ran == [("double", [0]), ("double", [1, 3])] and numbers.cancelled == 1

    run(test)


def test_one_bad_item_does_not_fail_its_neighbours(run):
    async def test(work, batcher, enter, numbers):
        jobs = [enter(item) for item in (1, 1300, 2)]
        found = await asyncio.gather(*(job.answer() for job in jobs), return_exceptions=True)
        assert (found[0], found[2]) == (2, 4) and found[1].status == 500

    run(test)


def test_results_of_another_number_are_an_error_not_a_swap(run):
    async def test(work, batcher, enter, numbers):
        batcher._run = lambda call, items: [0] * (len(items) + 1)
        with pytest.raises(Refusal, match="500 internal"):
            await enter(1).answer()

    run(test)


def test_closing_finishes_what_waits_and_takes_nothing_new(run):
    async def test(work, batcher, enter, numbers):
        work.gate.clear()
        jobs = [enter(item) for item in range(20)]
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0.02)
        with pytest.raises(Refusal, match="503 stopping"):
            enter(99)
        work.gate.set()
        assert await asyncio.gather(*(job.answer() for job in jobs)) == [2 * item for item in range(20)]
        await closing

    run(test)


def test_an_idle_model_waits_for_company_only_a_moment(run):
    async def test(work, batcher, enter, numbers):
        began = time.perf_counter()
        assert await enter(1).answer() == 2
        assert time.perf_counter() - began > 0.03
        first = enter(1)
        await asyncio.sleep(0.01)
        second = enter(2)
        await asyncio.gather(first.answer(), second.answer())
        assert work.ran[-1] == ("double", [1, 2])

    run(test, gather_seconds=0.03)
