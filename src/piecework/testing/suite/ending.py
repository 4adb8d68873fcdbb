"""How runs end: one outcome each, accepted from the owner alone (I4, I5, I7, I17)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from piecework.core import lifecycle
from piecework.core.attempts import decode_error
from piecework.core.job import LogLine, State
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
from piecework.ports import Filter
from piecework.testing.factories import claimed
from piecework.testing.suite.base import OOPS, Suite, seconds, title

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.core.lifecycle import Outcome
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["Ending"]

OUTCOMES: list[Outcome] = [
    Completed("1"),
    Failed(OOPS, None),
    Failed(OOPS, seconds(60)),
    Crashed("killed", seconds(60)),
    Snoozed(seconds(60)),
    Parked("unknown"),
    Stopped(),
    Released(),
    GivenBack(),
]
BACK = [
    (Failed(OOPS, seconds(60)), State.SCHEDULED),
    (Crashed("killed", seconds(60)), State.SCHEDULED),
    (Snoozed(seconds(60)), State.SCHEDULED),
    (Parked("unknown"), State.SCHEDULED),
    (Released(), State.AVAILABLE),
    (GivenBack(), State.AVAILABLE),
]


def _line(text: str, second: int = 0) -> LogLine:
    at = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    return LogLine(at=at, level="INFO", message=text, logger="app")


class Ending(Suite):
    """What `apply` promises to the owner of a job."""

    async def test_a_completed_job_has_its_result(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """And the instant it ended, by the store's clock."""
        job_id = await self.add(store)
        taken = await hand.take()
        await clock.advance(7)
        await hand.finish(taken, result='{"n": 42}')
        job = await self.read(store, job_id)
        assert (job.state, job.result, job.error) == (State.COMPLETED, '{"n": 42}', None)
        assert job.finished_at == clock.now()
        assert job.started_at == clock.now() - seconds(7)
        assert (job.worker, job.ran_on, job.attempt) == (hand.id, hand.node, 1)

    async def test_a_failed_job_has_its_error(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Type, message and traceback come back as they were."""
        job_id = await self.add(store)
        await hand.fail(await hand.take())
        job = await self.read(store, job_id)
        assert (job.state, job.finished_at) == (State.FAILED, clock.now())
        assert decode_error(job.error) == OOPS

    @pytest.mark.parametrize(("outcome", "state"), BACK, ids=title)
    async def test_what_goes_back_waits_from_the_stores_now(
        self,
        store: AnyStore,
        hand: Hand,
        clock: FakeClock,
        outcome: Any,
        state: State,
    ) -> None:
        """Durations count from the commit, not from the start of the run (C5)."""
        job_id = await self.add(store)
        taken = await hand.take()
        await clock.advance(1_000)
        assert await hand.settle(taken, outcome) == []
        job = await self.read(store, job_id)
        assert job.state is state
        assert (job.worker, job.ran_on, job.finished_at) == (None, None, None)
        assert job.fence > taken.fence
        wait = 60 if state is State.SCHEDULED else -1_000
        assert job.due_at == clock.now() + seconds(wait)
        await clock.advance(max(0, wait))
        await self.stage(store)
        again = await hand.take()
        assert again.fence > job.fence

    async def test_a_failed_attempt_is_charged_and_a_snooze_or_release_is_not(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Attempts count once for each start that counts (I7, C5)."""
        job_id = await self.add(store, max_attempts=3)
        for outcome, attempt in (
            (Snoozed(seconds(1)), 1),
            (Released(), 1),
            (Failed(OOPS, seconds(1)), 1),
            (GivenBack(), 2),
            (Parked("unknown"), 2),
            (Crashed("killed", seconds(1)), 2),
            (Failed(OOPS, seconds(1)), 3),
        ):
            await self.stage(store)
            taken = await hand.take()
            assert taken.attempt == attempt, outcome
            assert await hand.settle(taken, outcome) == []
            await clock.advance(60)
        job = await self.read(store, job_id)
        assert (job.state, job.attempt, job.crashes) == (State.FAILED, 3, 1)
        assert await hand.claim() == []

    async def test_crashes_are_counted_until_the_job_is_buried(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """A poisonous job must not kill workers for ever (F09)."""
        job_id = await self.add(store, max_attempts=10, max_crashes=2)
        for crashes in range(2):
            await self.stage(store)
            taken = await hand.take()
            assert taken.crashes == crashes
            assert await hand.settle(taken, Crashed("signal 11", seconds(1))) == []
            await clock.advance(1)
        job = await self.read(store, job_id)
        assert (job.state, job.crashes) == (State.FAILED, 2)
        assert "signal 11" in str(job.reason)

    async def test_back_off_outlives_a_restart(
        self,
        store: AnyStore,
        hand: Hand,
        clock: FakeClock,
        reopen: Callable[[AnyStore], Awaitable[AnyStore]],
    ) -> None:
        """The next instant is stored, and so is what went wrong (C5, C8)."""
        job_id = await self.add(store)
        await hand.fail(await hand.take(), retry_in=60)
        store = await reopen(store)
        job = await self.read(store, job_id)
        assert (job.state, job.attempt) == (State.SCHEDULED, 1)
        assert job.due_at == clock.now() + seconds(60)
        assert decode_error(job.error) == OOPS

    async def test_success_clears_the_error(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """A job that came through has no error; its attempts tell the story (C5)."""
        job_id = await self.add(store)
        await hand.fail(await hand.take(), retry_in=1)
        await clock.advance(1)
        await self.stage(store)
        await hand.finish(await hand.take())
        job = await self.read(store, job_id)
        assert (job.error, job.attempt) == (None, 2)
        assert [one.outcome for one in await store.attempts(job_id)] == ["failed"]

    async def test_a_parked_job_never_started(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It is shown with its reason, waits longer each time, and its expiry stands (C14, F11)."""
        await self.add(store, due=seconds(10**6))
        job_id = await self.add(store, expires=seconds(3_600))
        for count, wait in ((1, 60), (2, 120)):
            assert await hand.settle(await hand.take(), Parked("no such kind")) == []
            job = await self.read(store, job_id)
            assert (job.parked, job.reason, job.attempt) == (count, "no such kind", 0)
            assert (job.started_at, job.due_at) == (None, clock.now() + seconds(wait))
            found = await store.find(Filter(parked=True), after=None, limit=9)
            assert [one.id for one in found] == [job_id]
            await clock.advance(wait)
            await self.stage(store)
        await hand.finish(await hand.take())
        assert (await self.read(store, job_id)).parked == 0
        assert await store.find(Filter(parked=True), after=None, limit=9) == []

    # ── the guard ────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("outcome", OUTCOMES, ids=title)
    async def test_a_stale_fence_cannot_settle(
        self, store: AnyStore, hand: Hand, other: Hand, outcome: Any
    ) -> None:
        """The job runs again elsewhere: nothing of the first run may touch it (I4, F04, C2)."""
        job_id = await self.add(store)
        stale = await hand.take()
        assert await hand.settle(stale, Released()) == []
        await other.take()
        before = await self.read(store, job_id)
        (refused,) = await hand.settle(stale, outcome, progress='{"done": 9}', logs=(_line("x"),))
        assert refused.job == before
        assert await self.read(store, job_id) == before
        assert await self.log_texts(store, job_id) == []

    @pytest.mark.parametrize("outcome", OUTCOMES, ids=title)
    @pytest.mark.parametrize(
        "first", [Completed('"first"'), Failed(OOPS, None), Stopped()], ids=title
    )
    async def test_a_final_state_absorbs(
        self, store: AnyStore, hand: Hand, first: Any, outcome: Any
    ) -> None:
        """The fence is still the same, so the state must be asked too (I5)."""
        job_id = await self.add(store)
        taken = await hand.take()
        assert await hand.settle(taken, first) == []
        before = await self.read(store, job_id)
        (refused,) = await hand.settle(taken, outcome)
        assert refused.job == before
        assert await self.read(store, job_id) == before

    async def test_a_stale_progress_changes_nothing(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """Progress goes forward in (fence, sequence) (I4, I17)."""
        job_id = await self.add(store)
        stale = await hand.take()
        assert await hand.settle(stale, Released()) == []
        current = await other.take()
        assert await store.apply([lifecycle.progress(current, progress='"2"', partial=None)]) == []
        late = lifecycle.progress(stale, progress='"1"', partial='"1"', logs=(_line("x"),))
        assert len(await store.apply([late])) == 1
        await other.finish(current)
        assert len(await store.apply([late])) == 1
        job = await self.read(store, job_id)
        assert (job.progress, job.partial, job.state) == ('"2"', None, State.COMPLETED)
        assert await store.logs(job_id) == []

    async def test_an_unknown_job_is_refused(self, store: AnyStore, hand: Hand) -> None:
        """Retention may have removed it; the others of the batch take effect."""
        job_id = await self.add(store)
        ghost = hand.ending(claimed(), Completed("1"))
        taken = await hand.take()
        (refused,) = await store.apply([ghost, hand.ending(taken, Completed("1"))])
        assert (refused.transition, refused.job, refused.holder) == (ghost, None, None)
        assert await self.state(store, job_id) is State.COMPLETED

    # ── sets ─────────────────────────────────────────────────────────────────────────────

    async def test_a_batch_of_all_shapes_refuses_exactly_the_stale_ones(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Set-based inside, yet each move stands or falls alone (C18)."""
        ids = await self.add_many(store, len(OUTCOMES) * 3)
        taken = await hand.claim()
        stale = taken[: len(OUTCOMES)]
        for one in stale:
            assert await hand.settle(one, Released()) == []
        moves = [
            hand.ending(one, OUTCOMES[number % len(OUTCOMES)]) for number, one in enumerate(taken)
        ]
        moves = moves[::2] + moves[1::2]
        refused = await store.apply(moves)
        assert {one.transition.id for one in refused} == {one.id for one in stale}
        assert all(one.job and one.job.state is State.AVAILABLE for one in refused)
        expected = [move.changes["state"] for move in sorted(moves, key=lambda move: move.id)]
        expected[: len(OUTCOMES)] = [State.AVAILABLE] * len(OUTCOMES)
        assert await self.states(store, sorted(ids)) == expected

    async def test_each_move_of_one_shape_has_its_own_values(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Also in a batch larger than any chunk, with one refused in its midst."""
        ids = await self.add_many(store, 700)
        taken = await hand.claim(700)
        moves = [hand.ending(one, Completed(f'"{one.id}"')) for one in taken]
        assert await store.apply([moves[350]]) == []
        (refused,) = await store.apply(moves)
        assert refused.transition == moves[350]
        assert {job.id: job.result for job in await store.get(ids)} == {
            job_id: f'"{job_id}"' for job_id in ids
        }

    async def test_of_two_outcomes_in_one_batch_the_first_stands(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Exactly one outcome, also where both come in one list (I5)."""
        ids = await self.add_many(store, 3)
        taken = await hand.claim()
        firsts = [hand.ending(one, Completed('"first"')) for one in taken]
        seconds_ = [hand.ending(one, Completed('"second"')) for one in taken]
        refused = await store.apply([*firsts, *seconds_])
        assert [one.transition for one in refused] == seconds_
        assert {job.result for job in await store.get(ids)} == {'"first"'}
        failed = hand.ending(taken[0], Failed(OOPS, None))
        assert [one.transition for one in await store.apply([failed])] == [failed]

    async def test_one_move_twice_in_one_batch_takes_effect_once(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """A repeated write is refused the second time, and its rows are written once (I5)."""
        job_id = await self.add(store)
        taken = await hand.take()
        move = hand.ending(taken, Failed(OOPS, seconds(5)), logs=(_line("x"),))
        assert len(await store.apply([move, move])) == 1
        assert (await self.read(store, job_id)).fence == taken.fence + 1
        assert len(await store.attempts(job_id)) == 1
        assert await self.log_texts(store, job_id) == [(taken.fence, "x")]

    async def test_progress_and_the_end_may_come_in_one_batch(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """In their order: progress first is written, progress afterwards is refused (I17)."""
        ids = await self.add_many(store, 2)
        one, two = await hand.claim()
        before = lifecycle.progress(one, progress='"1"', partial='"p"')
        after = lifecycle.progress(two, progress='"2"', partial='"p"')
        ends = [hand.ending(taken, Completed("1")) for taken in (one, two)]
        refused = await store.apply([before, *ends, after])
        assert [move.transition for move in refused] == [after]
        assert [(await self.read(store, job_id)).progress for job_id in ids] == ['"1"', None]

    async def test_a_refused_move_tells_of_its_job_as_the_batch_left_it(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Also where a later move of the same list has changed it: else it tells of the past."""
        job_id = await self.add(store)
        stale = await hand.take()
        assert await hand.settle(stale, Released()) == []
        cancel = lifecycle.cancel(await self.read(store, job_id), None)
        assert cancel is not None
        (refused,) = await store.apply([hand.ending(stale, Completed("1")), cancel])
        job = await self.read(store, job_id)
        assert (refused.job, job.state) == (job, State.CANCELLED)

    # ── progress, logs, attempts ─────────────────────────────────────────────────────────

    async def test_progress_and_partial_results_outlive_a_failure(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """What was reached is not lost with the attempt (C16)."""
        job_id = await self.add(store)
        taken = await hand.take()
        await self.do(store, lifecycle.progress(taken, progress='{"done": 3}', partial=None))
        await self.do(store, lifecycle.progress(taken, progress=None, partial="[1, 2]"))
        job = await self.read(store, job_id)
        assert (job.progress, job.partial, job.state) == ('{"done": 3}', "[1, 2]", State.RUNNING)
        assert (await store.statuses([job_id]))[job_id].progress == '{"done": 3}'
        assert await hand.settle(taken, Failed(OOPS, seconds(1)), progress='{"done": 4}') == []
        await clock.advance(1)
        await self.stage(store)
        await hand.fail(await hand.take())
        job = await self.read(store, job_id)
        assert (job.progress, job.partial) == ('{"done": 4}', "[1, 2]")

    async def test_an_attempt_that_is_followed_by_another_has_a_row(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Oldest first, its end stamped by the store; the job's row tells of the last one."""
        job_id = await self.add(store)
        start = clock.now()
        for outcome in (Failed(OOPS, seconds(1)), Snoozed(seconds(1), "busy"), GivenBack()):
            taken = await hand.take()
            await clock.advance(2)
            move = hand.ending(taken, outcome)
            assert await store.apply([move]) == []
            await clock.advance(3)
            await self.stage(store)
        await hand.finish(await hand.take())
        first, second = await store.attempts(job_id)
        assert (first.number, first.fence, first.outcome) == (1, 1, "failed")
        assert (first.ended_at, first.worker, first.node) == (
            start + seconds(2),
            hand.id,
            hand.node,
        )
        assert (second.number, second.generation, second.outcome) == (2, 1, "snoozed")
        assert second.fence > first.fence
        assert second.ended_at == start + seconds(7)

    async def test_attempts_tell_everything(self, store: AnyStore, hand: Hand) -> None:
        """Error and traceback, as text."""
        job_id = await self.add(store)
        taken = await hand.take()
        await self.do(store, hand.ending(taken, Released()))
        await hand.take()
        running = await self.read(store, job_id)
        await self.do(store, lifecycle.rescue(running, retry_in=seconds(1)))
        released, crashed = await store.attempts(job_id)
        assert (released.outcome, released.error) == ("released", None)
        assert (crashed.outcome, crashed.number, crashed.worker) == ("crashed", 1, hand.id)
        assert "was lost" in str(crashed.error)

    async def test_logs_come_back_in_the_order_of_writing(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Whatever the workers' clocks said, with the fence of the attempt that wrote them."""
        job_id = await self.add(store)
        taken = await hand.take()
        lines = tuple(_line(f"line {number}", 59 - number) for number in range(50))
        await self.do(
            store, lifecycle.progress(taken, progress=None, partial=None, logs=lines[:20])
        )
        assert await hand.settle(taken, Failed(OOPS, seconds(1)), logs=lines[20:]) == []
        await clock.advance(1)
        await self.stage(store)
        again = await hand.take()
        assert await hand.settle(again, Completed("1"), logs=(_line("ünïcödé\n\t🙂"),)) == []
        logs = await store.logs(job_id)
        assert logs == [
            *((taken.fence, line) for line in lines),
            (again.fence, _line("ünïcödé\n\t🙂")),
        ]

    async def test_logs_and_attempts_belong_to_their_job(self, store: AnyStore, hand: Hand) -> None:
        """Of two jobs in one batch each has its own."""
        ids = await self.add_many(store, 2)
        moves = [
            hand.ending(taken, Failed(OOPS, seconds(1)), logs=(_line(str(taken.id)),))
            for taken in await hand.claim()
        ]
        assert await store.apply(moves) == []
        for job_id in ids:
            assert [text for _, text in await self.log_texts(store, job_id)] == [str(job_id)]
            assert len(await store.attempts(job_id)) == 1
