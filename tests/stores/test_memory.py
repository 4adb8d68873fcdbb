"""The memory store passes the shipped suite, goes along with the model, and leaves no trace."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from piecework.core import lifecycle
from piecework.core.job import Retention, State
from piecework.core.lifecycle import Completed
from piecework.ports import QueueChange
from piecework.stores._shelf import Lane
from piecework.stores.memory import MemoryStore
from piecework.testing import FakeClock, StoreConformance, make_machine, new_job
from piecework.testing.suite.base import Hand, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from piecework.core.job import JobId

ZERO = seconds(0)
NOTHING = Retention(completed=ZERO, failed=ZERO, cancelled=ZERO, expired=ZERO)


class TestMemoryStore(StoreConformance):
    many_keys = 20_000

    @pytest.fixture
    async def store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock)


@asynccontextmanager
async def fresh(clock: FakeClock) -> AsyncIterator[MemoryStore]:
    yield MemoryStore(clock)


TestHistories = make_machine(fresh).TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def hand(store: MemoryStore, clock: FakeClock) -> Hand:
    return Hand(store, clock)


def weight(store: MemoryStore) -> int:
    """How much hangs on the store: every object that can be reached from it."""
    gc.collect()
    seen, todo = set[int](), [*vars(store).values()]
    while todo:
        one = todo.pop()
        if id(one) not in seen and not isinstance(one, type) and not callable(one):
            seen.add(id(one))
            todo += gc.get_referents(one)
    return len(seen)


async def test_it_is_not_shared(store: MemoryStore) -> None:
    assert not store.shared
    assert "end with this process" in (await store.check())[0].text
    assert repr(store) == "<MemoryStore of 0 jobs>"


async def test_binding_says_that_memory_has_no_transactions(store: MemoryStore) -> None:
    with pytest.raises(TypeError, match="the memory store cannot write inside the transaction"):
        await store.bind(object())


@pytest.mark.parametrize("queues", [None, ("q",)], ids=["every queue", "named"])
async def test_what_was_pruned_leaves_no_trace(
    store: MemoryStore, hand: Hand, clock: FakeClock, queues: tuple[str, ...] | None
) -> None:
    """A worker that runs for a year must not grow, whatever its jobs were like."""
    await hand.beat()

    async def a_day(day: int) -> None:
        names = None if queues is None else (*queues, f"queue-{day}")
        base: dict[str, Any] = {"queue": "q"}
        for number in range(100):
            kinds: list[dict[str, Any]] = [
                base,
                base | {"serial_key": f"s{number}", "unique_key": f"u{number}"},
                base | {"due": seconds(1), "expires": seconds(10**6)},
                base | {"due": seconds(10**8)},
                base | {"priority": number},
                base | {"node": hand.node},
                base | {"serial_key": "one", "expires": seconds(50)},
            ]
            kinds.append({"queue": f"queue-{day}" if queues else f"queue-{day}-{number}"})
            await store.insert([new_job(**fields) for fields in kinds])
        for _ in range(40):
            await clock.advance(1)
            await store.stage(limit=10_000)
            taken = await hand.claim(10_000, queues=names)
            await store.apply([hand.ending(one, Completed("1")) for one in taken])
        for job_id in [*store._rows]:
            (job,) = await store.get([job_id])
            move = lifecycle.cancel(job, None)
            assert move is None or await store.apply([move]) == []
        await clock.advance(1)
        await store.prune(NOTHING, limit=10_000)
        assert await store.count() == {}

    await a_day(0)
    before = weight(store)
    for day in range(1, 9):
        await a_day(day)
    assert weight(store) <= before * 1.1


async def test_queues_that_only_named_workers_serve_are_forgotten(
    store: MemoryStore, hand: Hand
) -> None:
    """One worker for each customer, a queue for each: the board of every queue must not grow."""
    for number in range(500):
        name = f"queue-{number}"
        await store.insert([new_job(queue=name)])
        await hand.finish(await hand.take(queues=(name,)))
        await store.prune(NOTHING, limit=10)
    assert len(store._boards[None].heap) <= 200
    assert store._queues == {}


async def test_a_claim_does_not_walk_along_a_closed_queue(
    store: MemoryStore, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million paused jobs cost a claim nothing."""
    await store.configure([QueueChange(name="paused", paused=True)])
    await store.insert([new_job(queue="paused", priority=9) for _ in range(100)])
    await store.insert([new_job() for _ in range(3)])
    walked, walk = list[str](), Lane.take

    def count(lane: Lane, head: Any) -> None:
        walked.append(lane.queue)
        walk(lane, head)

    monkeypatch.setattr(Lane, "take", count)
    for queues in (None, ("paused", "default")):
        await hand.claim(2, queues=queues)
    assert walked == ["default"] * 3


