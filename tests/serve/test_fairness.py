"""Who sends much, or what is slow, slows himself: others are next before his further requests are."""

import asyncio
import time

import pytest

from patchword.serve.batching import Batcher, Call
from patchword.serve.decoders import Decoders
from patchword.serve.fairness import Clients, Turns
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import Refusal

CALL = Call("double", ())
MANY, ONE, OTHER = ("a", 0), ("a", 7), ("a", 5)


def served(turns, waiting, cost):
    """In which order clients have their turn, each of which asks again at once."""
    order, turn = [], {client: turns.enter(client) for client in waiting}
    for _ in range(40):
        client = turns.in_order(turn.values())[0].client
        turns.begin(turn[client])
        turns.leave(turn[client], cost[client])
        turn[client] = turns.enter(client)
        order.append(client)
    return order


def test_time_is_shared_not_requests():
    """One whose requests cost ten times as much has about a tenth of the turns."""
    order = served(Turns(0.0), [OTHER, ONE], {OTHER: 1.0, ONE: 0.1})
    assert 3 <= order.count(OTHER) <= 5


def test_new_connections_have_half_a_share():
    order = served(Turns(0.0), [MANY, ONE], {MANY: 1.0, ONE: 1.0})
    assert 12 <= order.count(MANY) <= 14


def test_a_quick_request_goes_before_a_slow_one_that_came_first():
    """Both have waited for nothing yet: the other order would make the quick one wait for the slow one."""
    turns = Turns(0.0)
    served(turns, [OTHER, ONE], {OTHER: 1.0, ONE: 0.1})
    both = [turns.enter(OTHER), turns.enter(ONE)]
    turns._ends.update({OTHER: 9.0, ONE: 9.0})  # neither is ahead of the other
    assert [turn.client for turn in turns.in_order(both)] == [ONE, OTHER]


def test_requests_that_came_at_once_are_not_all_taken_for_quick_ones():
    """Sixty slow requests that wait before the first of them is over: others are next after each of them."""
    turns = Turns(0.0)
    many = [turns.enter(OTHER) for _ in range(60)]
    order, one = [], turns.enter(ONE)
    for _ in range(40):
        turn = turns.in_order([*many, one])[0]
        turns.begin(turn)
        turns.leave(turn, 1.0 if turn.client == OTHER else 0.1)
        order.append(turn.client)
        if turn.client == OTHER:
            many.remove(turn)
        else:
            one = turns.enter(ONE)
    assert not any(a == b == OTHER for a, b in zip(order, order[1:], strict=False))
    assert 3 <= order.count(OTHER) <= 5


def test_waiting_is_no_credit():
    """Who was away does not have all turns afterwards."""
    turns = Turns(0.0)
    keeper = turns.enter(("b", 1))
    served(turns, [OTHER], {OTHER: 1.0})
    assert served(turns, [OTHER, ONE], {OTHER: 1.0, ONE: 1.0})[2:].count(ONE) == 19
    turns.leave(keeper, 0.0)


def test_new_connections_of_an_address_are_one_client():
    clients = Clients()
    first, second = ({"client": ("10.0.0.1", port)} for port in (5001, 5002))
    assert clients.of(first) == clients.of(second) == ("10.0.0.1", 0)
    clients.answered(first)
    assert clients.of(first) == ("10.0.0.1", 5001) and clients.of(second) == ("10.0.0.1", 0)
    for port in range(6000, 9000):
        clients.answered({"client": ("10.0.0.2", port)})
    assert clients.of(first) == ("10.0.0.1", 0), "what is remembered is bounded"
    assert clients.of({"client": None}) == ("", 0)


@pytest.fixture
def batches():
    """Run items of several clients, all there before the first batch: `batches(items, limits)` gives those of
    each batch; an item that was refused is not among them."""

    def run(items, **limits):
        ran = []

        async def inside():
            batcher = Batcher(lambda call, batch: ran.append(batch) or batch, Limits(**limits), Numbers())
            end = asyncio.get_running_loop().time() + 20
            jobs = []
            for item, client in items:
                try:
                    jobs.append(batcher.enter(CALL, item, 1, end, client))
                except Refusal:
                    continue
            answers = await asyncio.gather(*(job.answer() for job in jobs), return_exceptions=True)
            await batcher.close()
            return [answer for answer in answers if isinstance(answer, Refusal)]

        refused = asyncio.run(inside())
        assert all(refusal.status == 503 for refusal in refused)
        return ran

    return run


def test_one_of_many_requests_goes_along_while_others_are_about(batches):
    items = [(number, MANY) for number in range(6)] + [(10, ONE)]
    assert batches(items, beside_seconds=0.0, about_seconds=60.0)[0] == [10, 0]
    assert batches(items[:-1], beside_seconds=0.0, about_seconds=60.0) == [[0, 1, 2, 3, 4, 5]]


def test_who_has_just_been_answered_may_ask_again_before_another_call_is_turned_to():
    """A quick client asks again a moment after each answer; a slow one always has a request in the queue. Were
    the model never left idle, the slow one would have every second turn."""
    ran = []

    def run(call, batch):
        time.sleep(0.2 if call.ability == "slow" else 0.02)
        ran.append(call.ability)
        return batch

    async def inside():
        batcher = Batcher(run, Limits(), Numbers())
        clock = asyncio.get_running_loop().time

        async def ask(ability, client, pause, times):
            for _ in range(times):
                await batcher.enter(Call(ability, ()), 0, 1, clock() + 20, client).answer()
                await asyncio.sleep(pause)

        slow = [asyncio.ensure_future(ask("slow", MANY, 0.0, 9)) for _ in range(3)]
        await ask("quick", ONE, 0.02, 30)
        counts = ran.count("slow"), ran.count("quick")
        await asyncio.wait_for(asyncio.gather(*slow), 20)  # when nobody else asks, no turn is left out
        await batcher.close()
        return counts

    slow, quick = asyncio.run(inside())
    assert quick == 30 and slow <= 10, "about as much time as the other"


def test_a_full_queue_refuses_whoever_has_most_of_it(batches):
    items = [(number, MANY) for number in range(9)] + [(10, ONE)]
    ran = [item for batch in batches(items, queue=4) for item in batch]
    assert sorted(ran) == [0, 1, 2, 10], "the last of the many makes room for the one"


def test_a_client_does_not_have_all_decoders():
    """With two processes one is left for others, while there are some, however many pictures a client
    sends."""

    async def take():
        decoders = Decoders(Limits(decoders=2, about_seconds=60.0), Numbers())

        def leave(*leases):
            for lease in leases:
                decoders._small.idle.append(lease.decoder)
                decoders._small.leave(lease)

        try:
            leave(await decoders._small.take(MANY), await decoders._small.take(MANY))  # nobody else is there
            leave(await decoders._small.take(ONE))
            first = await decoders._small.take(MANY)
            second = asyncio.ensure_future(decoders._small.take(MANY))
            other = await asyncio.wait_for(decoders._small.take(ONE), 30)
            waits = not second.done()
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            leave(first)
            leave(other, await asyncio.wait_for(decoders._small.take(MANY), 30))
            return waits
        finally:
            await decoders.close()

    assert asyncio.run(take())
