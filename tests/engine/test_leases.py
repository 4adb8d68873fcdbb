"""Workers that are taken for dead, jobs of workers that are, and jobs that kill their worker."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from piecework import Piecework, Retry, Run, State
from piecework.core import lifecycle
from piecework.core.job import WorkerId
from piecework.engine import chores as chores_module
from piecework.ports import Ask, Beat
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore
from tests.engine import isolated
from tests.engine.isolated import adopt
from tests.helpers import Around, outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 0.6, "beat": 0.1, "poll": 0.05}


@pytest.fixture(autouse=True)
def rescue_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores_module, "RESCUE_SECONDS", 0.03)
    monkeypatch.setattr(chores_module, "AFTER_CRASH", Retry(base=0.05, jitter=False))


async def die_with(app: Piecework, handle: Any, lease: float = 0.05) -> WorkerId:
    """A worker claims the job, and is never heard of again."""
    worker = WorkerId(uuid4())
    await app._store.beat(
        Beat(
            worker=worker,
            node="dead-1",
            pid=1,
            lease=timedelta(seconds=lease),
            queues=None,
            slots=1,
            running=0,
        )
    )
    (claimed,) = await app._store.claim(Ask(worker=worker, node="dead-1", free=1))
    assert claimed.id == handle.id
    return worker


# ── jobs of the dead ─────────────────────────────────────────────────────────────────────────


async def test_a_dead_workers_job_runs_again_and_the_crash_is_counted(app: Piecework) -> None:
    """F01, F02."""

    @app.handler
    async def work(run: Run) -> list[int]:
        return [run.attempt, run.fence]

    handle = await work.enqueue()
    dead = await die_with(app, handle)
    async with app.worker(**QUICK):
        assert await handle.result(timeout=5) == [2, 3]
    view = await handle.get()
    assert (view.attempt, view.crashes) == (2, 1)
    first, second = await handle.attempts()
    assert (first.outcome, first.error) == (
        "crashed",
        f"WorkerCrashed: worker {dead} on dead-1 was lost",
    )
    assert (first.worker, first.node) == (dead, "dead-1")
    assert (second.outcome, second.number) == ("completed", 2)


async def test_a_worker_that_is_alive_is_left_alone(app: Piecework) -> None:
    @app.handler
    async def work() -> None: ...

    handle = await work.enqueue()
    await die_with(app, handle, lease=60)
    async with app.worker(**QUICK) as worker:
        for _ in range(3):
            await worker.chores._rescue()
    assert (await handle.get()).state is State.RUNNING


async def test_the_first_crash_runs_again_at_once_and_later_ones_back_off(
    app: Piecework,
) -> None:
    handle = await app.kind("work").enqueue()
    await die_with(app, handle)
    await until(lambda: orphans_rescued(app))
    view = await handle.get()
    assert (view.state, view.crashes) == (State.AVAILABLE, 1)
    await die_with(app, handle)
    await until(lambda: orphans_rescued(app))
    view = await handle.get()
    assert (view.state, view.crashes) == (State.SCHEDULED, 2)
    assert view.due_at > view.enqueued_at


async def orphans_rescued(app: Piecework) -> int:
    orphans = await app._store.orphans(limit=10)
    moves = [lifecycle.rescue(job, retry_in=timedelta(seconds=9)) for job in orphans]
    await app._store.apply(moves)
    return len(moves)


async def test_at_max_crashes_the_job_is_buried_with_the_reason(app: Piecework) -> None:
    handle = await app.kind("work").enqueue()
    dead: object = None
    for _ in range(3):
        dead = await die_with(app, handle)
        await until(lambda: orphans_rescued(app))
        await handle.reschedule(delay=0)
    view = await handle.get()
    assert (view.state, view.crashes, view.attempt) == (State.FAILED, 3, 3)
    assert view.reason == f"crashed its worker 3 times: worker {dead} on dead-1 was lost"
    assert await outcomes(handle) == ["crashed", "crashed", "failed"]


async def test_a_crash_on_the_last_attempt_is_final(app: Piecework) -> None:
    """I7: a crash is an attempt."""
    handle = await app.kind("work").using(max_attempts=1).enqueue()
    await die_with(app, handle)
    await until(lambda: orphans_rescued(app))
    view = await handle.get()
    assert (view.state, view.attempt, view.crashes) == (State.FAILED, 1, 1)
    assert (view.reason or "").endswith("was lost; no attempts left")


async def test_a_dead_workers_job_with_a_cancel_wish_is_cancelled(app: Piecework) -> None:
    handle = await app.kind("work").enqueue()
    await die_with(app, handle)
    assert await handle.cancel("not needed")
    await until(lambda: orphans_rescued(app))
    view = await handle.get()
    assert (view.state, view.reason, view.crashes) == (State.CANCELLED, "not needed", 1)


async def test_what_crashed_does_not_expire_any_more(app: Piecework) -> None:
    handle = await app.kind("work").using(expires_in=60).enqueue()
    await die_with(app, handle)
    await until(lambda: orphans_rescued(app))
    assert (await handle.get()).expires_at is None


async def test_a_partial_outlives_the_crash(app: Piecework) -> None:
    handle = await app.kind("work").enqueue()
    await die_with(app, handle)
    (job,) = await app._store.get([handle.id])
    claimed: Any = job
    move = lifecycle.progress(claimed, progress="[3, 5, null]", partial='"part"')
    assert await app._store.apply([move]) == []
    await until(lambda: orphans_rescued(app))
    progress = await handle.progress()
    assert progress is not None
    assert (progress.done, progress.partial) == (3, "part")


# ── the worker that was taken for dead ───────────────────────────────────────────────────────


async def declare_lost(store: Any, worker: WorkerId) -> None:
    """As when its process was stopped for longer than its lease."""
    if isinstance(store, MemoryStore):
        store._workers[worker].lost = True
        return
    await store._write(
        lambda tx, now: tx.execute(
            "UPDATE piecework_worker SET lost = 1 WHERE id = ?", (worker.bytes,)
        )
    )


async def test_a_worker_declared_lost_stops_its_handlers_and_begins_anew(
    app: Piecework, caplog: pytest.LogCaptureFixture
) -> None:
    """F04: what it still writes changes nothing, and its handlers are stopped."""
    started, let_go = asyncio.Event(), threading.Event()
    stops: list[Any] = []
    runs: list[int] = []

    @app.handler
    async def task(run: Run) -> str:
        runs.append(run.fence)
        if len(runs) == 1:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stops.append(run.stopping)
        return "second"

    @app.handler
    def thread(run: Run) -> str:
        if run.attempt == 1:
            let_go.wait(10)
            with pytest.raises(Exception, match="lost"):
                run.check()
            stops.append(run.stopping)
        return "late" if run.attempt == 1 else "second"

    async with app.worker(lease=5, beat=0.03, poll=0.05) as worker:
        first, second = await task.enqueue(), await thread.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await until_state(second, "running")
        before = worker.id
        with caplog.at_level(logging.ERROR):
            await declare_lost(app._store, before)
            await until(lambda: worker.id != before)
        let_go.set()
        assert await first.result(timeout=5) == "second"
        assert await second.result(timeout=5) == "second"
        await until(lambda: worker.busy == 0)
        assert worker.id in [node.worker for node in await app.nodes()]
    assert sorted(stops) == ["lost", "lost"]
    assert "begin" in caplog.text
    for handle in (first, second):
        assert await outcomes(handle) == ["crashed", "completed"]
        assert (await handle.get()).crashes == 1


async def test_a_late_outcome_is_refused_and_counted(app: Piecework) -> None:
    started, let_go = asyncio.Event(), asyncio.Event()

    @app.handler
    async def work(run: Run) -> str:
        started.set()
        await let_go.wait()
        return f"by attempt {run.attempt}"

    async with app.worker(lease=600, beat=300, concurrency=1) as worker:
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        (job,) = await app._store.get([handle.id])
        assert await app._store.apply([lifecycle.rescue(job, retry_in=timedelta(0))]) == []
        let_go.set()
        assert await handle.result(timeout=5) == "by attempt 2"
        assert worker.settler.refused == 1
    assert await outcomes(handle) == ["crashed", "completed"]


async def test_a_job_taken_away_is_stopped_within_a_beat(app: Piecework) -> None:
    """Also where the handler says nothing that could be refused."""
    started = asyncio.Event()
    stops: list[Any] = []

    @app.handler
    async def work(run: Run) -> None:
        if run.attempt > 1:
            return
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stops.append(run.stopping)

    async with app.worker(lease=60, beat=0.05, concurrency=1) as worker:
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        (job,) = await app._store.get([handle.id])
        assert await app._store.apply([lifecycle.rescue(job, retry_in=timedelta(0))]) == []
        await handle.result(timeout=5)
        assert worker.settler.refused == 0
    assert stops == ["lost"]


async def test_a_worker_begun_anew_does_not_claim_before_its_first_beat(inner: Any) -> None:
    """A job that runs in a name the store does not know is taken for an orphan at once."""
    let_go = threading.Event()
    old: list[WorkerId] = []

    class HoldingBeats(Around):
        async def around(self, name: str, call: Any) -> Any:
            _, args = self.calls[-1]
            if name == "beat" and old and args[0].worker != old[0]:
                await asyncio.to_thread(let_go.wait, 10)  # beats have a loop of their own
            return await call()

    store = HoldingBeats(inner)
    app = store.app()

    @app.handler
    async def work() -> None: ...

    async with app.worker(lease=5, beat=0.05, poll=0.01) as worker:
        old.append(worker.id)
        await declare_lost(inner, old[0])
        await until(lambda: worker.id != old[0])
        handle = await work.enqueue()
        asked = store.times("stage")
        await until(lambda: store.times("stage") > asked + 3)
        assert (await handle.get()).state is State.AVAILABLE
        let_go.set()
        await handle.result(timeout=5)
    assert (await handle.get()).crashes == 0


@pytest.fixture(params=["memory", "sqlite"])
async def inner(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    store: Any = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db")
    yield store
    await store.close()


async def test_a_handler_that_blocks_the_loop_costs_nobody_a_lease(
    sqlite_app: Piecework, sqlite_url: str
) -> None:
    """F06: beats come from a thread and connection of their own."""

    @sqlite_app.handler
    async def block(run: Run) -> int:
        time.sleep(1.2)  # noqa: ASYNC251 - the fault this is about
        return run.attempt

    other = Piecework(sqlite_url)
    watching = threading.Event()

    def watch() -> None:
        async def main() -> None:
            async with other.worker(queues=["nothing"], **QUICK):
                await asyncio.to_thread(watching.wait, 20)
            await other.close()

        asyncio.run(main())

    thread = threading.Thread(target=watch)
    thread.start()
    async with sqlite_app.worker(lease=0.3, beat=0.05):
        handle = await block.enqueue()
        assert await handle.result(timeout=10) == 1
    watching.set()
    await asyncio.to_thread(thread.join)
    assert (await handle.get()).crashes == 0


async def test_who_could_not_beat_waits_a_lease_before_it_judges_others(inner: Any) -> None:
    """Its own outage is no proof that the others are dead."""

    class Away(Around):
        away = False

        async def around(self, name: str, call: Any) -> Any:
            if self.away and name == "beat":
                from piecework import StoreUnavailable

                raise StoreUnavailable("away")
            return await call()

    store = Away(inner)
    app = store.app()
    async with app.worker(lease=0.8, beat=0.1) as worker:
        pulse = worker.chores._pulse
        assert pulse.is_steady(timedelta(seconds=0.8))
        store.away = True
        await until(lambda: not pulse.is_steady(timedelta(seconds=0.8)))
        store.away = False
        asked = store.times("orphans")
        for _ in range(3):
            await worker.chores._rescue()
        assert store.times("orphans") == asked
        await until(lambda: pulse.is_steady(timedelta(seconds=0.8)))
        await worker.chores._rescue()
        assert store.times("orphans") > asked


# ── suspects ─────────────────────────────────────────────────────────────────────────────────


async def crash_once(app: Piecework, handle: Any) -> None:
    await die_with(app, handle)
    await until(lambda: orphans_rescued(app))


async def test_what_crashed_a_worker_runs_in_a_process_of_its_own(app: Piecework) -> None:
    """It can bury only itself: the handler is the same, the process is not."""
    pid_of: Any = app.handler(isolated.pid_of.__wrapped__)
    suspect = await pid_of.enqueue(1)
    await crash_once(app, suspect)
    fresh = await pid_of.enqueue(2)
    await app.run_until_idle()
    assert (await suspect.result(timeout=1))[1] != os.getpid()
    assert (await fresh.result(timeout=1))[1] == os.getpid()


@pytest.mark.parametrize(
    "handler", [isolated.needs_what_is_only_there, isolated.asks_for_what_is_only_there]
)
async def test_a_suspect_whose_services_another_process_lacks_runs_alone_here(
    app: Piecework, handler: Any
) -> None:
    """Most of what a killed worker leaves behind is innocent, and must not fail for it."""
    app.services.register_factory(isolated.OnlyThere, isolated.OnlyThere)
    mine: Any = app.handler(handler.__wrapped__)
    suspect = await mine.enqueue(1)
    await crash_once(app, suspect)
    await app.run_until_idle()
    assert await suspect.result(timeout=1) == [1, os.getpid()]


async def test_poison_that_kills_its_process_harms_nobody_else(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09."""
    monkeypatch.setattr("piecework.engine.isolate.AFTER_CRASH", Retry(base=0))
    die: Any = app.handler(isolated.die.__wrapped__)
    poison = await die.enqueue("segv")
    await crash_once(app, poison)

    @app.handler
    async def work(n: int) -> int:
        return n

    handles = [await work.enqueue(n) for n in range(10)]
    await app.run_until_idle()
    view = await poison.get()
    assert (view.state, view.crashes) == (State.FAILED, 3)
    assert view.reason == "crashed its worker 3 times: its process was killed by SIGSEGV"
    assert [await handle.result(timeout=1) for handle in handles] == list(range(10))


