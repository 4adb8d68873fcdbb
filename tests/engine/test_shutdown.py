"""A worker that stops: what has finished is recorded, the rest is released uncharged (F16, F17)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from piecework import Piecework, Run, State
from piecework.engine import worker as worker_module
from piecework.stores.memory import MemoryStore
from tests.helpers import Around, outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 0.6, "beat": 0.1, "poll": 0.05}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "GRACE_SECONDS", 0.1)


async def test_a_run_is_told_and_may_finish_before_the_deadline(app: Piecework) -> None:
    started = asyncio.Event()
    told: list[Any] = []

    @app.handler
    async def work(run: Run) -> str:
        started.set()
        while run.stopping is None:  # noqa: ASYNC110 - as a handler does
            await asyncio.sleep(0.001)
        told.append((run.stopping, run.halted))
        run.check()
        return "finished"

    async with app.worker():
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
    assert await handle.result(timeout=1) == "finished"
    assert told == [("shutdown", False)]


async def test_a_thread_may_finish_before_the_deadline_too(app: Piecework) -> None:
    started = threading.Event()

    @app.handler
    def work(run: Run) -> str:
        started.set()
        while run.stopping is None:
            time.sleep(0.001)
        run.check()
        return "finished"

    async with app.worker():
        handle = await work.enqueue()
        await until(started.is_set)
    assert await handle.result(timeout=1) == "finished"


async def test_what_is_not_finished_is_released_uncharged_and_runs_again(app: Piecework) -> None:
    started = asyncio.Event()
    fences: list[int] = []

    @app.handler(max_attempts=1)
    async def work(run: Run) -> str:
        fences.append(run.fence)
        if len(fences) == 1:
            started.set()
            await asyncio.Event().wait()
        return "second time"

    async with app.worker(shutdown_timeout=0.02):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
    view = await handle.get()
    assert (view.state, view.attempt, view.crashes, view.worker) == (State.AVAILABLE, 0, 0, None)
    assert await outcomes(handle) == ["released"]
    assert view.error is None
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "second time"
    assert await outcomes(handle) == ["released", "completed"]
    assert fences[1] > fences[0] + 1, "the releasing raised it, too"


@pytest.mark.parametrize("ending", ["raise", "return", "check"])
async def test_what_is_recorded_after_the_deadline_follows_the_shutdown(
    app: Piecework, ending: str
) -> None:
    """Who was interrupted cannot be known to have finished its work."""
    started = asyncio.Event()

    @app.handler(max_attempts=1)
    async def work(run: Run) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ending == "raise":
                raise ValueError("while stopping") from None
            if ending == "check":
                run.check()
        return "some result"

    async with app.worker(shutdown_timeout=0):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
    assert (await handle.get()).state is State.AVAILABLE


async def test_nothing_new_starts_while_it_drains(app: Piecework) -> None:
    started, let_go = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @app.handler
    async def work(n: int) -> None:
        ran.append(n)
        started.set()
        await let_go.wait()

    async with app.worker(concurrency=1, lease=600, beat=300) as worker:
        worker._seconds_per_job = 0.005  # and it holds some in its buffer
        handles = [await work.enqueue(n) for n in range(4)]
        await asyncio.wait_for(started.wait(), 5)
        await until_state(handles[1], "running")
        stopping = asyncio.create_task(worker.stop())
        await until_state(handles[1], "available")
        let_go.set()
        await stopping
    assert ran == [0]
    assert [(await handle.get()).state for handle in handles] == [
        State.COMPLETED,
        *[State.AVAILABLE] * 3,
    ]
    assert [(await handle.get()).attempt for handle in handles] == [1, 0, 0, 0]


async def test_a_second_signal_ends_the_wait(app: Piecework) -> None:
    started, now = asyncio.Event(), asyncio.Event()

    @app.handler
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    worker = app.make_worker(shutdown_timeout=600)
    await worker.start()
    handle = await work.enqueue()
    await asyncio.wait_for(started.wait(), 5)
    stopping = asyncio.create_task(worker.stop(now=now))
    await asyncio.sleep(0)
    assert not stopping.done()
    now.set()
    await asyncio.wait_for(stopping, 5)
    view = await handle.get()
    assert (view.state, view.attempt) == (State.AVAILABLE, 0)


async def test_a_thread_that_does_not_stop_keeps_its_job_until_the_process_ends(
    app: Piecework,
) -> None:
    """Released earlier, it would run twice at once; the worker's end does not wait for it."""
    started, let_go = threading.Event(), threading.Event()

    @app.handler
    def deaf() -> str:
        started.set()
        let_go.wait(20)
        return "late"

    worker = app.make_worker(shutdown_timeout=0.02)
    await worker.start()
    handle = await deaf.enqueue()
    await until(started.is_set)
    await asyncio.wait_for(worker.stop(), 5)
    view = await handle.get()
    assert (view.state, view.worker) == (State.RUNNING, worker.id)
    await asyncio.wait_for(worker.abandon(), 5)
    view = await handle.get()
    assert (view.state, view.attempt, view.crashes) == (State.AVAILABLE, 0, 0)
    let_go.set()
    await until(lambda: worker.busy == 0)
    assert (await handle.get()).state is State.AVAILABLE, "its late end changes nothing"


