"""What time brings: due, expired, lapsed, outlived (I1, I3, I11, L2)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from piecework.core import lifecycle
from piecework.core.job import LogLine, Retention, State
from piecework.core.lifecycle import Completed, Failed, GivenBack, Parked, Stopped
from piecework.ports import Fate, Filter
from piecework.testing.suite.base import OOPS, Hand, Suite, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.core.job import JobId
    from piecework.core.lifecycle import Outcome
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore

__all__ = ["Upkeep"]

TICK = timedelta(microseconds=1)
KEEP_ALL = Retention(completed=None, failed=None, cancelled=None, expired=None)


class Upkeep(Suite):
    """What `stage`, `beat`, `retire`, `orphans` and `prune` promise."""

    # ── stage ────────────────────────────────────────────────────────────────────────────

    async def test_a_due_job_becomes_available_and_not_before(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Due exactly now is due (I11)."""
        job_id = await self.add(store, due=seconds(10))
        assert (await self.stage(store)).next_due == pytest.approx(10)
        await clock.advance(seconds(10) - TICK)
        staged = await self.stage(store)
        assert (staged.due, staged.more) == (0, False)
        assert await self.state(store, job_id) is State.SCHEDULED
        await clock.advance(TICK)
        staged = await self.stage(store)
        assert (staged.due, staged.expired, staged.next_due) == (1, 0, None)
        assert await self.state(store, job_id) is State.AVAILABLE
        assert (await self.stage(store)).due == 0

    async def test_stage_tells_when_the_next_job_is_due(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """So that a worker can sleep until then; a retry counts, a cancelled job does not."""
        assert (await self.stage(store)).next_due is None
        soon = await self.add(store, due=seconds(10))
        await self.add(store, due=seconds(60))
        await clock.advance(2)
        assert (await self.stage(store)).next_due == pytest.approx(8)
        await self.cancel(store, soon)
        assert (await self.stage(store)).next_due == pytest.approx(58)
        await self.add(store)
        await hand.fail(await hand.take(), retry_in=5)
        assert (await self.stage(store)).next_due == pytest.approx(5)

    async def test_stage_stops_at_its_limit_and_says_so(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """A backlog is moved in portions, until nothing is left (F45)."""
        await self.add_many(store, 25, due=seconds(10))
        await clock.advance(10)
        moved: list[int] = []
        while (staged := await store.stage(limit=10)).due:
            moved.append(staged.due)
            if sum(moved) < 25:
                assert staged.more
        assert moved == [10, 10, 5]
        assert not staged.more

    async def test_many_stages_at_once_move_each_job_once(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Every worker does this chore."""
        await self.add_many(store, 30, due=seconds(10))
        await self.add_many(store, 30, expires=seconds(10))
        await clock.advance(10)
        staged = await asyncio.gather(*(store.stage(limit=100) for _ in range(5)))
        assert sum(one.due for one in staged) == 30
        assert sum(one.expired for one in staged) == 30

    async def test_a_job_that_has_not_started_by_its_expiry_expires(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """In each state of waiting; exactly at its expiry it is too late (C17)."""
        ids = [
            await self.add(store, expires=seconds(10), serial_key="s"),
            await self.add(store, expires=seconds(10), serial_key="s"),
            await self.add(store, expires=seconds(10), due=seconds(9)),
        ]
        await clock.advance(seconds(9) - TICK)
        await clock.advance(1)
        assert (await self.stage(store)).expired == 0
        await clock.advance(TICK)
        assert (await self.stage(store)).expired == 3
        for job_id in ids:
            job = await self.read(store, job_id)
            assert (job.state, job.started_at) == (State.EXPIRED, None)
            assert job.finished_at == clock.now()

    async def test_what_is_due_and_expired_at_once_has_expired(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """After a night without any worker it must not start any more (C17)."""
        job_id = await self.add(store, due=seconds(5), expires=seconds(10))
        await clock.advance(3_600)
        await self.stage(store)
        assert await self.state(store, job_id) is State.EXPIRED
        assert await hand.claim() == []

    async def test_a_job_that_has_started_does_not_expire(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Neither while it runs nor while it waits for its retry (C17)."""
        job_id = await self.add(store, expires=seconds(10))
        taken = await hand.take()
        await clock.advance(60)
        assert (await self.stage(store)).expired == 0
        assert await self.state(store, job_id) is State.RUNNING
        await hand.fail(taken, retry_in=60)
        await clock.advance(60)
        staged = await self.stage(store)
        assert (staged.expired, staged.due) == (0, 1)
        await hand.finish(await hand.take())

    @pytest.mark.parametrize("outcome", [Parked("unknown"), GivenBack()], ids=["parked", "given"])
    async def test_a_job_whose_handler_never_started_can_still_expire(
        self, store: AnyStore, hand: Hand, clock: FakeClock, outcome: Any
    ) -> None:
        """A claim alone is no start (C17, F11)."""
        job_id = await self.add(store, expires=seconds(10))
        taken = await hand.take()
        await clock.advance(5)
        assert await hand.settle(taken, outcome) == []
        await clock.advance(5)
        assert (await self.stage(store)).expired == 1
        assert await self.state(store, job_id) is State.EXPIRED
        await clock.advance(3_600)
        await self.stage(store)
        assert await hand.claim() == []

    async def test_a_claim_given_back_after_its_expiry_expires(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The expiry passed while it sat in a worker's buffer (C17)."""
        job_id = await self.add(store, expires=seconds(10))
        taken = await hand.take()
        await clock.advance(20)
        assert (await self.stage(store)).expired == 0
        assert await hand.settle(taken, GivenBack()) == []
        assert await hand.claim() == []
        assert (await self.stage(store)).expired == 1
        assert await self.state(store, job_id) is State.EXPIRED

    async def test_a_clock_that_steps_back_takes_nothing_back(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """What became available stays so; what is not yet due waits for the clock (F35)."""
        await self.add(store, due=seconds(10))
        later = await self.add(store, due=seconds(20))
        await clock.advance(10)
        await self.stage(store)
        await clock.advance(-3_600)
        await self.stage(store)
        assert len(await hand.claim()) == 1
        assert await self.state(store, later) is State.SCHEDULED

    # ── workers ──────────────────────────────────────────────────────────────────────────

    async def test_a_beat_shows_the_worker(self, store: AnyStore, clock: FakeClock) -> None:
        """Others see it as it said, with the store's times."""
        hand, start = Hand(store, clock, "web-1"), clock.now()
        beaten = await hand.beat(pid=42, queues=("a", "b"), slots=7, running=3)
        assert (beaten.fate, beaten.running) == (Fate.ALIVE, {})
        await clock.advance(5)
        await hand.beat(pid=42, queues=("a", "b"), slots=7, running=4, stopping=True)
        (node,) = await store.nodes()
        assert (node.worker, node.node, node.pid) == (hand.id, "web-1", 42)
        assert (node.queues, node.slots, node.running) == (("a", "b"), 7, 4)
        assert (node.started_at, node.beat_at) == (start, clock.now())
        assert (node.lease, node.stopping) == (seconds(30), True)

    async def test_a_beat_answers_every_job_running_in_its_name(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """One it does not know came with a lost claim reply; one it misses is lost (F02, F21)."""
        await self.add_many(store, 5)
        mine, theirs = await hand.claim(3), await other.claim(2)
        await hand.finish(mine[0])
        await self.cancel(store, mine[1].id)
        assert (await hand.beat()).running == {
            mine[1].id: (mine[1].fence, True),
            mine[2].id: (mine[2].fence, False),
        }
        assert set((await other.beat()).running) == {one.id for one in theirs}

    async def test_a_healthy_worker_keeps_its_jobs(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """However long they run (F15)."""
        await self.add(store)
        taken = await hand.take()
        for _ in range(10):
            await clock.advance(29)
            assert await store.orphans(limit=10) == []
            assert (await hand.beat()).fate is Fate.ALIVE
        await hand.finish(taken)

    async def test_jobs_of_a_lapsed_worker_are_orphans(
        self, store: AnyStore, hand: Hand, other: Hand, clock: FakeClock
    ) -> None:
        """Within a lease and a look; those of the living are not (F01, L2, C2)."""
        ids = await self.add_many(store, 3)
        lost, kept = await hand.claim(2), await other.claim(1)
        await clock.advance(29.99)
        assert await store.orphans(limit=10) == []
        await other.beat()
        assert len(await store.nodes()) == 2
        await clock.advance(0.02)
        assert [node.worker for node in await store.nodes()] == [other.id]
        orphans = await store.orphans(limit=10)
        assert {job.id for job in orphans} == {one.id for one in lost}
        assert {job.worker for job in orphans} == {hand.id}
        await self.do(store, *(lifecycle.rescue(job, retry_in=seconds(1)) for job in orphans))
        assert await store.orphans(limit=10) == []
        assert await self.states(store, ids) == [State.AVAILABLE] * 2 + [State.RUNNING]
        await other.finish(*kept)

    async def test_each_worker_has_its_own_lease(self, store: AnyStore, clock: FakeClock) -> None:
        """A long one is not cut short by another's short one."""
        short, long = Hand(store, clock), Hand(store, clock)
        await short.beat(lease=5)
        await long.beat(lease=60)
        await self.add_many(store, 2)
        (first,), (second,) = await short.claim(1), await long.claim(1)
        await clock.advance(6)
        assert [job.id for job in await store.orphans(limit=10)] == [first.id]
        assert (await long.beat(lease=60)).fate is Fate.ALIVE
        await long.finish(second)

    async def test_a_lost_worker_stays_lost(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It must stop its handlers and begin anew under a new id (F04)."""
        await self.add(store)
        await hand.take()
        await clock.advance(31)
        (orphan,) = await store.orphans(limit=10)
        for _ in range(2):
            assert (await hand.beat()).fate is Fate.LOST
            assert [job.id for job in await store.orphans(limit=10)] == [orphan.id]
            assert await store.nodes() == []
        await self.do(store, lifecycle.rescue(orphan, retry_in=seconds(1)))
        assert (await hand.beat()).fate is Fate.LOST

    async def test_a_lost_worker_claims_nothing(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """What it took would be rescued at once, and charged for a crash that was none."""
        await self.add(store)
        await clock.advance(31)
        await store.orphans(limit=10)
        assert await hand.claim() == []
        await hand.beat()
        assert await hand.claim() == []

    async def test_a_late_beat_renews_while_nobody_declared_the_worker_lost(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The declaration is what counts, not the lapse."""
        await self.add(store)
        taken = await hand.take()
        await clock.advance(100)
        assert (await hand.beat()).fate is Fate.ALIVE
        assert await store.orphans(limit=10) == []
        await hand.finish(taken)

    async def test_a_worker_without_jobs_is_declared_lost_too(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Or it would claim under a name that others have given up."""
        await clock.advance(31)
        assert await store.orphans(limit=10) == []
        assert (await hand.beat()).fate is Fate.LOST

    async def test_a_beat_and_a_declaration_that_race_agree(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Either the worker lives and keeps its job, or it is lost and its job is an orphan."""
        for _ in range(5):
            hand = Hand(store, clock)
            await hand.beat()
            await self.add(store)
            taken = await hand.take()
            await clock.advance(31)
            orphans, beaten = await asyncio.gather(store.orphans(limit=9), hand.beat())
            assert (beaten.fate is Fate.LOST) == (taken.id in {job.id for job in orphans})
            await hand.finish(taken)

    async def test_jobs_of_an_unknown_worker_are_orphans(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Its record is gone, or never was: nobody beats for them (F02)."""
        await self.add(store)
        taken = await Hand(store, clock).take()
        assert [job.id for job in await store.orphans(limit=10)] == [taken.id]

    async def test_jobs_of_a_retired_worker_are_orphans_at_once(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """What it left behind, a thread that would not end, need not wait for the lease (F16)."""
        await self.add_many(store, 2)
        left, done = await hand.claim()
        await hand.finish(done)
        await store.retire(hand.id)
        assert [node.worker for node in await store.nodes()] == [other.id]
        assert [job.id for job in await store.orphans(limit=10)] == [left.id]
        await store.retire(hand.id)

    async def test_orphans_come_in_portions(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """A worker with thousands of jobs is rescued step by step."""
        await self.add_many(store, 5)
        await hand.claim()
        await clock.advance(31)
        for expected in (3, 2, 0):
            orphans = await store.orphans(limit=3)
            assert len(orphans) == expected
            await self.do(store, *(lifecycle.rescue(job, retry_in=seconds(1)) for job in orphans))

    async def test_a_zombie_changes_nothing_after_its_rescue(
        self, store: AnyStore, hand: Hand, other: Hand, clock: FakeClock
    ) -> None:
        """Frozen past its lease, rescued, thawed: all it writes is refused (I3, I4, F04, C2)."""
        job_id = await self.add(store)
        zombie = await hand.take()
        await clock.advance(31)
        await other.beat()
        (orphan,) = await store.orphans(limit=10)
        await self.do(store, lifecycle.rescue(orphan, retry_in=seconds(1)))
        current = await other.take()
        before = await self.read(store, job_id)
        for outcome in (Completed("late"), Failed(OOPS, None), Stopped()):
            assert len(await hand.settle(zombie, outcome)) == 1
        late = lifecycle.progress(zombie, progress='"late"', partial='"late"')
        assert len(await store.apply([late])) == 1
        assert await self.read(store, job_id) == before
        await other.finish(current, result='"good"')
        assert (await self.read(store, job_id)).result == '"good"'

    async def test_a_clock_that_steps_back_does_not_shorten_leases(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """They may lengthen (F35)."""
        await self.add(store)
        taken = await hand.take()
        await clock.advance(-3_600)
        assert await store.orphans(limit=10) == []
        await hand.beat()
        await clock.advance(3_600 + 29)
        assert await store.orphans(limit=10) == []
        await hand.finish(taken)

    # ── prune ────────────────────────────────────────────────────────────────────────────

    async def one_of_each(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> dict[State, JobId]:
        """Store a job of each final state, all finished at the same instant."""
        ids = await self.add_many(store, 3)
        expired = await self.add(store, due=seconds(1), expires=seconds(2))
        await clock.advance(2)
        taken = {one.id: one for one in await hand.claim()}
        endings: tuple[Outcome, ...] = (Completed("1"), Failed(OOPS, None), Stopped())
        for job_id, ending in zip(ids, endings, strict=True):
            assert await hand.settle(taken[job_id], ending) == []
        await self.stage(store)
        states = [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED]
        kept: dict[State, JobId] = dict(zip(states, [*ids, expired], strict=True))
        assert await self.states(store, [*kept.values()]) == states
        return kept

    async def test_retention_removes_exactly_the_old_ones(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Kept while younger, gone as soon as it is that old, each state by its own (C19)."""
        kept = await self.one_of_each(store, hand, clock)
        retention = Retention(
            completed=seconds(10), failed=seconds(20), cancelled=seconds(30), expired=seconds(40)
        )
        await clock.advance(seconds(10) - TICK)
        for state in (State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED):
            assert await store.prune(retention, limit=10) == []
            await clock.advance(TICK)
            assert await store.prune(retention, limit=10) == [kept[state]]
            assert await store.get([kept[state]]) == []
            await clock.advance(seconds(10) - TICK)
        assert await store.count() == {}

    async def test_no_retention_keeps_for_ever(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """None is not zero; and zero is at once."""
        kept = await self.one_of_each(store, hand, clock)
        await clock.advance(timedelta(days=10_000))
        assert await store.prune(KEEP_ALL, limit=10) == []
        zero = seconds(0)
        everything = Retention(completed=zero, failed=zero, cancelled=zero, expired=zero)
        assert set(await store.prune(everything, limit=10)) == set(kept.values())

    async def test_live_jobs_are_never_pruned(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """However old, by age or by name (I1, F47)."""
        ids = [
            await self.add(store, serial_key="s"),
            await self.add(store, serial_key="s"),
            await self.add(store, due=seconds(10**9)),
            await self.add(store),
        ]
        await hand.claim(1)
        retried = await self.add(store)
        await hand.fail(next(one for one in await hand.claim() if one.id == retried))
        await self.retry(store, retried)
        await clock.advance(10**8)
        zero = seconds(0)
        everything = Retention(completed=zero, failed=zero, cancelled=zero, expired=zero)
        assert await store.prune(everything, limit=10) == []
        assert await store.prune([*ids, retried], limit=10) == []
        assert len(await store.get([*ids, retried])) == 5

    async def test_a_jobs_own_time_to_keep_overrides(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """`result_ttl` may be shorter or longer than the retention of completed jobs."""
        short = await self.add(store, result_ttl=seconds(5))
        long = await self.add(store, result_ttl=seconds(50))
        plain = await self.add(store)
        failed = await self.add(store, result_ttl=seconds(5))
        taken = await hand.claim()
        await hand.finish(*taken[:3])
        await hand.fail(taken[3])
        retention = Retention(completed=seconds(20), failed=None)
        end = clock.now()
        for age, gone in (
            (seconds(5) - TICK, []),
            (seconds(5), [short]),
            (seconds(20), [plain]),
            (seconds(50) - TICK, []),
            (seconds(50), [long]),
        ):
            await clock.set(end + age)
            assert await store.prune(retention, limit=10) == gone, age
        assert await self.state(store, failed) is State.FAILED

    async def test_a_retried_job_forgets_when_it_was_to_go(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Its age begins anew with its next end."""
        job_id = await self.add(store, result_ttl=seconds(5))
        await hand.finish(await hand.take())
        await clock.advance(4)
        await self.retry(store, job_id)
        await clock.advance(4)
        await hand.finish(await hand.take())
        await clock.advance(4)
        assert await store.prune(KEEP_ALL, limit=10) == []
        await clock.advance(1)
        assert await store.prune(KEEP_ALL, limit=10) == [job_id]

    async def test_prune_goes_in_portions(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """No call removes more than its limit (F47)."""
        ids = await self.add_many(store, 7)
        await hand.finish(*await hand.claim())
        await clock.advance(10)
        retention = Retention(completed=seconds(1))
        portions = [await store.prune(retention, limit=3) for _ in range(4)]
        assert [len(portion) for portion in portions] == [3, 3, 1, 0]
        assert sorted(one for portion in portions for one in portion) == sorted(ids)

    async def test_a_deletion_takes_the_named_final_jobs(self, store: AnyStore, hand: Hand) -> None:
        """Unknown and live ones are passed over; the answer says which went (C18)."""
        ids = await self.add_many(store, 4)
        taken = await hand.claim(3)
        await hand.finish(*taken[:2])
        ghost = await self.add(store)
        await self.cancel(store, ghost)
        assert await store.prune([ghost], limit=10) == [ghost]
        gone = await store.prune([*ids, ghost, ids[0]], limit=10)
        assert sorted(gone) == sorted(ids[:2])
        assert {job.id for job in await store.get([*ids, ghost])} == set(ids[2:])

    async def test_all_that_was_the_jobs_goes_with_it(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Logs, attempts and metadata (C19)."""
        job_id = await self.add(store, metadata={"a": "1"})
        other = await self.add(store, metadata={"a": "1"})
        line = LogLine(at=clock.now(), level="INFO", message="x")
        for taken in await hand.claim():
            assert await hand.settle(taken, Failed(OOPS, seconds(1)), logs=(line,)) == []
        await clock.advance(1)
        await self.stage(store)
        await hand.finish(*await hand.claim())
        assert await store.prune([job_id], limit=1) == [job_id]
        assert await store.logs(job_id) == []
        assert await store.attempts(job_id) == []
        found = await store.find(Filter(metadata={"a": "1"}), after=None, limit=9)
        assert [job.id for job in found] == [other]
        assert len(await store.logs(other)) == 1
        assert len(await store.attempts(other)) == 1

    async def test_what_was_pruned_stays_gone_after_a_restart(
        self,
        store: AnyStore,
        hand: Hand,
        reopen: Callable[[AnyStore], Awaitable[AnyStore]],
    ) -> None:
        """And the outcome of what stayed is still there (C8)."""
        ids = await self.add_many(store, 2)
        await hand.finish(*await hand.claim(), result='"kept"')
        await store.prune(ids[:1], limit=1)
        store = await reopen(store)
        (job,) = await store.get(ids)
        assert (job.id, job.result) == (ids[1], '"kept"')
