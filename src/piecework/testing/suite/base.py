"""What the tests of a store have in common: the fixtures, a worker's hands, and short looks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import pytest

from piecework.core import lifecycle
from piecework.core.job import LIVE, Attempt, State, WorkerId
from piecework.core.lifecycle import Completed, ErrorInfo, Failed
from piecework.ports import Ask, Beat, Filter, Reader, Store
from piecework.testing.clock import FakeClock
from piecework.testing.factories import new_job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.core.job import Claimed, Job, JobId, LogLine
    from piecework.core.lifecycle import Outcome, Transition
    from piecework.ports import Beaten, Refused, Staged

__all__ = ["OOPS", "AnyStore", "Hand", "StoreFixtures", "Suite", "seconds", "title"]

OOPS = ErrorInfo("ValueError", "oops", "Traceback: oops")


class AnyStore(Store, Reader, Protocol):
    """The object under test is both: it writes and it looks."""


def seconds(count: float) -> timedelta:
    """Return a duration of so many seconds."""
    return timedelta(seconds=count)


def title(value: object) -> str:
    """Return what a parametrised test calls an outcome, or another value."""
    match value:
        case Failed(retry_in=None):
            return "FailedForGood"
        case State() | str() | int():
            return str(value)
        case _:
            return type(value).__name__


class Hand:
    """A worker reduced to what it does to the store."""

    def __init__(self, store: AnyStore, clock: FakeClock, node: str = "node-1") -> None:
        self.store = store
        self.clock = clock
        self.node = node
        self.id = WorkerId(uuid4())

    async def claim(self, free: int = 100, **wish: Any) -> list[Claimed]:
        """Claim; `wish` are the other fields of Ask."""
        return await self.store.claim(Ask(worker=self.id, node=self.node, free=free, **wish))

    async def take(self, **wish: Any) -> Claimed:
        """Claim exactly one job."""
        (taken,) = await self.claim(1, **wish)
        return taken

    def ending(self, claimed: Claimed, outcome: Outcome, **more: Any) -> Transition:
        """Return the move that settles this claim; `more` are progress and logs."""
        ended = Attempt(
            number=claimed.attempt,
            generation=claimed.generation,
            fence=claimed.fence,
            started_at=self.clock.now(),
            ended_at=None,
            outcome=type(outcome).__name__.lower(),
            worker=self.id,
            node=self.node,
        )
        return lifecycle.settle(claimed, outcome, ended=ended, **more)

    async def settle(
        self,
        claimed: Claimed,
        outcome: Outcome,
        **more: Any,
    ) -> list[Refused]:
        """Record how the run ended; return what was refused."""
        return await self.store.apply([self.ending(claimed, outcome, **more)])

    async def finish(self, *claims: Claimed, result: str = "null") -> None:
        """All these runs have completed."""
        moves = [self.ending(claimed, Completed(result)) for claimed in claims]
        assert await self.store.apply(moves) == []

    async def fail(self, claimed: Claimed, retry_in: float | None = None) -> None:
        """The run has failed, for good unless it is retried in so many seconds."""
        again = None if retry_in is None else seconds(retry_in)
        assert await self.settle(claimed, Failed(OOPS, again)) == []

    async def beat(self, lease: float = 30, **shown: Any) -> Beaten:
        """Give a sign of life; `shown` are the other fields of Beat."""
        sign: dict[str, Any] = {
            "worker": self.id,
            "node": self.node,
            "pid": 1,
            "lease": seconds(lease),
            "queues": None,
            "slots": 10,
            "running": 0,
        }
        return await self.store.beat(Beat(**{**sign, **shown}))


class Suite:
    """Short words for what nearly every test does."""

    many_keys = 2_000
    """How many distinct serial keys are used at once: raise it for a store built for more."""

    async def add(self, store: AnyStore, **fields: Any) -> JobId:
        """Insert one job, which must be new."""
        (inserted,) = await store.insert([new_job(**fields)])
        assert inserted.created
        return inserted.id

    async def add_many(self, store: AnyStore, count: int, **fields: Any) -> list[JobId]:
        """Insert so many jobs in one call."""
        inserted = await store.insert([new_job(**fields) for _ in range(count)])
        return [one.id for one in inserted]

    async def read(self, store: AnyStore, job_id: JobId) -> Job:
        """Return the job, which must exist."""
        (job,) = await store.get([job_id])
        return job

    async def states(self, store: AnyStore, ids: Sequence[JobId]) -> list[State]:
        """Return the state of each of these jobs, which must exist."""
        found = await store.statuses(ids)
        return [found[job_id].state for job_id in ids]

    async def state(self, store: AnyStore, job_id: JobId) -> State:
        """Return the state of the job, which must exist."""
        return (await self.states(store, [job_id]))[0]

    async def live(self, store: AnyStore) -> list[Job]:
        """Return every job that is not final, newest first."""
        return await store.find(Filter(states=tuple(LIVE)), after=None, limit=10_000)

    async def cancel(self, store: AnyStore, job_id: JobId, reason: str | None = None) -> None:
        """Cancel the job, or record the wish; there must be something to do."""
        await self.do(store, lifecycle.cancel(await self.read(store, job_id), reason))

    async def retry(self, store: AnyStore, job_id: JobId) -> None:
        """An operator has the final job run again."""
        await self.do(store, lifecycle.retry(await self.read(store, job_id)))

    async def do(self, store: AnyStore, *moves: Transition | None) -> None:
        """Every move takes effect."""
        assert None not in moves
        assert await store.apply([move for move in moves if move is not None]) == []

    async def stage(self, store: AnyStore) -> Staged:
        """Let the store do what time has brought."""
        return await store.stage(limit=1_000)

    async def log_texts(self, store: AnyStore, job_id: JobId) -> list[tuple[int, str]]:
        """Return (fence, message) of each line of the job's log."""
        lines: list[tuple[int, LogLine]] = await store.logs(job_id)
        return [(fence, line.message) for fence, line in lines]


class StoreFixtures:
    """The fixtures: override `store`, and `reopen` where the store outlives its object."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock that the store under test must stamp with."""
        return FakeClock()

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AnyStore:
        """The store under test, empty, stamping with `clock`."""
        raise NotImplementedError(f"override the fixture `store`: give a store with {clock}")

    @pytest.fixture
    def reopen(self) -> Callable[[AnyStore], Awaitable[AnyStore]]:
        """Return how a restarted process finds the store again."""

        async def close_and_open(store: AnyStore) -> AnyStore:
            await store.close()
            await store.open()
            return store

        return close_and_open

    @pytest.fixture
    async def hand(self, store: AnyStore, clock: FakeClock) -> Hand:
        """A worker with a lease of 30 s."""
        hand = Hand(store, clock)
        await hand.beat()
        return hand

    @pytest.fixture
    async def other(self, store: AnyStore, clock: FakeClock) -> Hand:
        """Another worker, on another node."""
        hand = Hand(store, clock, "node-2")
        await hand.beat()
        return hand