async def test_a_task_that_does_not_stop_does_not_hold_up_the_end(app: Piecework) -> None:
    """L6: the deadline is kept, whatever a handler does with its cancels."""
    started, let_go = asyncio.Event(), asyncio.Event()

    @app.handler
    async def deaf() -> None:
        started.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    worker = app.make_worker(shutdown_timeout=0.02)
    await worker.start()
    handle = await deaf.enqueue()
    await asyncio.wait_for(started.wait(), 5)
    await asyncio.wait_for(worker.stop(), 5)
    assert (await handle.get()).state is State.RUNNING
    await asyncio.wait_for(worker.abandon(), 5)
    assert (await handle.get()).state is State.AVAILABLE
    let_go.set()
    await until(lambda: worker.busy == 0)


async def test_a_thread_that_finishes_in_the_last_moment_is_recorded(app: Piecework) -> None:
    """Nobody interrupted it: what returned has finished."""
    started = threading.Event()

    @app.handler
    def work(run: Run) -> str:
        started.set()
        while not run.halted:
            time.sleep(0.001)
        return "finished"

    async with app.worker(shutdown_timeout=0.02):
        handle = await work.enqueue()
        await until(started.is_set)
    assert (await handle.get()).result == "finished"


class SlowClaims(Around):
    """Claims whose answers take their time."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.claimed, self.let_go = asyncio.Event(), asyncio.Event()

    async def around(self, name: str, call: Any) -> Any:
        answer = await call()
        if name == "claim" and answer:
            self.claimed.set()
            await self.let_go.wait()
        return answer


async def test_a_claim_under_way_is_not_lost_when_the_worker_stops() -> None:
    """F17: its jobs would be taken for orphans, and charged with a crash."""
    store = SlowClaims(MemoryStore())
    app = store.app()
    ran: list[int] = []

    @app.handler
    async def work() -> None:
        ran.append(1)

    handle = await work.enqueue()
    worker = app.make_worker()
    await worker.start()
    await asyncio.wait_for(store.claimed.wait(), 5)
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    store.let_go.set()
    await stopping
    view = await handle.get()
    assert (view.state, view.attempt, view.crashes) == (State.AVAILABLE, 0, 0)
    assert ran == []


async def test_stopping_at_once_after_the_start_loses_nothing(app: Piecework) -> None:
    @app.handler
    async def work() -> None: ...

    handles = [await work.enqueue() for _ in range(5)]
    for turns in range(8):
        worker = app.make_worker(shutdown_timeout=5)
        await worker.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await worker.stop()
    await app.run_until_idle()
    for handle in handles:
        view = await handle.get()
        assert (view.state, view.attempt, view.crashes) == (State.COMPLETED, 1, 0)


async def test_a_drain_under_load_ends_in_time_and_is_quiet(
    app: Piecework, caplog: pytest.LogCaptureFixture
) -> None:
    """F16: finished ones are recorded, others released, none failed, nothing is logged as bad."""

    @app.handler(max_attempts=1)
    async def work(n: int) -> int:
        await asyncio.sleep(0.002 * (n % 5))
        return n

    handles = await app.enqueue_many([work.prepare(n) for n in range(200)])
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            async with app.worker(concurrency=20, shutdown_timeout=0):
                await until(lambda: True)
    counts = {state: n for (_, state), n in (await app.count()).items()}
    assert counts.keys() <= {State.COMPLETED, State.AVAILABLE}
    assert sum(counts.values()) == 200
    assert [record.getMessage() for record in caplog.records] == []
    await app.run_until_idle()
    assert [await handle.result(timeout=1) for handle in handles] == list(range(200))


async def test_workers_tasks_die_with_the_loop_when_nobody_stops_it() -> None:
    """A program that just ends must not hang on a busy slot."""
    workers: list[Any] = []

    def program() -> None:
        async def main() -> None:
            app = Piecework("memory://")
            started = asyncio.Event()

            @app.handler
            async def work() -> None:
                started.set()
                await asyncio.Event().wait()

            worker = app.make_worker(lease=0.6, beat=0.05)
            workers.append(worker)
            await worker.start()
            await work.enqueue()
            await asyncio.wait_for(started.wait(), 5)

        asyncio.run(main())

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
    workers[0]._capture.remove()
    pulse = workers[0].chores._pulse._thread
    await asyncio.to_thread(pulse.join, 5)
    assert not pulse.is_alive(), "others may rescue its jobs"


async def test_the_block_may_end_in_an_error_and_still_drains(app: Piecework) -> None:
    started = asyncio.Event()

    @app.handler
    async def work() -> str:
        started.set()
        await asyncio.sleep(0.01)
        return "finished"

    async def block() -> None:
        async with app.worker():
            await asyncio.wait_for(started.wait(), 5)
            raise LookupError("mine")

    handle = await work.enqueue()
    with pytest.raises(LookupError, match="mine"):
        await block()
    assert await handle.result(timeout=1) == "finished"
