"""Unique keys: at most one holder per kind and key, and freed with what ends it (I10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import JobId, State
from piecework.core.lifecycle import Completed, Crashed, Failed, Parked, Released, Snoozed, Stopped
from piecework.ports import Filter, Inserted
from piecework.testing.factories import new_job
from piecework.testing.suite.base import OOPS, Suite, seconds, title

if TYPE_CHECKING:
    from piecework.testing.clock import FakeClock
    from piecework.testing.suite.base import AnyStore, Hand

__all__ = ["UniqueKeys"]

ENDINGS = [Completed("1"), Failed(OOPS, None), Stopped()]
DELAYS = [
    Failed(OOPS, seconds(9)),
    Snoozed(seconds(9)),
    Crashed("killed", seconds(9)),
    Parked("unknown"),
    Released(),
]


class UniqueKeys(Suite):
    """What `insert` and an operator's retry promise of unique keys."""

    async def try_add(self, store: AnyStore, **fields: Any) -> Inserted:
        """Insert a job of the unique key "u"."""
        new = new_job(**{"unique_key": "u", **fields})
        (answer,) = await store.insert([new])
        assert answer.created == (answer.id == new.id)
        return answer

    async def test_a_duplicate_gets_the_holder(self, store: AnyStore) -> None:
        """An idempotency key that stores a second job is none (C9)."""
        first = await self.try_add(store, args="1")
        assert await self.try_add(store, args="1") == Inserted(first.id, created=False)
        other_args = await self.try_add(store, args="2")
        assert other_args == Inserted(first.id, created=False, args_differ=True)
        assert (await self.read(store, first.id)).args == "1"
        assert await store.count() == {("default", State.AVAILABLE): 1}

    async def test_a_duplicate_inside_one_call_gets_the_first(self, store: AnyStore) -> None:
        """`enqueue_many` of a list with repetitions is one job for each key (C9)."""
        answers = await store.insert([new_job(unique_key=key) for key in "abab"])
        assert [answer.created for answer in answers] == [True, True, False, False]
        assert [answer.id for answer in answers[2:]] == [answer.id for answer in answers[:2]]

    async def test_keys_are_per_kind(self, store: AnyStore) -> None:
        """Order 1 shipped and order 1 billed are two jobs (C9)."""
        assert (await self.try_add(store, kind="ship")).created
        assert (await self.try_add(store, kind="bill")).created
        assert not (await self.try_add(store, kind="bill", queue="elsewhere")).created

    async def test_no_key_holds_nothing(self, store: AnyStore) -> None:
        """Jobs without a key are all different (C9)."""
        for _ in range(3):
            assert (await self.try_add(store, unique_key=None)).created

    async def test_a_race_of_twenty_stores_one(self, store: AnyStore) -> None:
        """The key is decided inside the transaction, not by a look before it (C9)."""
        answers = await asyncio.gather(*(self.try_add(store, args=str(n)) for n in range(20)))
        assert sum(answer.created for answer in answers) == 1
        assert len({answer.id for answer in answers}) == 1
        assert await store.count() == {("default", State.AVAILABLE): 1}

    @pytest.mark.parametrize("outcome", ENDINGS, ids=title)
    async def test_an_end_frees_the_live_scope(
        self, store: AnyStore, hand: Hand, outcome: Any
    ) -> None:
        """The key is free as soon as the end can be seen (I10, F41)."""
        first = await self.try_add(store)
        assert await hand.settle(await hand.take(), outcome) == []
        second = await self.try_add(store)
        assert second.created
        assert second.id != first.id

    async def test_a_cancel_or_expiry_while_waiting_frees_the_live_scope(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """As above, for those that never start (I10)."""
        await self.cancel(store, (await self.try_add(store)).id)
        assert (await self.try_add(store, expires=seconds(5))).created
        await clock.advance(5)
        assert (await self.stage(store)).expired == 1
        assert (await self.try_add(store)).created

    @pytest.mark.parametrize("outcome", DELAYS, ids=title)
    async def test_a_job_that_will_run_again_keeps_its_key(
        self, store: AnyStore, hand: Hand, outcome: Any
    ) -> None:
        """Waiting for a retry is live (I10)."""
        first = await self.try_add(store)
        taken = await hand.take()
        assert not (await self.try_add(store)).created
        assert await hand.settle(taken, outcome) == []
        assert (await self.try_add(store)).id == first.id

    async def test_a_rescued_job_keeps_its_key(self, store: AnyStore, hand: Hand) -> None:
        """A crash is no end (I10, F41)."""
        first = await self.try_add(store)
        await hand.take()
        job = await self.read(store, first.id)
        await self.do(store, lifecycle.rescue(job, retry_in=seconds(1)))
        assert (await self.try_add(store)).id == first.id

    async def test_forever_is_held_until_the_row_is_gone(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """An import that was done must not be done again, until retention forgets it (C9)."""
        first = await self.try_add(store, unique_scope="forever")
        await hand.finish(await hand.take())
        await clock.advance(10_000)
        assert (await self.try_add(store)).id == first.id
        assert await store.prune([first.id], limit=1) == [first.id]
        assert (await self.try_add(store)).created

    async def test_the_holders_scope_counts(self, store: AnyStore, hand: Hand) -> None:
        """A newcomer cannot shorten what the holder was promised."""
        await self.try_add(store, unique_scope="live")
        await hand.finish(await hand.take())
        forever = await self.try_add(store, unique_scope="forever")
        assert forever.created
        await hand.finish(await hand.take())
        for scope in ("live", "forever"):
            assert (await self.try_add(store, unique_scope=scope)).id == forever.id

    async def test_a_window_holds_until_it_has_passed(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """It counts from the enqueue, whatever became of the job meanwhile."""
        window = {"unique_scope": "until", "unique_window": seconds(60)}
        first = await self.try_add(store, **window)
        await hand.finish(await hand.take())
        await clock.advance(59.999)
        assert (await self.try_add(store, **window)).id == first.id
        await clock.advance(0.001)
        assert (await self.try_add(store, **window)).created

    async def test_a_passed_window_frees_the_key_of_a_live_job(
        self, store: AnyStore, hand: Hand, clock: FakeClock
    ) -> None:
        """Once a minute means a second one in the second minute, though the first still waits."""
        window = {"unique_scope": "until", "unique_window": seconds(60)}
        first = await self.try_add(store, **window)
        await clock.advance(60)
        second = await self.try_add(store, **window)
        assert second.created
        # Neither the end of the first, which has lost the key, nor its deletion frees it.
        await hand.finish(*await hand.claim())
        assert (await self.try_add(store, **window)).id == second.id
        assert await store.prune([first.id], limit=1) == [first.id]
        assert (await self.try_add(store, **window)).id == second.id

    async def test_deleting_a_former_holder_leaves_the_key_alone(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It freed the key when it ended; another has it now (I10)."""
        first = await self.try_add(store)
        await hand.finish(await hand.take())
        second = await self.try_add(store)
        await store.prune([first.id], limit=1)
        assert (await self.try_add(store)).id == second.id

    async def test_raise_names_the_holder_and_stores_nothing_of_the_call(
        self, store: AnyStore
    ) -> None:
        """All or nothing: half a bulk enqueue is worse than none (I2)."""
        holder = await self.try_add(store)
        jobs = [new_job(), new_job(unique_key="u", on_duplicate="raise"), new_job()]
        with pytest.raises(DuplicateJob) as caught:
            await store.insert(jobs)
        error = caught.value
        assert (error.kind, error.unique_key, error.job_id) == ("work", "u", holder.id)
        assert await store.count() == {("default", State.AVAILABLE): 1}

    async def test_raise_undoes_a_replace_of_the_same_call(self, store: AnyStore) -> None:
        """What the call had replaced by then is as before (I2)."""
        holder = await self.try_add(store, args="1")
        swap = new_job(unique_key="u", args="2", on_duplicate="replace")
        with pytest.raises(DuplicateJob):
            await store.insert([swap, new_job(unique_key="u", on_duplicate="raise")])
        assert (await self.read(store, holder.id)).args == "1"

    async def test_raise_inside_one_call_stores_nothing(self, store: AnyStore) -> None:
        """The first of the two is part of the same call."""
        twice = [new_job(unique_key="u", on_duplicate="raise") for _ in range(2)]
        with pytest.raises(DuplicateJob):
            await store.insert(twice)
        assert await store.count() == {}

    async def test_raise_without_a_holder_is_an_ordinary_insert(self, store: AnyStore) -> None:
        """Only a held key is an error."""
        assert (await self.try_add(store, on_duplicate="raise")).created

    async def test_replace_changes_what_has_not_started(
        self, store: AnyStore, clock: FakeClock
    ) -> None:
        """Args, metadata, priority, due time and expiry are the new ones; the job stays."""
        first = await self.try_add(store, args="1", metadata={"a": "1"}, name="first")
        later = await self.try_add(
            store,
            args="2",
            metadata={"b": "2"},
            priority=7,
            due=seconds(60),
            expires=seconds(90),
            name="second",
            on_duplicate="replace",
        )
        assert later == Inserted(first.id, created=False)
        job = await self.read(store, first.id)
        assert (job.args, job.metadata, job.priority, job.name) == ("2", {"b": "2"}, 7, "first")
        assert job.state is State.SCHEDULED
        assert job.due_at == clock.now() + seconds(60)
        assert job.expires_at == clock.now() + seconds(90)
        for key, found in (("a", []), ("b", [first.id])):
            jobs = await store.find(
                Filter(metadata={key: "1" if key == "a" else "2"}), after=None, limit=9
            )
            assert [one.id for one in jobs] == found
        await self.try_add(store, args="3", on_duplicate="replace")
        assert (await self.read(store, first.id)).state is State.AVAILABLE

    async def test_replace_inside_one_call_changes_the_first(self, store: AnyStore) -> None:
        """The last word counts."""
        answers = await store.insert(
            [new_job(unique_key="u", args=str(n), on_duplicate="replace") for n in range(3)]
        )
        assert [answer.created for answer in answers] == [True, False, False]
        assert (await self.read(store, answers[0].id)).args == "2"

    async def test_replace_leaves_alone_what_has_started(self, store: AnyStore, hand: Hand) -> None:
        """A run must not see its args change; nor its retry (C9)."""
        first = await self.try_add(store, args="1")
        taken = await hand.take()
        expected = Inserted(first.id, created=False, args_differ=True)
        assert await self.try_add(store, args="2", on_duplicate="replace") == expected
        await hand.fail(taken, retry_in=60)
        assert await self.try_add(store, args="2", on_duplicate="replace") == expected
        job = await self.read(store, first.id)
        assert (job.args, job.state) == ("1", State.SCHEDULED)

    async def test_an_operators_retry_takes_the_key_anew(self, store: AnyStore, hand: Hand) -> None:
        """While it runs again it holds the key as it did the first time (I10)."""
        first = await self.try_add(store)
        await hand.fail(await hand.take())
        await self.retry(store, first.id)
        assert await self.try_add(store) == Inserted(first.id, created=False)
        await hand.finish(await hand.take())
        assert (await self.try_add(store)).created

    async def test_an_operators_retry_is_refused_while_another_holds_the_key(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """Two live jobs of one key must not come about through the back door (I10)."""
        first = await self.try_add(store)
        await hand.fail(await hand.take())
        second = await self.try_add(store)
        move = lifecycle.retry(await self.read(store, first.id))
        assert move is not None
        (refused,) = await store.apply([move])
        assert (refused.transition, refused.holder) == (move, second.id)
        assert refused.job is not None
        assert refused.job.state is State.FAILED
        await hand.finish(await hand.take())
        await self.do(store, move)

    async def test_of_two_retries_in_one_batch_one_gets_the_key(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """The guard holds inside a set too (I10)."""
        ids: list[JobId] = []
        for _ in range(2):
            ids.append((await self.try_add(store)).id)
            await hand.fail(await hand.take())
        moves = [lifecycle.retry(await self.read(store, one)) for one in ids]
        (refused,) = await store.apply([move for move in moves if move is not None])
        winner = next(one for one in ids if one != refused.transition.id)
        assert refused.holder == winner
        assert await self.state(store, winner) is State.AVAILABLE

    async def test_a_forever_holder_may_itself_be_retried(
        self, store: AnyStore, hand: Hand
    ) -> None:
        """It holds the key already: that is no conflict."""
        first = await self.try_add(store, unique_scope="forever")
        await hand.fail(await hand.take())
        await self.retry(store, first.id)
        assert await self.try_add(store) == Inserted(first.id, created=False)
