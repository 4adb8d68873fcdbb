"""What goes by itself: finished jobs after their retention, results after their time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from piecework import JobNotFound, Piecework, Retention, State
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore
from piecework.testing import FakeClock
from tests.helpers import until

DAY = timedelta(days=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> AsyncIterator[Any]:
    path = tmp_path / "jobs.db"
    store: Any = MemoryStore(clock) if request.param == "memory" else SqliteStore(path, clock=clock)
    yield store
    await store.close()


async def one_of_each(app: Piecework) -> dict[State, Any]:
    @app.handler(max_attempts=1)
    async def work(fails: bool) -> None:  # noqa: FBT001 - an arg of a job
        if fails:
            raise ValueError

    made = {
        State.COMPLETED: await work.enqueue(fails=False),
        State.FAILED: await work.enqueue(fails=True),
        State.CANCELLED: await work.enqueue(fails=False),
        State.EXPIRED: await work.using(expires_in=0.000_001, queue="none").enqueue(fails=False),
    }
    await made[State.CANCELLED].cancel()
    await app._store.stage(limit=10)
    return made


async def pruned(app: Piecework) -> None:
    """A worker has come and pruned."""
    async with app.worker() as worker:
        await worker.chores._prune()


async def there(made: dict[State, Any]) -> set[State]:
    found = set()
    for state, handle in made.items():
        try:
            assert (await handle.get()).state is state
        except JobNotFound:
            continue
        found.add(state)
    return found


async def test_each_final_state_has_its_own_retention_to_the_instant(
    store: Any, clock: FakeClock
) -> None:
    app = Piecework(store)
    made = await one_of_each(app)
    await clock.advance(1)
    await app._store.stage(limit=10)
    await app.run_until_idle()
    assert await there(made) == made.keys()
    ended = {state: (await handle.get()).finished_at for state, handle in made.items()}
    await clock.set(ended[State.COMPLETED] + 7 * DAY - timedelta(microseconds=1))
    await pruned(app)
    assert await there(made) == made.keys()
    await clock.advance(timedelta(microseconds=1))
    await pruned(app)
    assert await there(made) == made.keys() - {State.COMPLETED}
    await clock.advance(24 * DAY)
    await pruned(app)
    assert await there(made) == set()
    assert await app.count() == {}


async def test_retention_of_none_keeps_for_ever_and_zero_keeps_nothing(
    store: Any, clock: FakeClock
) -> None:
    keep = Retention(completed=None, failed=timedelta(0), cancelled=DAY, expired=None)
    app = Piecework(store, retention=keep)
    made = await one_of_each(app)
    await clock.advance(1)
    await app._store.stage(limit=10)
    await app.run_until_idle()
    await pruned(app)
    assert await there(made) == {State.COMPLETED, State.CANCELLED, State.EXPIRED}
    await clock.advance(1000 * DAY)
    await pruned(app)
    assert await there(made) == {State.COMPLETED, State.EXPIRED}


async def test_a_result_ttl_of_the_kind_tops_the_retention(store: Any, clock: FakeClock) -> None:
    app = Piecework(store, retention=Retention(completed=None))

    @app.handler(result_ttl=60)
    async def brief() -> int:
        return 1

    @app.handler(result_ttl=timedelta(days=365), max_attempts=1)
    async def fails() -> None:
        raise ValueError

    done, failed = await brief.enqueue(), await fails.enqueue()
    await app.run_until_idle()
    await clock.advance(59)
    await pruned(app)
    assert await done.result(timeout=1) == 1
    await clock.advance(1)
    await pruned(app)
    with pytest.raises(JobNotFound):
        await done.get()
    await clock.advance(31 * DAY)
    await pruned(app)
    with pytest.raises(JobNotFound):
        await failed.get()


async def test_live_jobs_are_never_pruned(store: Any, clock: FakeClock) -> None:
    app = Piecework(store, retention=Retention(completed=timedelta(0), failed=timedelta(0)))
    waiting = await app.kind("x").using(delay=10**9).enqueue()
    blocked = [await app.kind("y").using(serial_key="k", delay=1).enqueue() for _ in range(2)]
    await clock.advance(10_000 * DAY)
    await app._store.stage(limit=10)
    await pruned(app)
    for handle in [waiting, *blocked]:
        await handle.get()


async def test_pruning_goes_on_in_batches_until_all_is_gone(
    store: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piecework.engine.chores.PRUNE_LIMIT", 7)
    app = Piecework(store, retention=Retention(completed=timedelta(0)))

    @app.handler
    async def work() -> None: ...

    await app.enqueue_many([work.prepare() for _ in range(30)])
    async with app.worker() as worker:
        for loop in worker.chores.loops:
            if loop.name == "prune":
                await until(app._store.count)

                async def empty() -> bool:
                    loop.wake()  # noqa: B023 - the one loop
                    return await app.count() == {}

                await until(empty)


def test_a_negative_retention_is_refused() -> None:
    with pytest.raises(ValueError, match="retention of failed jobs cannot be negative"):
        Retention(failed=timedelta(seconds=-1))