async def test_a_suspect_that_cannot_be_alone_is_put_off_and_the_others_go_on(
    app: Piecework,
) -> None:
    """A run of hours must not idle the other slots for hours."""
    started, let_go = asyncio.Event(), asyncio.Event()

    @app.handler
    async def work(name: str) -> None:
        if name == "long":
            started.set()
            await let_go.wait()

    suspect = await work.enqueue("suspect")
    await crash_once(app, suspect)
    long = await work.using(priority=9).enqueue("long")
    async with app.worker(concurrency=3, **QUICK):
        await asyncio.wait_for(started.wait(), 5)
        view = await until_state(suspect, "scheduled")
        assert view.reason == "crashed a worker before, and waits to run alone"
        assert view.attempt == 1
        fine = await work.enqueue("fine")
        await fine.result(timeout=5)
        let_go.set()
        await long.result(timeout=5)
        assert await suspect.reschedule(delay=0)
        await suspect.result(timeout=5)


async def test_nothing_starts_beside_a_suspect_and_everything_after_it(app: Piecework) -> None:
    started, let_go = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    @app.handler
    async def work(name: str) -> None:
        order.append(name)
        if name == "suspect":
            started.set()
            await let_go.wait()
            order.append("suspect ends")

    suspect = await work.using(priority=9).enqueue("suspect")
    await crash_once(app, suspect)
    handles = [await work.enqueue(f"other {n}") for n in range(8)]
    async with app.worker(concurrency=4, lease=60, beat=5, poll=0.05):
        await asyncio.wait_for(started.wait(), 5)
        more = await work.using(priority=9).enqueue("more")
        let_go.set()
        for handle in [suspect, *handles, more]:
            await handle.result(timeout=5)
    assert order.index("suspect ends") == order.index("suspect") + 1
    for handle in handles:
        view = await handle.get()
        assert (view.attempt, view.crashes) == (1, 0), "given back uncharged"