async def test_putting_one_job_off_again_and_again_leaves_no_trace(
    store: MemoryStore, clock: FakeClock
) -> None:
    """A debounced job is replaced at each key stroke."""

    async def strokes(count: int) -> None:
        for _ in range(count):
            await clock.advance(0.001)
            fields = {"unique_key": "u", "on_duplicate": "replace"}
            await store.insert([new_job(due=seconds(60), expires=seconds(99), **fields)])

    await strokes(500)
    before = weight(store)
    await strokes(2_000)
    assert weight(store) <= before * 2
    assert await store.count() == {("default", State.SCHEDULED): 1}


@pytest.mark.parametrize("queues", [None, ("default",)], ids=["every queue", "named"])
async def test_the_newest_first_leaves_no_trace(
    store: MemoryStore, hand: Hand, queues: tuple[str, ...] | None
) -> None:
    """A priority that only grows: each job comes before the head, and the rest waits on."""
    await hand.beat()

    async def rounds(begin: int) -> None:
        for priority in range(begin, begin + 1_500):
            await store.insert([new_job(priority=priority)])
            (taken,) = await hand.claim(1, queues=queues)
            await hand.finish(taken)
            await store.prune(NOTHING, limit=10)

    await store.insert([new_job(priority=-1)])
    await rounds(0)
    before = weight(store)
    await rounds(10_000)
    assert weight(store) <= before * 1.5
    assert await store.count() == {("default", State.AVAILABLE): 1}


async def test_a_job_that_snoozes_for_ever_keeps_its_last_attempts(
    store: MemoryStore, hand: Hand
) -> None:
    (new,) = await store.insert([new_job()])
    for _ in range(150):
        assert await hand.settle(await hand.take(), lifecycle.Released()) == []
    attempts = await store.attempts(new.id)
    assert [one.fence for one in attempts] == [*range(101, 301, 2)]


async def test_controls_lifted_from_an_empty_queue_leave_no_trace(store: MemoryStore) -> None:
    await store.configure([QueueChange(name="q", paused=True, running=3, rate=(1, 1.0))])
    await store.configure([QueueChange(name="q", paused=False)])
    assert [queue.limit for queue in await store.queues()] == [3]
    await store.configure([QueueChange(name="q", running=None, rate=None)])
    assert await store.queues() == []


def test_threads_share_it() -> None:
    """Each on a loop of its own: nothing is lost, nothing runs twice."""
    store, clock = MemoryStore(), FakeClock()
    done: list[JobId] = []
    errors: list[BaseException] = []
    interval = sys.getswitchinterval()

    async def work(number: int) -> None:
        hand = Hand(store, clock, f"node-{number}")
        for _ in range(20):
            await store.insert([new_job(serial_key=f"s{n % 3}", priority=n) for n in range(10)])
            taken = await hand.claim(5)
            await hand.finish(*taken)
            done.extend(one.id for one in taken)
        while taken := await hand.claim(5):
            await hand.finish(*taken)
            done.extend(one.id for one in taken)

    def run(number: int) -> None:
        try:
            asyncio.run(work(number))
        except BaseException as error:  # noqa: BLE001 - whatever happens in a thread must show
            errors.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert len(done) == len(set(done))
    count = asyncio.run(store.count())
    assert sum(count.values()) == 800
    assert count["default", State.COMPLETED] == len(done)


async def test_a_hint_crosses_threads(store: MemoryStore) -> None:
    """An insert in one thread wakes a worker on another's loop."""
    hints = store.hints()
    heard = asyncio.ensure_future(anext(hints))
    await asyncio.sleep(0)
    thread = Thread(target=lambda: asyncio.run(store.insert([new_job()])))
    thread.start()
    assert "work" in (await asyncio.wait_for(heard, 5)).what
    thread.join(5)
