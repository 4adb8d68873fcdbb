"""Looking changes nothing and sees everything; hints are only hints (I16, C18)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest

from piecework.core import lifecycle
from piecework.core.job import JobId, State
from piecework.core.lifecycle import ErrorInfo, Failed
from piecework.ports import Filter, QueueChange
from piecework.system import new_id
from piecework.testing.factories import new_job
from piecework.testing.suite.base import Suite, seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.ports import Hint
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["Reading"]


class _Ears:
    """Listens to hints in a task of its own."""

    def __init__(self, store: AnyStore) -> None:
        self.heard: list[Hint] = []
        self._store = store
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for hint in self._store.hints():
            self.heard.append(hint)
            self._news.set()

    async def __aenter__(self) -> Self:
        # What was told before it listens may be lost: make noise until it hears.
        for _ in range(100):
            await self._store.insert([new_job(queue="noise", node="nowhere")])
            try:
                await asyncio.wait_for(self._news.wait(), 0.05)
            except TimeoutError:
                continue
            self.heard.clear()
            return self
        raise AssertionError("an insert was never told")

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def hear(self, what: str) -> None:
        """Return once something like this was told."""
        while not any(what in hint.what for hint in self.heard):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 5)


class Reading(Suite):
    """What the Reader, `hints`, `bind` and `check` promise."""

    async def ids(self, store: AnyStore, limit: int = 100, **what: Any) -> list[JobId]:
        """Return the ids of the jobs that pass the filter."""
        return [job.id for job in await store.find(Filter(**what), after=None, limit=limit)]

    # ── get, count, statuses ─────────────────────────────────────────────────────────────

    async def test_only_what_exists_is_returned(self, store: AnyStore) -> None:
        """An id that never was, or was pruned, is no error."""
        ids, ghost = await self.add_many(store, 3), new_id()
        found = await store.get([ghost, *ids])
        assert {job.id for job in found} == set(ids)
        assert set(await store.statuses([ghost, *ids])) == set(ids)
        assert await store.attempts(ghost) == []
        assert await store.logs(ghost) == []

    async def test_many_ids_may_be_asked_at_once(self, store: AnyStore) -> None:
        """More than a statement of any database takes parameters for."""
        ids = [one.id for one in await store.insert([new_job() for _ in range(1_500)])]
        assert {job.id for job in await store.get(ids)} == set(ids)
        assert set(await store.statuses(ids)) == set(ids)

    async def test_a_status_follows_the_job(self, store: AnyStore, hand: Hand) -> None:
        """State, generation, attempt and progress, as they are now."""
        job_id = await self.add(store)

        async def status() -> tuple[State, int, int, str | None]:
            found = (await store.statuses([job_id]))[job_id]
            return found.state, found.generation, found.attempt, found.progress

        assert await status() == (State.AVAILABLE, 1, 0, None)
        taken = await hand.take()
        await self.do(store, lifecycle.progress(taken, progress='"1"', partial=None))
        assert await status() == (State.RUNNING, 1, 1, '"1"')
        await hand.fail(taken)
        assert await status() == (State.FAILED, 1, 1, '"1"')
        await self.retry(store, job_id)
        assert await status() == (State.AVAILABLE, 2, 0, None)

    async def test_counts_are_exact(self, store: AnyStore, hand: Hand, clock: FakeClock) -> None:
        """By queue and state, through every move; what is zero is left out."""
        assert await store.count() == {}
        await self.add_many(store, 3, queue="a")
        await self.add_many(store, 2, queue="b", due=seconds(5))
        await self.add_many(store, 2, queue="c", serial_key="s")
        taken = await hand.claim(2, queues=("a",))
        await hand.finish(taken[0])
        assert await store.count() == {
            ("a", State.AVAILABLE): 1,
            ("a", State.RUNNING): 1,
            ("a", State.COMPLETED): 1,
            ("b", State.SCHEDULED): 2,
            ("c", State.AVAILABLE): 1,
            ("c", State.BLOCKED): 1,
        }
        await clock.advance(5)
        await self.stage(store)
        await store.prune([taken[0].id], limit=1)
        await hand.fail(taken[1])
        assert await store.count() == {
            ("a", State.AVAILABLE): 1,
            ("a", State.FAILED): 1,
            ("b", State.AVAILABLE): 2,
            ("c", State.AVAILABLE): 1,
            ("c", State.BLOCKED): 1,
        }

    async def test_looking_changes_nothing(self, store: AnyStore, hand: Hand) -> None:
        """Whatever is looked at, and however often (I16)."""
        ids = await self.add_many(store, 3, args="\x7fnot json", metadata={"a": "b"})
        await hand.take()
        before = sorted(await store.get(ids), key=lambda job: job.id)
        for _ in range(2):
            await store.find(Filter(text="not"), after=None, limit=9)
            await store.count()
            await store.queues()
            await store.nodes()
            await store.attempts(ids[0])
            await store.logs(ids[0])
            await store.check()
        assert sorted(await store.get(ids), key=lambda job: job.id) == before

    # ── find ─────────────────────────────────────────────────────────────────────────────

    async def test_find_gives_the_newest_first_page_by_page(self, store: AnyStore) -> None:
        """Each page continues after the last one seen, though new jobs arrive and old ones go."""
        ids = await self.add_many(store, 7)
        pages = [await store.find(Filter(), after=None, limit=3)]
        await self.add(store)
        await self.cancel(store, pages[0][-1].id)
        await store.prune([pages[0][-1].id], limit=1)
        while pages[-1]:
            pages.append(await store.find(Filter(), after=pages[-1][-1].id, limit=3))
        assert [len(page) for page in pages] == [3, 3, 1, 0]
        assert [job.id for page in pages for job in page] == ids[::-1]

    async def test_find_orders_by_id_whenever_a_job_was_inserted(self, store: AnyStore) -> None:
        """A caller's own id may be older, and pages must not skip or repeat it."""
        ids = [new_id() for _ in range(6)]
        for number in (3, 0, 5, 1, 4, 2):
            await self.add(store, id=ids[number])
        assert await self.ids(store) == ids[::-1]
        page = await store.find(Filter(), after=ids[3], limit=2)
        assert [job.id for job in page] == [ids[2], ids[1]]

    async def test_find_filters_by_each_field(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Every given field must match; none given, everything does."""
        plain = await self.add(store)
        start = clock.now()
        await clock.advance(10)
        full = await self.add(
            store, kind="ship", queue="q", schedule="nightly", parent=plain, metadata={"a": "1"}
        )
        await clock.advance(10)
        running = await hand.take(queues=("q",))
        assert running.id == full
        matching: list[dict[str, Any]] = [
            {"states": (State.RUNNING, State.FAILED)},
            {"kinds": ("ship", "other")},
            {"queues": ("q",)},
            {"schedule": "nightly"},
            {"parent": plain},
            {"metadata": {"a": "1"}},
            {"since": start + seconds(10)},
            {"ids": (full, new_id())},
            {"kinds": ("ship",), "queues": ("q",), "metadata": {"a": "1"}, "text": "SHIP"},
        ]
        for only in matching:
            assert await self.ids(store, **only) == [full], only
        missing: list[dict[str, Any]] = [
            {"states": (State.FAILED,)},
            {"kinds": ("ship",), "queues": ("default",)},
            {"metadata": {"a": "2"}},
            {"metadata": {"a": "1", "b": "2"}},
            {"schedule": "night"},
            {"ids": ()},
            {"since": start + seconds(10.001)},
            {"until": start},
            {"parked": True},
        ]
        for nothing in missing:
            assert await self.ids(store, **nothing) == [], nothing
        assert await self.ids(store) == [full, plain]
        assert await self.ids(store, parked=False) == [full, plain]
        assert await self.ids(store, until=start + seconds(10)) == [plain]

    async def test_text_is_looked_for_in_id_name_kind_keys_and_error(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Without case, and wildcards mean themselves (S10)."""
        named = await self.add(store, name="Send WELCOME mail")
        kind = await self.add(store, kind="reports.Daily")
        unique = await self.add(store, unique_key="order_50%")
        serial = await self.add(store, serial_key="customer-7")
        failed = await self.add(store, priority=9)
        error = ErrorInfo("ValueError", "No Such Page")
        assert await hand.settle(await hand.take(), Failed(error, None)) == []
        for text, found in (
            ("welcome", named),
            ("DAILY", kind),
            ("order_50%", unique),
            ("CUSTOMER", serial),
            ("no such page", failed),
            (str(kind).upper(), kind),
        ):
            assert await self.ids(store, text=text) == [found], text
        for text in ("order%", "_elcome", "customer_7", "nowhere"):
            assert await self.ids(store, text=text) == [], text

    async def test_a_page_of_text_hits_ends_at_its_limit(self, store: AnyStore) -> None:
        """And the next one begins after it."""
        ids = await self.add_many(store, 5, name="needle")
        await self.add_many(store, 5, name="hay")
        assert await self.ids(store, 2, text="needle") == ids[:2:-1]
        rest = await store.find(Filter(text="needle"), after=ids[3], limit=9)
        assert [job.id for job in rest] == ids[2::-1]

    # ── queues ───────────────────────────────────────────────────────────────────────────

    async def test_queues_show_their_controls_and_live_jobs(
        self,
        store: AnyStore,
        hand: Hand,
        clock: FakeClock,
        reopen: Callable[[AnyStore], Awaitable[AnyStore]],
    ) -> None:
        """By name; a queue with neither is none; controls outlive a restart (C8)."""
        await store.configure(
            [
                QueueChange(name="c", paused=True),
                QueueChange(name="b", running=2, rate=(5, 60.0)),
            ]
        )
        oldest = clock.now() - seconds(30)
        for due in (clock.now(), oldest, clock.now() + seconds(9)):
            await self.add(store, queue="b", due=due)
        await self.add(store, queue="a")
        await hand.finish(await hand.take(queues=("a",)))
        await hand.take(queues=("b",))
        store = await reopen(store)
        b, c = await store.queues()
        assert (b.name, b.paused, b.limit, b.rate) == ("b", False, 2, (5, 60.0))
        assert b.jobs == {State.AVAILABLE: 1, State.RUNNING: 1, State.SCHEDULED: 1}
        assert b.oldest == clock.now()
        assert (c.name, c.paused, c.limit, c.rate) == ("c", True, None, None)
        assert (c.jobs, c.oldest) == ({}, None)

    async def test_the_oldest_is_the_first_due_whatever_its_priority(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """It shows how long the longest wait is (F45)."""
        now = clock.now()
        for age, priority in ((5, 9), (60, -9), (7, 0)):
            await self.add(store, due=now - seconds(age), priority=priority)
        (queue,) = await store.queues()
        assert queue.oldest == now - seconds(60)

    async def test_nodes_come_oldest_first(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """As they were started, not as they beat."""
        await clock.advance(1)
        late = type(hand)(store, clock, "late")
        await late.beat()
        await hand.beat()
        assert [node.worker for node in await store.nodes()] == [hand.id, late.id]

    # ── hints ────────────────────────────────────────────────────────────────────────────

    async def test_hints_tell_what_happened(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Due, control, done, each soon after the commit; work is the noise of _Ears."""
        for what in ("due", "control", "done"):
            await self.add(store)
            taken = await hand.take()
            async with _Ears(store) as ears:
                if what == "due":
                    await hand.fail(taken, retry_in=60)
                elif what == "control":
                    await self.cancel(store, taken.id)
                else:
                    await hand.finish(taken)
                await ears.hear(what)
            assert clock.sleepers == 0

    async def test_a_pause_is_told(self, store: AnyStore) -> None:
        """Workers look again at once."""
        async with _Ears(store) as ears:
            await store.configure([QueueChange(name="a", paused=True)])
            await ears.hear("control")

    async def test_every_listener_hears(self, store: AnyStore) -> None:
        """Each has its own ears, and a closed one disturbs nobody."""
        async with _Ears(store) as first:
            async with _Ears(store) as second:
                await self.add(store)
                await first.hear("work")
                await second.hear("work")
            first.heard.clear()
            await self.add(store)
            await first.hear("work")

    async def test_hints_are_coalesced(self, store: AnyStore) -> None:
        """A listener that is busy finds one hint, not a thousand."""
        async with _Ears(store) as ears:
            await asyncio.gather(*(self.add(store) for _ in range(200)))
            await ears.hear("work")
            assert len(ears.heard) < 100

    async def test_polling_alone_is_correct(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Nobody listens, and every job still runs (L4)."""
        ids = [await self.add(store, due=seconds(n)) for n in range(5)]
        done: list[JobId] = []
        for _ in range(6):
            await self.stage(store)
            taken = await hand.claim()
            done += [one.id for one in taken]
            await hand.finish(*taken)
            await clock.advance(1)
        assert done == ids

    # ── the rest ─────────────────────────────────────────────────────────────────────────

    async def test_the_store_stamps_with_the_clock_it_was_given(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Or no test of time means anything."""
        assert store.clock is clock
        await clock.advance(12_345)
        assert (await self.read(store, await self.add(store))).enqueued_at == clock.now()

    async def test_a_foreign_connection_is_refused(self, store: AnyStore) -> None:
        """TypeError, with the name of what was given."""
        with pytest.raises(TypeError, match="object"):
            await store.bind(object())

    async def test_check_finds_no_error_in_a_fresh_store(self, store: AnyStore) -> None:
        """And it says what it looked at."""
        findings = await store.check()
        assert findings
        assert not [finding for finding in findings if finding.level == "error"]

    async def test_open_and_close_may_be_repeated(self, store: AnyStore) -> None:
        """The next use opens it again."""
        job_id = await self.add(store)
        await store.open()
        await store.open()
        await store.close()
        await store.close()
        assert [job.id for job in await store.get([job_id])] == [job_id]
