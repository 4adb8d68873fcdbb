"""Insert: what was acknowledged is there, once, as it was given (I1, I2)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from piecework.core.job import JobId, Retention, State
from piecework.ports import Inserted
from piecework.system import new_id
from piecework.testing.factories import new_job
from piecework.testing.suite.base import Suite, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["Inserting"]

ODD_TEXTS = [
    "null",
    "",
    "{not json",
    '{"type": "x", "__class__": "os.system"}',
    "\x80\x04\x95 pickle?",
    '"\\u0000"',
    "'; DROP TABLE piecework_job; --",
    "ünïcödé 🙂 \u202e\r\n\t %s %(x)s {} ? :id $1",
]


class Inserting(Suite):
    """What `insert` promises."""

    async def test_a_job_reads_back_as_it_was_given(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Every field is kept: one that is dropped on the way is lost for good (I1)."""
        parent, tick = JobId(uuid4()), clock.now() - timedelta(hours=1)
        new = new_job(
            kind="ship",
            args='{"order": 1}',
            queue="orders",
            name="Ship it",
            priority=-3,
            due=seconds(5),
            expires=clock.now() + seconds(60),
            max_attempts=7,
            max_crashes=2,
            timeout=1.5,
            unique_key="order-1",
            unique_scope="until",
            unique_window=seconds(3600),
            serial_key="customer-1",
            metadata={"team": "red", "": "empty"},
            node="node-9",
            parent=parent,
            schedule="nightly",
            tick=tick,
            count=12,
            result_ttl=seconds(90),
        )
        assert await store.insert([new]) == [Inserted(new.id, created=True)]
        job, now = await self.read(store, new.id), clock.now()
        for name in [
            "id",
            "kind",
            "args",
            "queue",
            "name",
            "priority",
            "max_attempts",
            "max_crashes",
            "timeout",
            "unique_key",
            "unique_scope",
            "serial_key",
            "metadata",
            "node",
            "parent",
            "schedule",
            "tick",
            "count",
            "result_ttl",
        ]:
            assert getattr(job, name) == getattr(new, name), name
        assert job.state is State.SCHEDULED
        assert (job.enqueued_at, job.due_at) == (now, now + seconds(5))
        assert (job.expires_at, job.unique_until) == (now + seconds(60), now + seconds(3600))
        assert (job.attempt, job.crashes, job.generation, job.fence) == (0, 0, 1, 0)
        assert (job.worker, job.started_at, job.finished_at, job.result) == (None,) * 4

    async def test_what_was_not_given_is_empty(self, store: AnyStore, clock: FakeClock) -> None:
        """A default must not differ between stores."""
        job = await self.read(store, await self.add(store))
        assert (job.state, job.queue, job.priority) == (State.AVAILABLE, "default", 0)
        assert (job.due_at, job.expires_at, job.metadata) == (clock.now(), None, {})
        assert (job.name, job.node, job.unique_key, job.unique_scope) == (None,) * 4
        assert (job.serial_key, job.timeout, job.parent, job.result_ttl) == (None,) * 4

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_args_pass_through_as_text(self, store: AnyStore, hand: Hand, text: str) -> None:
        """A store looks into nothing: what cannot be decoded is the worker's to park (C14, I16)."""
        job_id = await self.add(store, args=text)
        assert (await self.read(store, job_id)).args == text
        assert (await hand.take()).args == text

    async def test_large_args_pass_through(self, store: AnyStore, hand: Hand) -> None:
        """The limit is the client's, a megabyte by default (C14)."""
        text = '"' + "x" * 2_000_000 + '"'
        await self.add(store, args=text)
        assert (await hand.take()).args == text

    async def test_names_and_keys_are_data(self, store: AnyStore, hand: Hand) -> None:
        """No name is ever read as SQL, as a pattern or as a path (S10, F27)."""
        for text in (*ODD_TEXTS[3:5], *ODD_TEXTS[6:], "%", "_", "a/b", "n" * 2_000):
            text = text.replace("\x80", "")  # noqa: PLW2901 - the same text, storable as a name
            await self.add(
                store,
                kind=text,
                queue=text,
                name=text,
                unique_key=text,
                serial_key=text,
                metadata={text: text},
            )
            taken = await hand.take(queues=(text,))
            assert (taken.kind, taken.queue, taken.name) == (text, text, text)
            assert taken.metadata == {text: text}

    async def test_a_due_time_not_in_the_future_makes_a_job_available(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Due exactly now is due: `<` for `<=` would make it wait for a stage (I11)."""
        tick = timedelta(microseconds=1)
        for due, state in (
            (seconds(0), State.AVAILABLE),
            (clock.now(), State.AVAILABLE),
            (clock.now() - seconds(60), State.AVAILABLE),
            (tick, State.SCHEDULED),
            (clock.now() + tick, State.SCHEDULED),
        ):
            assert await self.state(store, await self.add(store, due=due)) is state, due

    async def test_answers_come_in_the_order_of_the_call(self, store: AnyStore) -> None:
        """The caller pairs them with what was enqueued."""
        jobs = [new_job(priority=n % 3) for n in range(1_200)]
        jobs[700] = replace(jobs[700], unique_key="one")
        jobs[900] = replace(jobs[900], unique_key="one")
        answers = await store.insert(jobs)
        expected = [job.id for job in jobs]
        expected[900] = jobs[700].id
        assert [answer.id for answer in answers] == expected
        assert [n for n, answer in enumerate(answers) if not answer.created] == [900]

    async def test_a_known_id_is_the_same_job_again(
        self, store: AnyStore, clock: FakeClock, hand: Hand
    ) -> None:
        """An insert whose answer was lost is repeated: there must be one job, not two (I2, F21)."""
        new = new_job(expires=clock.now() + seconds(5))
        assert (await store.insert([new]))[0].created
        again = await store.insert([new, new_job()])
        assert [answer.created for answer in again] == [False, True]
        assert again[0] == Inserted(new.id, created=False)
        taken = next(one for one in await hand.claim() if one.id == new.id)
        await hand.finish(taken, result="1")
        await clock.advance(10)
        assert await store.insert([new]) == [Inserted(new.id, created=False)]
        job = await self.read(store, new.id)
        assert (job.state, job.result) == (State.COMPLETED, "1")

    async def test_a_known_id_with_other_args_is_told_and_keeps_its_own(
        self, store: AnyStore
    ) -> None:
        """The first one stands; the caller is warned (C9)."""
        new = new_job(args="1")
        await store.insert([new])
        (answer,) = await store.insert([replace(new, args="2")])
        assert answer == Inserted(new.id, created=False, args_differ=True)
        assert (await self.read(store, new.id)).args == "1"

    async def test_one_id_twice_in_one_call_is_one_job(self, store: AnyStore) -> None:
        """As above, inside one call (I2)."""
        new = new_job()
        first, second = await store.insert([new, new])
        assert (first.created, second.created) == (True, False)
        assert await store.count() == {("default", State.AVAILABLE): 1}

    async def test_one_id_from_many_callers_is_one_job(self, store: AnyStore) -> None:
        """A race of 20 with the same id (I2)."""
        new = new_job()
        answers = await asyncio.gather(*(store.insert([new]) for _ in range(20)))
        assert sum(answer.created for (answer,) in answers) == 1
        assert await store.count() == {("default", State.AVAILABLE): 1}

    async def test_an_expiry_must_be_later_than_the_start(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Such a job could never start: ValueError, and nothing of the call is stored (C17)."""
        for bad in (
            {"expires": seconds(0)},
            {"expires": clock.now()},
            {"due": seconds(60), "expires": seconds(60)},
            {"due": clock.now() + seconds(60), "expires": seconds(59)},
            {"kind_expires": seconds(0)},
        ):
            with pytest.raises(ValueError, match="expir"):
                await store.insert([new_job(), new_job(**bad)])
        assert await store.count() == {}
        await self.add(store, due=seconds(60), expires=seconds(61))

    async def test_expires_counts_from_the_enqueue_and_a_kinds_default_from_the_start(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """An hour of its kind's must not be used up by an hour's delay."""
        now = clock.now()
        for fields, at in (
            ({"due": seconds(60), "expires": seconds(90)}, 90),
            ({"due": seconds(60), "kind_expires": seconds(90)}, 150),
            ({"due": now - seconds(60), "kind_expires": seconds(90)}, 90),
            ({"expires": seconds(7), "kind_expires": seconds(90)}, 7),
        ):
            job = await self.read(store, await self.add(store, **fields))
            assert job.expires_at == now + seconds(at)

    async def test_ids_of_any_version_are_kept(self, store: AnyStore, hand: Hand) -> None:
        """A caller's own UUID need not be a version 7 one, nor small (F26)."""
        ids = [JobId(UUID(int=0)), JobId(UUID(int=2**128 - 1)), JobId(uuid4()), new_id()]
        await store.insert([new_job(id=one) for one in ids])
        assert {taken.id for taken in await hand.claim()} == set(ids)

    async def test_empty_calls_change_nothing(self, store: AnyStore) -> None:
        """They come from filters that matched nothing."""
        await self.add(store)
        assert await store.insert([]) == []
        assert await store.apply([]) == []
        assert await store.get([]) == []
        assert await store.statuses([]) == {}
        assert await store.prune([], limit=10) == []
        assert await store.prune(Retention(), limit=10) == []
        await store.configure([])
        assert await store.count() == {("default", State.AVAILABLE): 1}

    async def test_jobs_are_all_there_after_a_restart(
        self,
        store: AnyStore,
        hand: Hand,
        clock: FakeClock,
        reopen: Callable[[AnyStore], Awaitable[AnyStore]],
    ) -> None:
        """Due, future, blocked and running jobs go on without a new enqueue (I1, C8)."""
        running = await self.add(store, serial_key="s", unique_key="u")
        blocked = await self.add(store, serial_key="s")
        future = await self.add(store, due=seconds(60))
        taken = await hand.take()
        due = await self.add(store)
        store = await reopen(store)
        assert await self.states(store, [running, blocked, future, due]) == [
            State.RUNNING,
            State.BLOCKED,
            State.SCHEDULED,
            State.AVAILABLE,
        ]
        (duplicate,) = await store.insert([new_job(unique_key="u")])
        assert duplicate.id == running
        hand.store = store
        await hand.finish(taken)
        await clock.advance(60)
        await self.stage(store)
        assert {one.id for one in await hand.claim()} == {blocked, future, due}