@pytest.mark.parametrize("cause", ["cancel", "timeout", "shutdown"])
async def test_a_suspect_is_stopped_while_it_waits_to_be_alone(app: Piecework, cause: str) -> None:
    """A cancel that met the waiting slot once ended it, and the job was never heard of again."""
    started, let_go = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    @app.handler(max_attempts=2)
    async def work(name: str) -> None:
        ran.append(name)
        if name == "long":
            started.set()
            await let_go.wait()

    suspect = await work.using(
        timeout=0.3 if cause == "timeout" else None, delay=0, priority=-1
    ).enqueue("suspect")
    await crash_once(app, suspect)
    long = await work.using(priority=9).enqueue("long")
    worker = app.make_worker(concurrency=2, shutdown_timeout=0, lease=60, beat=5, poll=0.05)
    await worker.start()
    await asyncio.wait_for(started.wait(), 5)
    await until(lambda: worker.busy == 2)
    if cause == "cancel":
        assert await suspect.cancel()
        await until_state(suspect, "cancelled")
    elif cause == "timeout":
        view = await until_state(suspect, "failed")
        assert "TimeoutError" in (view.error or "")
    if cause != "shutdown":
        let_go.set()
        await long.result(timeout=5)
        fine = await work.enqueue("fine")
        await fine.result(timeout=5)
    await worker.stop()
    if cause == "shutdown":
        view = await suspect.get()
        assert (view.state, view.attempt) == (State.AVAILABLE, 1)
    assert "suspect" not in ran


async def test_a_suspect_of_a_process_handler_gets_a_fresh_process(app: Piecework) -> None:
    handler = adopt(isolated.pid_of, app)
    suspect = await handler.enqueue(1)
    await crash_once(app, suspect)
    await app.run_until_idle()
    assert (await suspect.result(timeout=1))[0] == 1
