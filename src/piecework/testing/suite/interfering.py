"""What others do to a job: cancel, retry, reschedule, rescue (I3, I5, I6, I13)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.core import lifecycle
from piecework.core.job import State
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
from piecework.testing.suite.base import OOPS, Suite, seconds, title

if TYPE_CHECKING:
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["Interfering"]

NOT_ANY_MORE = [
    Failed(OOPS, seconds(0)),
    Failed(OOPS, None),
    Crashed("killed"),
    Snoozed(seconds(0)),
    Parked("unknown"),
    Released(),
    GivenBack(),
]


class Interfering(Suite):
    """What `apply` promises to operators and rescuers."""

    # ── cancel ───────────────────────────────────────────────────────────────────────────

    async def test_a_cancelled_job_never_starts(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Available, scheduled or blocked: it is final at once, with its reason (I13, C3)."""
        ids = [
            await self.add(store, serial_key="s"),
            await self.add(store, due=seconds(5)),
        ]
        blocked = await self.add(store, serial_key="s")
        for job_id in (blocked, *ids):
            await self.cancel(store, job_id, "not needed")
            job = await self.read(store, job_id)
            assert (job.state, job.reason) == (State.CANCELLED, "not needed")
            assert job.finished_at == job.cancel_requested == clock.now()
        await clock.advance(10)
        await self.stage(store)
        assert await hand.claim() == []

    async def test_a_wish_to_cancel_is_kept_with_the_running_job(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Persisted first: its worker reads it from the beat, on whatever node (I13, C3)."""
        job_id = await self.add(store)
        taken = await hand.take()
        assert (await hand.beat()).running == {job_id: (taken.fence, False)}
        await self.cancel(store, job_id, "too slow")
        assert (await hand.beat()).running == {job_id: (taken.fence, True)}
        job = await self.read(store, job_id)
        assert (job.state, job.cancel_requested) == (State.RUNNING, clock.now())
        assert lifecycle.cancel(job, "again") is None
        await clock.advance(1)
        assert await hand.settle(taken, Stopped()) == []
        job = await self.read(store, job_id)
        assert (job.state, job.reason) == (State.CANCELLED, "too slow")
        assert job.finished_at == clock.now()

    @pytest.mark.parametrize("outcome", NOT_ANY_MORE, ids=title)
    async def test_nothing_but_success_or_stopping_follows_a_wish_to_cancel(
        self, store: AnyStore, hand: Hand, outcome: Any
    ) -> None:
        """A move back to waiting, or a failure, is refused; the owner then stops (I13, C2)."""
        job_id = await self.add(store)
        taken = await hand.take()
        await self.cancel(store, job_id, "enough")
        (refused,) = await hand.settle(taken, outcome)
        assert refused.job is not None
        assert refused.job.cancel_requested is not None
        assert refused.job.state is State.RUNNING
        assert await store.attempts(job_id) == []
        assert await hand.settle(taken, Stopped()) == []
        assert await self.state(store, job_id) is State.CANCELLED

    async def test_a_run_that_returns_first_is_completed(self, store: AnyStore, hand: Hand) -> None:
        """The work was done: it would be a lie to call it cancelled (I13)."""
        job_id = await self.add(store)
        taken = await hand.take()
        await self.cancel(store, job_id)
        await hand.finish(taken, result='"done"')
        assert len(await hand.settle(taken, Stopped())) == 1
        job = await self.read(store, job_id)
        assert (job.state, job.result) == (State.COMPLETED, '"done"')

    async def test_progress_does_not_undo_a_wish_to_cancel(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """A worker's write from before it heard must leave the wish alone (I13)."""
        job_id = await self.add(store)
        taken = await hand.take()
        await self.cancel(store, job_id)
        await self.do(store, lifecycle.progress(taken, progress='"1"', partial=None))
        assert (await self.read(store, job_id)).cancel_requested is not None

    async def test_twenty_cancels_at_once_are_one(self, store: AnyStore) -> None:
        """All decided on the same look; one takes effect, the others are told so (C3)."""
        job_id = await self.add(store)
        job = await self.read(store, job_id)
        moves = [move for n in range(20) if (move := lifecycle.cancel(job, str(n)))]
        answers = await asyncio.gather(*(store.apply([move]) for move in moves))
        winners = [n for n, refused in enumerate(answers) if not refused]
        assert len(winners) == 1
        job = await self.read(store, job_id)
        assert (job.state, job.reason) == (State.CANCELLED, str(winners[0]))
        assert lifecycle.cancel(job, "again") is None

    async def test_a_stale_read_cannot_cancel_what_has_started(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It would end a job under its running handler (I5, I13)."""
        job_id = await self.add(store)
        move = lifecycle.cancel(await self.read(store, job_id), "stale")
        assert move is not None
        taken = await hand.take()
        (refused,) = await store.apply([move])
        assert refused.job is not None
        assert refused.job.state is State.RUNNING
        await hand.finish(taken)

    async def test_a_stale_read_cannot_undo_a_final_state(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Cancel, reschedule and rescue decided on an old look are refused (I5)."""
        job_id = await self.add(store)
        waiting = await self.read(store, job_id)
        taken = await hand.take()
        running = await self.read(store, job_id)
        await hand.finish(taken)
        after = await self.read(store, job_id)
        for move in (
            lifecycle.cancel(waiting, None),
            lifecycle.cancel(running, None),
            lifecycle.reschedule(waiting, seconds(5), now=clock.now()),
            lifecycle.rescue(running, retry_in=seconds(5)),
        ):
            assert move is not None
            (refused,) = await store.apply([move])
            assert refused.job == after
        assert await self.read(store, job_id) == after

    # ── an operator's retry ──────────────────────────────────────────────────────────────

    async def test_a_retry_begins_a_new_generation(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Everything of the old one is cleared, and its last attempt becomes a row (I3, C5)."""
        job_id = await self.add(store, max_attempts=1, expires=seconds(60))
        taken = await hand.take()
        await self.do(store, lifecycle.progress(taken, progress='"1"', partial='"2"'))
        await clock.advance(5)
        await hand.fail(taken)
        ended = clock.now()
        await clock.advance(100)
        await self.retry(store, job_id)
        job = await self.read(store, job_id)
        assert (job.state, job.generation, job.due_at) == (State.AVAILABLE, 2, clock.now())
        assert (job.attempt, job.crashes, job.parked) == (0, 0, 0)
        assert job.fence > taken.fence
        assert (job.started_at, job.finished_at, job.cancel_requested) == (None, None, None)
        assert (job.worker, job.ran_on, job.expires_at) == (None, None, None)
        assert (job.result, job.progress, job.partial) == (None, None, None)
        assert (job.error, job.reason) == (None, None)
        (attempt,) = await store.attempts(job_id)
        assert (attempt.generation, attempt.number, attempt.outcome) == (1, 1, "failed")
        assert (attempt.ended_at, attempt.fence) == (ended, taken.fence)
        again = await hand.take()
        assert (again.generation, again.attempt) == (2, 1)
        assert again.fence > job.fence
        await hand.finish(again)

    async def test_a_late_outcome_of_an_earlier_generation_is_refused(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Also while the new one has not started yet (I4, I5, F43)."""
        job_id = await self.add(store)
        old = await hand.take()
        await self.cancel(store, job_id)
        assert await hand.settle(old, Stopped()) == []
        await self.retry(store, job_id)
        assert len(await hand.settle(old, Completed("1"))) == 1
        new = await hand.take()
        assert len(await hand.settle(old, Completed("1"))) == 1
        await hand.finish(new, result="2")
        assert (await self.read(store, job_id)).result == "2"

    async def test_one_retry_of_two_on_the_same_look_takes_effect(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Two operators press the button: one new generation (F43)."""
        job_id = await self.add(store)
        await hand.fail(await hand.take())
        move = lifecycle.retry(await self.read(store, job_id))
        assert move is not None
        answers = await asyncio.gather(*(store.apply([move]) for _ in range(5)))
        assert sum(not refused for refused in answers) == 1
        job = await self.read(store, job_id)
        assert (job.generation, job.state) == (2, State.AVAILABLE)
        assert len(await store.attempts(job_id)) == 1

    async def test_each_final_state_can_be_retried(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """A live one cannot: the lifecycle says None, and a stale move is refused (I6)."""
        for ending in (Completed("1"), Failed(OOPS, None), Stopped(), None):
            job_id = await self.add(store, expires=None if ending else seconds(1))
            if ending is None:
                await clock.advance(1)
                await self.stage(store)
            else:
                assert await hand.settle(await hand.take(), ending) == []
            await self.retry(store, job_id)
            job = await self.read(store, job_id)
            assert job.state is State.AVAILABLE
            assert lifecycle.retry(job) is None
            await hand.finish(await hand.take())

    # ── reschedule ───────────────────────────────────────────────────────────────────────

    async def test_a_waiting_job_moves_to_another_time(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Later, earlier, or now; its old time has no power any more (I11)."""
        job_id = await self.add(store)

        async def move(due: Any) -> None:
            job = await self.read(store, job_id)
            await self.do(store, lifecycle.reschedule(job, due, now=clock.now()))

        await move(seconds(60))
        assert await hand.claim() == []
        await move(clock.now() + seconds(30))
        await clock.advance(30)
        assert (await self.stage(store)).due == 1
        await move(seconds(60))
        await clock.advance(59)
        await self.stage(store)
        assert await hand.claim() == []
        await move(seconds(0))
        assert (await self.read(store, job_id)).due_at == clock.now()
        assert (await hand.take()).id == job_id

    async def test_a_fast_clock_cannot_make_a_job_early(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Due is what the store's clock says, not the clock of who decided (I11, F34)."""
        job_id = await self.add(store, due=seconds(3_600))
        job, at = await self.read(store, job_id), clock.now() + seconds(5)
        await self.do(store, lifecycle.reschedule(job, at, now=clock.now() + seconds(9)))
        assert await hand.claim() == []
        assert await self.state(store, job_id) is State.SCHEDULED
        await clock.advance(5)
        await self.stage(store)
        assert (await hand.take()).id == job_id

    async def test_a_running_job_is_not_rescheduled(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The lifecycle says None for a fresh look; the guard refuses a stale one (I6)."""
        job_id = await self.add(store)
        waiting = await self.read(store, job_id)
        taken = await hand.take()
        running = await self.read(store, job_id)
        assert lifecycle.reschedule(running, seconds(5), now=clock.now()) is None
        move = lifecycle.reschedule(waiting, seconds(5), now=clock.now())
        assert move is not None
        assert len(await store.apply([move])) == 1
        await hand.finish(taken)

    # ── rescue ───────────────────────────────────────────────────────────────────────────

    async def test_a_rescue_takes_the_job_away_from_its_worker(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """The fence moves at once, so that nothing of the old run counts (I3, I4, I7, F01)."""
        job_id = await self.add(store)
        lost = await hand.take()
        running = await self.read(store, job_id)
        await self.do(store, lifecycle.rescue(running, retry_in=seconds(5)))
        job = await self.read(store, job_id)
        assert (job.state, job.crashes, job.attempt) == (State.AVAILABLE, 1, 1)
        assert (job.worker, job.ran_on) == (None, None)
        assert job.fence > lost.fence
        assert (await hand.beat()).running == {}
        assert len(await hand.settle(lost, Completed("late"))) == 1
        again = await other.take()
        assert (again.attempt, again.crashes) == (2, 1)
        await other.finish(again)

    async def test_a_second_rescue_on_the_same_look_is_refused(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """Two rescuers must not count one crash twice, nor rob the next owner (I3)."""
        job_id = await self.add(store)
        await hand.take()
        running = await self.read(store, job_id)
        move = lifecycle.rescue(running, retry_in=seconds(5))
        answers = await asyncio.gather(*(store.apply([move]) for _ in range(5)))
        assert sum(not refused for refused in answers) == 1
        taken = await other.take()
        assert len(await store.apply([move])) == 1
        await other.finish(taken)
        assert (await self.read(store, job_id)).crashes == 1

    async def test_a_rescue_buries_what_crashes_again_and_again(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """At max_crashes, or with no attempt left, it has failed and says why (F09, L3)."""
        for fields in ({"max_crashes": 2}, {"max_attempts": 2}):
            job_id = await self.add(store, **fields)
            for _ in range(2):
                await self.stage(store)
                await hand.take()
                running = await self.read(store, job_id)
                await self.do(store, lifecycle.rescue(running, retry_in=seconds(5)))
                await clock.advance(5)
            job = await self.read(store, job_id)
            assert (job.state, job.crashes) == (State.FAILED, 2)
            assert job.reason
            assert await hand.claim() == []

    async def test_a_rescue_after_a_wish_to_cancel_cancels(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It never waits again; a rescue decided before the wish is refused (I13)."""
        job_id = await self.add(store)
        await hand.take()
        before = lifecycle.rescue(await self.read(store, job_id), retry_in=seconds(5))
        await self.cancel(store, job_id, "enough")
        assert len(await store.apply([before])) == 1
        running = await self.read(store, job_id)
        await self.do(store, lifecycle.rescue(running, retry_in=seconds(5)))
        job = await self.read(store, job_id)
        assert (job.state, job.reason) == (State.CANCELLED, "enough")
        assert job.finished_at is not None
