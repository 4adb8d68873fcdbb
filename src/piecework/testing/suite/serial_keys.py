"""Serial keys: one holder at a time, and the next in the transaction that ends it (I8, I9, C12)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.core import lifecycle
from piecework.core.job import JobId, State
from piecework.core.lifecycle import (
    Completed,
    Crashed,
    Failed,
    GivenBack,
    Parked,
    Released,
    Snoozed,
    Stopped,
)
from piecework.testing.factories import new_job
from piecework.testing.suite.base import OOPS, Suite, seconds, title

if TYPE_CHECKING:
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["SerialKeys"]

ENDINGS = [Completed("1"), Failed(OOPS, None), Stopped()]
HOLDING = [
    (Failed(OOPS, seconds(60)), State.SCHEDULED),
    (Snoozed(seconds(60)), State.SCHEDULED),
    (Crashed("killed", seconds(60)), State.SCHEDULED),
    (Parked("unknown"), State.SCHEDULED),
    (Released(), State.AVAILABLE),
    (GivenBack(), State.AVAILABLE),
]
S, B, A, R = State.SCHEDULED, State.BLOCKED, State.AVAILABLE, State.RUNNING


class SerialKeys(Suite):
    """What every write promises of serial keys."""

    async def line(self, store: AnyStore, count: int, **fields: Any) -> list[JobId]:
        """Insert so many jobs of the key "s", one after another."""
        return [await self.add(store, serial_key="s", **fields) for _ in range(count)]

    async def test_one_at_a_time_in_order(self, store: AnyStore, hand: Hand) -> None:
        """A claim of a hundred gets the one whose turn it is (I8, I9)."""
        ids = await self.line(store, 5)
        assert await self.states(store, ids) == [A, B, B, B, B]
        for job_id in ids:
            (taken,) = await hand.claim(100)
            assert taken.id == job_id
            assert await hand.claim(100) == []
            await hand.finish(taken)
        assert await hand.claim() == []

    async def test_one_call_is_a_line_of_its_own(self, store: AnyStore, hand: Hand) -> None:
        """A bulk insert of one key must not make them all available (I8)."""
        ids = await self.add_many(store, 3, serial_key="s")
        for job_id in ids:
            (taken,) = await hand.claim(100)
            assert taken.id == job_id
            await hand.finish(taken)

    async def test_a_race_of_twenty_has_one_holder(self, store: AnyStore) -> None:
        """Who is first is decided inside the transaction (I8)."""
        ids = await asyncio.gather(*(self.add(store, serial_key="s") for _ in range(20)))
        assert sorted(await self.states(store, ids)) == [A] + [B] * 19

    async def test_keys_do_not_wait_for_each_other(self, store: AnyStore, hand: Hand) -> None:
        """Another key is another line; no key is no line."""
        await self.line(store, 2)
        await self.add(store, serial_key="t")
        await self.add(store)
        await self.add(store)
        assert len(await hand.claim()) == 4

    async def test_a_key_is_one_over_all_queues_and_kinds(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The key names what must not be touched twice at once, whoever does it."""
        await self.add(store, serial_key="s", queue="a")
        second = await self.add(store, serial_key="s", queue="b", kind="other")
        assert await self.state(store, second) is B
        assert await hand.claim(queues=("b",)) == []
        await hand.finish(await hand.take(queues=("a",)))
        assert (await hand.take(queues=("b",))).id == second

    async def test_the_next_is_chosen_by_priority_then_due_time_then_id(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The order of claims, inside the key too (I9)."""
        head = await self.add(store, serial_key="s")
        now = clock.now()
        low = await self.add(store, serial_key="s", priority=-1)
        plain = await self.add(store, serial_key="s", due=now)
        twin = await self.add(store, serial_key="s", due=now)
        early = await self.add(store, serial_key="s", due=now - seconds(9))
        high = await self.add(store, serial_key="s", priority=1)
        for job_id in (head, high, early, plain, twin, low):
            taken = await hand.take()
            assert taken.id == job_id
            await hand.finish(taken)

    async def test_a_newcomer_of_high_priority_waits_for_the_holder(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Whoever holds the key holds it, started or not."""
        (head,) = await self.line(store, 1)
        (urgent,) = await self.line(store, 1, priority=100)
        assert await self.states(store, [head, urgent]) == [A, B]
        assert (await hand.take()).id == head

    @pytest.mark.parametrize("outcome", ENDINGS, ids=title)
    async def test_an_end_promotes_the_next_in_the_same_apply(
        self, store: AnyStore, hand: Hand, outcome: Any
    ) -> None:
        """No stage and no worker is needed for the line to go on (I8)."""
        ids = await self.line(store, 3)
        assert await hand.settle(await hand.take(), outcome) == []
        assert await self.states(store, ids[1:]) == [A, B]

    @pytest.mark.parametrize(("outcome", "state"), HOLDING, ids=title)
    async def test_the_head_holds_the_line_while_it_waits_to_run_again(
        self, store: AnyStore, hand: Hand, clock: FakeClock, outcome: Any, state: State
    ) -> None:
        """Strict order: nobody overtakes a head that is to be retried (I9, F05)."""
        ids = await self.line(store, 2)
        assert await hand.settle(await hand.take(), outcome) == []
        newcomer = await self.add(store, serial_key="s", priority=9)
        assert await self.states(store, [*ids, newcomer]) == [state, B, B]
        await clock.advance(60)
        await self.stage(store)
        (taken,) = await hand.claim()
        assert taken.id == ids[0]
        await hand.finish(taken)
        assert await self.states(store, [newcomer, ids[1]]) == [A, B]

    async def test_a_rescued_head_holds_the_line(self, store: AnyStore, hand: Hand) -> None:
        """A lost worker does not let the next one in before its own retry (I8, F05)."""
        ids = await self.line(store, 2)
        await hand.take()
        head = await self.read(store, ids[0])
        await self.do(store, lifecycle.rescue(head, retry_in=seconds(1)))
        assert await self.states(store, ids) == [A, B]

    async def test_a_cancel_in_the_middle_takes_only_that_one_out(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The line closes up (C12)."""
        ids = await self.line(store, 4)
        await self.cancel(store, ids[2])
        for job_id in (ids[0], ids[1], ids[3]):
            taken = await hand.take()
            assert taken.id == job_id
            await hand.finish(taken)

    async def test_a_cancel_of_the_waiting_head_promotes_the_next(self, store: AnyStore) -> None:
        """As any end of a holder (C12)."""
        ids = await self.line(store, 3)
        await self.cancel(store, ids[0])
        assert await self.states(store, ids) == [State.CANCELLED, A, B]

    async def test_a_cancel_of_a_head_that_waits_for_its_retry_promotes_the_next(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It holds the key though it is scheduled; its end frees it."""
        ids = await self.line(store, 2)
        await hand.fail(await hand.take(), retry_in=60)
        await self.cancel(store, ids[0])
        assert await self.states(store, ids) == [State.CANCELLED, A]

    async def test_a_wish_to_cancel_the_running_head_promotes_nobody(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It still runs: the key is free when it has stopped (I8, I13)."""
        ids = await self.line(store, 2)
        taken = await hand.take()
        await self.cancel(store, ids[0])
        assert await self.states(store, ids) == [R, B]
        assert await hand.settle(taken, Stopped()) == []
        assert await self.states(store, ids) == [State.CANCELLED, A]

    async def test_a_head_that_is_put_off_frees_the_key(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """A future job holds nothing; when it comes due it queues up like everybody."""
        ids = await self.line(store, 2)
        head = await self.read(store, ids[0])
        await self.do(store, lifecycle.reschedule(head, seconds(60), now=clock.now()))
        assert await self.states(store, ids) == [S, A]
        await clock.advance(60)
        await self.stage(store)
        assert await self.states(store, ids) == [B, A]
        await hand.finish(await hand.take())
        assert await self.state(store, ids[0]) is A

    async def test_a_blocked_job_that_is_put_off_leaves_the_line(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It must not be promoted before its new time (I11)."""
        ids = await self.line(store, 3)
        second = await self.read(store, ids[1])
        await self.do(store, lifecycle.reschedule(second, seconds(60), now=clock.now()))
        await hand.finish(await hand.take())
        assert await self.states(store, ids[1:]) == [S, A]

    async def test_a_blocked_job_rescheduled_to_now_stays_in_line(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """A move to available lands in blocked while another holds the key (I8)."""
        ids = await self.line(store, 2)
        second = await self.read(store, ids[1])
        await self.do(store, lifecycle.reschedule(second, seconds(0), now=clock.now()))
        assert await self.states(store, ids) == [A, B]

    async def test_an_expired_head_promotes_the_next(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """In the very stage that expires it (C17)."""
        (head,) = await self.line(store, 1, expires=seconds(5))
        (second,) = await self.line(store, 1)
        await clock.advance(5)
        await self.stage(store)
        assert await self.states(store, [head, second]) == [State.EXPIRED, A]

    async def test_a_blocked_job_expires_in_line(self, store: AnyStore, clock: FakeClock) -> None:
        """Waiting for its turn is waiting."""
        ids = await self.line(store, 1)
        ids += await self.line(store, 1, expires=seconds(5))
        ids += await self.line(store, 1)
        await clock.advance(5)
        await self.stage(store)
        assert await self.states(store, ids) == [A, State.EXPIRED, B]
        await self.cancel(store, ids[0])
        assert await self.state(store, ids[2]) is A

    async def test_a_future_job_holds_nothing(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Tomorrow's job must not stop today's."""
        future = await self.add(store, serial_key="s", due=seconds(60))
        ids = await self.line(store, 2)
        assert await self.states(store, [future, *ids]) == [S, A, B]
        await clock.advance(60)
        await self.stage(store)
        assert await self.states(store, [future, *ids]) == [B, A, B]
        for job_id in (*ids, future):
            taken = await hand.take()
            assert taken.id == job_id
            await hand.finish(taken)

    async def test_of_those_that_come_due_together_the_first_in_order_is_the_holder(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """They are seen together, so the order decides (I9)."""
        ids = [
            await self.add(store, serial_key="s", due=seconds(due), priority=priority)
            for due, priority in ((3, 0), (2, 0), (2, 5), (1, 0))
        ]
        await clock.advance(3)
        assert (await self.stage(store)).due == 4
        assert await self.states(store, ids) == [B, B, A, B]

    async def test_an_operators_retry_queues_up(self, store: AnyStore, hand: Hand) -> None:
        """A job that failed yesterday must not run beside today's (I8)."""
        ids = await self.line(store, 2)
        await hand.fail(await hand.take())
        await self.retry(store, ids[0])
        assert await self.states(store, ids) == [B, A]
        await hand.finish(await hand.take())
        assert await self.states(store, ids) == [A, State.COMPLETED]

    async def test_an_operators_retry_of_an_idle_key_is_available(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """And holds the key again."""
        (first,) = await self.line(store, 1)
        await hand.fail(await hand.take())
        await self.retry(store, first)
        (second,) = await self.line(store, 1)
        assert await self.states(store, [first, second]) == [A, B]

    async def test_many_operators_retries_in_one_batch_make_one_holder(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The guard holds inside a set too (I8)."""
        ids = await self.line(store, 5)
        for _ in ids:
            await hand.fail(await hand.take())
        moves = [lifecycle.retry(await self.read(store, one)) for one in ids]
        await self.do(store, *moves)
        assert sorted(await self.states(store, ids)) == [A, B, B, B, B]

    async def test_what_comes_in_the_batch_that_frees_the_key_queues_up(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It must not overtake those that wait already, though the key is free for a moment."""
        (failed,) = await self.line(store, 1)
        await hand.fail(await hand.take())
        head, waiting = await self.line(store, 2)
        await clock.advance(1)
        retry = lifecycle.retry(await self.read(store, failed))
        cancel = lifecycle.cancel(await self.read(store, head), None)
        await self.do(store, cancel, retry)
        assert await self.states(store, [head, waiting, failed]) == [State.CANCELLED, A, B]

    async def test_a_batch_of_ends_promotes_the_next_of_each_key(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Set-based settling must not lose a turn."""
        keys = [f"s{n}" for n in range(50)]
        jobs = [new_job(serial_key=key) for _ in range(2) for key in keys]
        await store.insert(jobs)
        taken = await hand.claim()
        assert {one.id for one in taken} == {job.id for job in jobs[:50]}
        await hand.finish(*taken)
        assert {one.id for one in await hand.claim()} == {job.id for job in jobs[50:]}

    async def test_a_late_outcome_of_a_former_holder_promotes_nobody(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """A zombie's write must not let two run at once (I4, I8, F05)."""
        ids = await self.line(store, 2)
        zombie = await hand.take()
        head = await self.read(store, ids[0])
        await self.do(store, lifecycle.rescue(head, retry_in=seconds(1)))
        again = await other.take()
        assert len(await hand.settle(zombie, Completed("late"))) == 1
        assert await self.states(store, ids) == [R, B]
        await other.finish(again)
        assert await self.states(store, ids) == [State.COMPLETED, A]

    async def test_deleting_finished_jobs_leaves_the_line_alone(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """They hold nothing any more."""
        ids = await self.line(store, 3)
        await hand.finish(await hand.take())
        running = await hand.take()
        assert await store.prune(ids, limit=9) == ids[:1]
        assert await self.states(store, ids[1:]) == [R, B]
        await hand.finish(running)
        assert await self.state(store, ids[2]) is A

    async def test_many_idle_keys_leave_no_trace(self, store: AnyStore, hand: Hand) -> None:
        """Each key is used once, and the next job of each finds it free (C12)."""
        for _ in range(2):
            keys = [f"key-{n}" for n in range(self.many_keys)]
            await store.insert([new_job(serial_key=key) for key in keys])
            taken = await hand.claim(self.many_keys)
            assert len(taken) == self.many_keys
            await hand.finish(*taken)
        assert await self.live(store) == []
