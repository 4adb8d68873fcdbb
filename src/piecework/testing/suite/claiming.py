"""Claim: never early, never twice, never more than asked or allowed (I3, I9, I11, I14)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from piecework.core import lifecycle
from piecework.core.job import State
from piecework.core.lifecycle import Completed, Crashed, Released, Snoozed
from piecework.ports import Ask, QueueChange
from piecework.testing.factories import new_job
from piecework.testing.suite.base import Hand, Suite, seconds

if TYPE_CHECKING:
    from piecework.core.job import JobId
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore

__all__ = ["Claiming"]


class Claiming(Suite):
    """What `claim` and `configure` promise."""

    # ── a claim ──────────────────────────────────────────────────────────────────────────

    async def test_a_claim_starts_the_job_in_the_workers_name(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The worker and all who look see the same fence, attempt and start (I3)."""
        job_id = await self.add(
            store,
            kind="ship",
            args="[1]",
            queue="q",
            name="n",
            timeout=2.5,
            metadata={"a": "b"},
            schedule="s",
            tick=clock.now(),
            count=3,
            result_ttl=seconds(5),
            max_attempts=4,
            max_crashes=2,
        )
        await clock.advance(3)
        taken, job = await hand.take(), await self.read(store, job_id)
        assert (taken.id, taken.fence, taken.attempt, taken.generation) == (job_id, 1, 1, 1)
        for name in taken._fields:
            assert getattr(taken, name) == getattr(job, name), name
        assert job.state is State.RUNNING
        assert (job.worker, job.ran_on, job.node) == (hand.id, hand.node, None)
        assert (job.started_at, job.due_at) == (clock.now(), clock.now() - seconds(3))

    async def test_each_claim_raises_the_fence(self, store: AnyStore, hand: Hand) -> None:
        """Also where the attempt is given back: the fence is what tells two runs apart (I3)."""
        job_id = await self.add(store)
        fences = [0]
        for _ in range(4):
            taken = await hand.take()
            assert taken.attempt == 1
            assert taken.fence > fences[-1]
            fences.append(taken.fence)
            assert await hand.settle(taken, Released()) == []
            fences.append((await self.read(store, job_id)).fence)
            assert fences[-1] > fences[-2]

    async def test_a_claim_takes_no_more_than_asked(self, store: AnyStore, hand: Hand) -> None:
        """What a worker has no room for is another's (C1, F25)."""
        await self.add_many(store, 5)
        assert await hand.claim(0) == []
        assert len(await hand.claim(3)) == 3
        assert len(await hand.claim(3)) == 2
        assert await hand.claim(3) == []

    async def test_no_job_is_claimed_twice(self, store: AnyStore, clock: FakeClock) -> None:
        """Twenty workers at once share the jobs out (I3, C1)."""
        ids = await self.add_many(store, 100)
        hands = [Hand(store, clock, f"node-{n}") for n in range(20)]
        shares = await asyncio.gather(*(one.claim(7) for one in hands))
        shares += await asyncio.gather(*(one.claim(7) for one in hands))
        taken = [one for share in shares for one in share]
        assert sorted(one.id for one in taken) == sorted(ids)
        assert {one.fence for one in taken} == {1}

    async def test_order_is_priority_then_due_time_then_id(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """The highest priority first; among equals who was due first, then who came first (I9)."""
        now = clock.now()
        plain = await self.add(store, due=now)
        urgent = await self.add(store, priority=10)
        low = await self.add(store, priority=-10, due=now - seconds(99))
        early = await self.add(store, due=now - seconds(1))
        twin = await self.add(store, due=now)
        order = [urgent, early, plain, twin, low]
        assert [one.id for one in await hand.claim(2)] == order[:2]
        assert [(await hand.take()).id for _ in order[2:]] == order[2:]

    async def test_order_holds_over_queues(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Queues share one order, whether a worker serves all of them or some."""
        for queues in (None, ("a", "b")):
            jobs = [
                new_job(queue=queue, priority=n // 4, due=clock.now() - seconds(n % 3))
                for n, queue in enumerate("abababababab")
            ]
            await store.insert(jobs)
            jobs.sort(key=lambda job: (-job.priority, str(job.due), job.id))
            first, rest = await hand.claim(5, queues=queues), await hand.claim(queues=queues)
            assert [one.id for one in first + rest] == [job.id for job in jobs]

    async def test_a_retried_job_keeps_its_place_by_its_new_due_time(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It stands behind those that were due before it (I9)."""
        first = await self.add(store)
        await hand.fail(await hand.take(), retry_in=5)
        await clock.advance(4)
        second = await self.add(store)
        await clock.advance(6)
        third = await self.add(store)
        await self.stage(store)
        assert [one.id for one in await hand.claim()] == [second, first, third]

    async def test_a_future_job_is_not_claimed(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Not a microsecond early, with or without a stage; then at once (I11)."""
        job_id = await self.add(store, due=seconds(60))
        await clock.advance(timedelta(seconds=60, microseconds=-1))
        await self.stage(store)
        assert await hand.claim() == []
        await clock.advance(timedelta(microseconds=1))
        await self.stage(store)
        assert (await hand.take()).id == job_id

    async def test_an_expired_job_is_not_claimed(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Not even before a stage has said so; until then it may start (C17)."""
        for queues in (None, ("default",)):
            late = await self.add(store, expires=seconds(60))
            timely = await self.add(store, expires=timedelta(seconds=60, microseconds=1))
            never = await self.add(store)
            await clock.advance(60)
            assert [one.id for one in await hand.claim(queues=queues)] == [timely, never]
            assert await self.state(store, late) is State.AVAILABLE

    async def test_expired_jobs_do_not_stand_in_the_way(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """However many are at the head of the line."""
        await self.add_many(store, 300, expires=seconds(1), priority=9)
        job_id = await self.add(store)
        await clock.advance(1)
        assert (await hand.take()).id == job_id

    async def test_only_available_jobs_are_claimed(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """One in each other state, and none of them is touched (I6)."""
        for ending in ("complete", "fail", "cancel", "run", "retry"):
            job_id = await self.add(store)
            if ending == "cancel":
                await self.cancel(store, job_id)
                continue
            taken = await hand.take()
            if ending == "complete":
                await hand.finish(taken)
            elif ending == "fail":
                await hand.fail(taken)
            elif ending == "retry":
                await hand.fail(taken, retry_in=60)
        before = await store.count()
        assert await other.claim() == []
        assert await store.count() == before

    # ── queues and nodes ─────────────────────────────────────────────────────────────────

    async def test_a_worker_gets_jobs_of_its_queues_only(self, store: AnyStore, hand: Hand) -> None:
        """None means every queue, also those that nobody had heard of."""
        a, b, c = [await self.add(store, queue=queue) for queue in "abc"]
        assert await hand.claim(queues=("z",)) == []
        assert [one.id for one in await hand.claim(queues=("b", "z", "b"))] == [b]
        assert [one.id for one in await hand.claim(queues=None)] == [a, c]

    async def test_a_bound_job_is_claimed_on_its_node_only(
        self, store: AnyStore, hand: Hand, other: Hand
    ) -> None:
        """In order with the others there, and never elsewhere (C18)."""
        for queues in (None, ("default",)):
            first = await self.add(store)
            bound = await self.add(store, node=hand.node)
            last = await self.add(store)
            urgent = await self.add(store, node=hand.node, priority=1)
            foreign = await self.add(store, node="node-3")
            assert [one.id for one in await other.claim(1, queues=queues)] == [first]
            order = [urgent, bound, last]
            assert [one.id for one in await hand.claim(queues=queues)] == order
            assert await other.claim(queues=queues) == []
            await self.cancel(store, foreign)

    async def test_a_flood_bound_elsewhere_does_not_stand_in_the_way(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Another node's backlog is not passed over row by row."""
        await self.add_many(store, 500, node="node-3", priority=9)
        job_id = await self.add(store)
        assert (await hand.take()).id == job_id

    # ── kinds without room, and the buffer ───────────────────────────────────────────────

    async def test_no_kind_gets_more_than_its_room(self, store: AnyStore, hand: Hand) -> None:
        """A kind without room is passed over; the others go on (C13)."""
        for kind in "aabbcc":
            await self.add(store, kind=kind)
        taken = await hand.claim(rooms={"a": 1, "b": 0})
        assert [one.kind for one in taken] == ["a", "c", "c"]
        taken = await hand.claim(3, rooms={"a": 5})
        assert [one.kind for one in taken] == ["a", "b", "b"]

    async def test_a_kind_without_room_does_not_stand_in_the_way(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """At least 5 rows for each one asked for are passed over."""
        await self.add_many(store, 50, kind="slow")
        job_id = await self.add(store, kind="fast")
        assert [one.id for one in await hand.claim(10, rooms={"slow": 0})] == [job_id]
        assert len(await hand.claim()) == 50

    async def test_what_is_claimed_ahead_can_afford_a_crash(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The worker's death must not fail a job that never started (speed.md, F09)."""
        crashed = await self.add(store, priority=-1)
        taken = await hand.take()
        assert await hand.settle(taken, Crashed("killed", seconds(0))) == []
        await self.stage(store)
        once = [await self.add(store, max_attempts=1) for _ in range(2)]
        twice = [await self.add(store, max_attempts=2) for _ in range(2)]
        order = [one.id for one in await hand.claim(1, ahead=10)]
        assert order == [once[0], *twice]
        assert [one.id for one in await hand.claim(0, ahead=10)] == []
        assert [one.id for one in await hand.claim(5, ahead=10)] == [once[1], crashed]

    async def test_ahead_is_bounded_too(self, store: AnyStore, hand: Hand) -> None:
        """At most free + ahead."""
        await self.add_many(store, 9)
        assert len(await hand.claim(2, ahead=3)) == 5

    # ── pause and limits ─────────────────────────────────────────────────────────────────

    async def test_a_paused_queue_gives_nothing(self, store: AnyStore, hand: Hand) -> None:
        """As soon as the pause was acknowledged; other queues go on; resume undoes it (I14)."""
        held = await self.add(store, queue="a", priority=9)
        free = await self.add(store, queue="b")
        await store.configure([QueueChange(name="a", paused=True)])
        assert await hand.claim(queues=("a",)) == []
        assert [one.id for one in await hand.claim()] == [free]
        await store.configure([QueueChange(name="a", paused=False)])
        assert [one.id for one in await hand.claim()] == [held]

    async def test_a_queue_can_be_paused_before_it_has_jobs(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """A queue is only a name."""
        await store.configure([QueueChange(name="a", paused=True)])
        await self.add(store, queue="a")
        assert await hand.claim() == []

    async def test_a_pause_holds_bound_jobs_too(self, store: AnyStore, hand: Hand) -> None:
        """The node is not a way around it (I14)."""
        await store.configure([QueueChange(name="a", paused=True)])
        await self.add(store, queue="a", node=hand.node)
        for queues in (None, ("a",)):
            assert await hand.claim(queues=queues) == []

    async def test_a_late_outcome_leaves_the_pause_alone(self, store: AnyStore, hand: Hand) -> None:
        """Running jobs end as they end, and what goes back waits for the resume (C4)."""
        await self.add_many(store, 3)
        one, two, three = await hand.claim()
        await store.configure([QueueChange(name="default", paused=True)])
        await hand.finish(one)
        assert await hand.settle(two, Released()) == []
        assert await hand.settle(three, Snoozed(seconds(0))) == []
        await self.stage(store)
        assert await hand.claim() == []
        (queue,) = await store.queues()
        assert queue.paused
        await store.configure([QueueChange(name="default", paused=False)])
        assert {one.id for one in await hand.claim()} == {two.id, three.id}

    async def test_a_limit_bounds_what_runs(self, store: AnyStore, hand: Hand, other: Hand) -> None:
        """Exactly, over all workers; whatever ends makes room (I14, C13)."""
        await store.configure([QueueChange(name="default", running=3)])
        await self.add_many(store, 10)
        first = await hand.claim(2)
        second = await other.claim(10)
        assert (len(first), len(second)) == (2, 1)
        assert await hand.claim() == []
        await hand.finish(first[0])
        assert await hand.settle(first[1], Snoozed(seconds(60))) == []
        assert len(await other.claim()) == 2
        assert (await store.count())["default", State.RUNNING] == 3

    async def test_a_limit_holds_against_many_claimers(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """It is counted inside the claim's transaction (I14)."""
        await store.configure([QueueChange(name="a", running=7)])
        await self.add_many(store, 50, queue="a")
        await self.add_many(store, 20, queue="b", priority=-1)
        hands = [Hand(store, clock, f"node-{n}") for n in range(20)]
        shares = await asyncio.gather(*(one.claim(5) for one in hands))
        queues = [taken.queue for share in shares for taken in share]
        assert queues.count("a") == 7
        assert queues.count("b") == 20

    async def test_a_limit_may_be_lowered_below_what_runs(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Nothing is stopped, and nothing starts until there is room; None lifts it (I14)."""
        await self.add_many(store, 10)
        taken = await hand.claim(4)
        await store.configure([QueueChange(name="default", running=2)])
        for done in taken[:2]:
            await hand.finish(done)
            assert await hand.claim() == []
        await hand.finish(taken[2])
        assert len(await hand.claim()) == 1
        await store.configure([QueueChange(name="default", running=None)])
        assert len(await hand.claim()) == 5

    async def test_a_full_queue_does_not_starve_the_others(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Its backlog of higher priority is not passed over row by row (I14, F45)."""
        await store.configure([QueueChange(name="a", running=1)])
        await self.add_many(store, 500, queue="a", priority=9)
        await self.add_many(store, 3, queue="b")
        for queues in (None, ("a", "b")):
            taken = await hand.claim(2, queues=queues)
            assert [one.queue for one in taken] in (["a", "b"], ["b", "b"])

    async def test_limits_are_per_queue(self, store: AnyStore, hand: Hand) -> None:
        """One call may set several, and what it does not name stays."""
        await store.configure([QueueChange(name="a", running=1), QueueChange(name="b", running=2)])
        await store.configure([QueueChange(name="a", paused=False)])
        for queue in "abc":
            await self.add_many(store, 4, queue=queue)
        queues = [one.queue for one in await hand.claim()]
        assert [queues.count(queue) for queue in "abc"] == [1, 2, 4]

    async def test_a_limit_and_room_work_together(self, store: AnyStore, hand: Hand) -> None:
        """Each alone would allow more."""
        await store.configure([QueueChange(name="default", running=3)])
        for kind in "aabbbb":
            await self.add(store, kind=kind)
        taken = await hand.claim(rooms={"a": 1})
        assert [one.kind for one in taken] == ["a", "b", "b"]

    # ── rates ────────────────────────────────────────────────────────────────────────────

    async def test_a_rate_is_a_bucket_that_fills_evenly(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Claims in any span T are at most n + n · T / window (I14)."""
        await store.configure([QueueChange(name="default", rate=(6, 60.0))])
        await self.add_many(store, 30)
        assert len(await hand.claim()) == 6
        for wait, allowed in ((9.999, 0), (0.001, 1), (5, 0), (5, 1), (30, 3), (3_600, 6), (1, 0)):
            await clock.advance(wait)
            assert len(await hand.claim()) == allowed, wait

    async def test_claims_that_find_nothing_cost_no_token(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """And looking often does not lose the fractions between the looks (I14)."""
        await store.configure([QueueChange(name="default", rate=(2, 1.0))])
        for _ in range(5):
            assert await hand.claim() == []
        await self.add_many(store, 10)
        assert len(await hand.claim()) == 2
        claims = 0
        for _ in range(20):
            await clock.advance(0.1)
            claims += len(await hand.claim())
        assert claims == 4

    async def test_a_claim_that_comes_back_gives_no_token_back(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The rate bounds starts, not successes (I14)."""
        await store.configure([QueueChange(name="default", rate=(1, 60.0))])
        await self.add(store)
        assert await hand.settle(await hand.take(), Released()) == []
        assert await hand.claim() == []

    async def test_a_clock_that_steps_back_adds_no_tokens(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Nor does it take any away that were there (I14, F35)."""
        await store.configure([QueueChange(name="default", rate=(2, 10.0))])
        await self.add_many(store, 9)
        assert len(await hand.claim(1)) == 1
        await clock.advance(-100)
        assert len(await hand.claim()) == 1
        assert await hand.claim() == []
        await clock.advance(100)
        assert await hand.claim() == []

    async def test_the_same_rate_again_does_not_fill_the_bucket(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """A deployment that sets its limits at every start must not get around them (I14)."""
        change = QueueChange(name="default", rate=(2, 60.0))
        await store.configure([change])
        await self.add_many(store, 9)
        assert len(await hand.claim()) == 2
        await store.configure([change])
        await store.configure([QueueChange(name="default", running=100)])
        assert await hand.claim() == []
        await store.configure([QueueChange(name="default", rate=None)])
        assert len(await hand.claim()) == 7

    async def test_a_rate_holds_against_many_claimers(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Tokens are spent inside the claim's transaction (I14)."""
        await store.configure([QueueChange(name="default", rate=(5, 60.0))])
        await self.add_many(store, 50)
        hands = [Hand(store, clock, f"node-{n}") for n in range(20)]
        shares = await asyncio.gather(*(one.claim(3) for one in hands))
        assert sum(map(len, shares)) == 5

    # ── races ────────────────────────────────────────────────────────────────────────────

    async def test_a_cancel_that_races_a_claim_has_one_winner(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Either it never started, or the run goes on and the cancel was refused (I13, F42)."""
        ids = await self.add_many(store, 40)
        jobs = await store.get(ids)
        moves = [move for job in jobs if (move := lifecycle.cancel(job, "race"))]

        async def cancel(number: int) -> bool:
            return await store.apply([moves[number]]) == []

        claims = [hand.claim(1) for _ in ids]
        won, taken = await asyncio.gather(
            asyncio.gather(*(cancel(number) for number in range(40))), asyncio.gather(*claims)
        )
        cancelled = {move.id for move, win in zip(moves, won, strict=True) if win}
        started = {one.id for share in taken for one in share}
        assert cancelled | started == set(ids)
        assert not cancelled & started
        for job in await store.get(ids):
            assert (job.state is State.CANCELLED) == (job.id in cancelled)
            assert (job.started_at is None) == (job.id in cancelled)

    async def test_many_workers_drain_everything_once(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Claims, settles and inserts at once: every job has exactly one outcome (I1, I5)."""
        ids = set(await self.add_many(store, 60))

        async def work(number: int) -> list[JobId]:
            hand = Hand(store, clock, f"node-{number}")
            done: list[JobId] = []
            while taken := await hand.claim(4, ahead=2):
                moves = [hand.ending(one, Completed(f'"{number}"')) for one in taken]
                assert await store.apply(moves) == []
                done += [one.id for one in taken]
                if number == 0 and len(ids) < 90:
                    ids.update(await self.add_many(store, 10))
            return done

        done = [one for share in await asyncio.gather(*map(work, range(8))) for one in share]
        ask = Ask(worker=Hand(store, clock).id, node="last", free=100)
        rest = await store.claim(ask)
        assert sorted([*done, *(one.id for one in rest)]) == sorted(ids)
        assert (await store.count()).get(("default", State.COMPLETED)) == len(done)

    @pytest.mark.parametrize("priority", [-(2**31), 2**31 - 1])
    async def test_priorities_of_32_bits_are_in_order(
        self, store: AnyStore, hand: Hand, priority: int
    ) -> None:
        """An overflow would turn the order around (F26)."""
        extreme = await self.add(store, priority=priority)
        plain = await self.add(store)
        order = [plain, extreme] if priority < 0 else [extreme, plain]
        assert [one.id for one in await hand.claim()] == order
