"""Progress and partial results: when they show, how often they are written, what keeps them."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from piecework import Cancelled, LeaseLost, PayloadTooLarge, Piecework, Progress, Run, State
from piecework.core import lifecycle
from piecework.core.job import NOW
from piecework.engine import reports
from piecework.stores.memory import MemoryStore
from tests.helpers import Around, MakeApp, outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 0.6, "beat": 0.1, "poll": 0.05}


async def take_away(app: Piecework, handle: Any) -> None:
    """Another worker takes the job, as after a lost lease."""
    job = await app._client.read(handle.id)
    move = lifecycle.rescue(job, retry_in=NOW)
    assert await app._store.apply([move]) == []


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_progress_shows_while_the_run_goes_on(app: Piecework, style: str) -> None:
    let_go = threading.Event()

    async def in_task(run: Run) -> None:
        await run.progress(3, total=10, message="three")
        while not let_go.is_set():  # noqa: ASYNC110 - as a handler may
            await asyncio.sleep(0.002)

    def in_thread(run: Run) -> None:
        run.progress(3, total=10, message="three")  # type: ignore[unused-awaitable]
        let_go.wait(5)

    handler: Any = app.handler(in_task if style == "async" else in_thread)
    async with app.worker():
        handle = await handler.enqueue()
        assert await handle.progress() is None
        progress = await until(handle.progress)
        assert progress == Progress(done=3, total=10, message="three")
        assert progress.percent == 30.0
        let_go.set()
        await handle.result(timeout=5)
    assert (await handle.get()).progress == progress


async def test_the_last_report_is_written_with_the_outcome() -> None:
    """However many there were: a report a step costs nothing."""
    store = Around(MemoryStore())
    app = store.app()

    @app.handler
    async def work(run: Run) -> None:
        for step in range(1_000):
            await run.progress(step + 1, total=1_000)

    handle = await work.enqueue()
    await app.run_until_idle()
    assert await handle.progress() == Progress(done=1_000, total=1_000)
    assert store.times("apply") == 1


async def test_progress_is_written_at_most_twice_a_second() -> None:
    store = Around(MemoryStore())
    app = store.app()

    @app.handler
    async def work(run: Run) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 1.2:
            await run.progress(loop.time() - began)
            await asyncio.sleep(0.001)

    handle = await work.enqueue()
    await app.run_until_idle()
    assert 2 <= store.times("apply") <= 4, "two or so on the way, and the outcome"
    assert await handle.progress() is not None


async def test_progress_of_many_runs_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "WRITE_SECONDS", 0.05)
    store = Around(MemoryStore())
    app = store.app()
    let_go = asyncio.Event()
    ready = asyncio.Barrier(20)

    @app.handler
    async def work(run: Run) -> None:
        await ready.wait()
        await run.progress(1)
        await let_go.wait()

    async with app.worker():
        handles = [await work.enqueue() for _ in range(20)]

        async def all_show() -> bool:
            return all([await handle.progress() for handle in handles])

        await until(all_show)
        assert store.times("apply") <= 2
        let_go.set()


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, -math.inf])
async def test_progress_is_a_finite_number_of_at_least_zero(app: Piecework, bad: float) -> None:
    seen: list[str] = []

    @app.handler
    async def work(run: Run) -> None:
        for done, total in ((bad, None), (1, bad)):
            with pytest.raises(ValueError, match="progress must be a finite number"):
                await run.progress(done, total)
            seen.append("refused")

    await work.enqueue()
    await app.run_until_idle()
    assert seen == ["refused", "refused"]


async def test_percent_stays_within_bounds_and_odd_messages_are_kept(app: Piecework) -> None:
    @app.handler
    async def work(n: int, run: Run) -> None: ...

    @app.handler
    async def over(run: Run) -> None:
        await run.progress(12, total=10, message="a\x00b\ud800 é " + "x" * 100_000)

    handle = await over.enqueue()
    await app.run_until_idle()
    progress = await handle.progress()
    assert progress is not None
    assert progress.percent == 100.0
    assert progress.message is not None
    assert progress.message.startswith("a\ufffdb? é xx")
    assert len(progress.message) < 2_000
    assert Progress(done=1).percent is None
    assert Progress(done=1, total=0).percent is None


async def test_an_async_handler_may_report_from_its_threads(app: Piecework) -> None:
    """asyncio.to_thread(run.save) once ran half on the wrong thread."""
    let_go = asyncio.Event()

    @app.handler
    async def work(run: Run) -> None:
        _ = await asyncio.to_thread(run.progress, 4, 8)
        _ = await asyncio.to_thread(run.save, {"from": "a thread"})
        await asyncio.to_thread(run.log.info, "a line")
        await let_go.wait()

    async with app.worker():
        handle = await work.enqueue()
        progress = await until(handle.progress)
        assert progress == Progress(done=4, total=8, partial={"from": "a thread"})
        let_go.set()
        await handle.result(timeout=5)
    assert [line.message for line in await handle.logs()] == ["a line"]


# ── partial results ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_partial_is_stored_before_the_save_ends(app: Piecework, style: str) -> None:
    seen: list[Any] = []

    async def in_task(run: Run) -> None:
        await run.progress(1, 2)
        await run.save({"rows": [1]})
        seen.append(await app.job(run.id).progress())

    def in_thread(run: Run) -> None:
        run.progress(1, 2)  # type: ignore[unused-awaitable]
        run.save({"rows": [1]})  # type: ignore[unused-awaitable]
        seen.append(app.sync.job(run.id).progress())

    handler: Any = app.handler(in_task if style == "async" else in_thread)
    await handler.enqueue()
    await app.run_until_idle()
    assert seen == [Progress(done=1, total=2, partial={"rows": [1]})]


@pytest.mark.parametrize("ending", ["fail", "timeout", "cancel", "retry"])
async def test_a_partial_is_kept_however_the_run_ends(app: Piecework, ending: str) -> None:
    saved = asyncio.Event()

    @app.handler(max_attempts=2 if ending == "retry" else 1)
    async def work(run: Run) -> None:
        await run.save([1, 2, 3])
        await run.progress(1)
        saved.set()
        if ending in ("fail", "retry"):
            raise ValueError
        await asyncio.Event().wait()

    async with app.worker(**QUICK):
        handle = await work.using(timeout=0.05 if ending == "timeout" else None).enqueue()
        await asyncio.wait_for(saved.wait(), 5)
        if ending == "cancel":
            await handle.cancel()
        await until_state(handle, *(s for s in State if s is not State.RUNNING))
    assert await handle.progress() == Progress(done=1, partial=[1, 2, 3])


async def test_a_save_json_cannot_hold_is_refused_where_it_is_called(make_app: MakeApp) -> None:
    app = make_app(max_args_bytes=1_000)
    errors: list[type] = []

    @app.handler
    async def work(run: Run) -> None:
        for partial in (object(), math.nan, {"a": [math.inf]}, "\ud800", "x" * 999):
            try:
                await run.save(partial)
            except (TypeError, ValueError) as error:
                errors.append(type(error))
        await run.save(b"\xff")

    handle = await work.enqueue()
    await app.run_until_idle()
    assert errors == [TypeError, ValueError, ValueError, TypeError, PayloadTooLarge]
    progress = await handle.progress()
    assert progress is not None
    assert progress.partial == "_w=="


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_save_of_a_job_that_was_taken_away_raises_lease_lost(
    app: Piecework, style: str
) -> None:
    """I4: nothing is written, and the handler learns of it at once."""
    started, taken = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    seen: list[Any] = []

    async def in_task(run: Run) -> None:
        if run.attempt > 1:
            return
        started.set()
        while not taken.is_set():  # noqa: ASYNC110 - as a handler may
            await asyncio.sleep(0.001)
        try:
            await run.save("late")
        except LeaseLost as error:
            seen.append((error.job_id, run.stopping))
            raise

    def in_thread(run: Run) -> None:
        if run.attempt > 1:
            return
        loop.call_soon_threadsafe(started.set)
        taken.wait(5)
        try:
            run.save("late")  # type: ignore[unused-awaitable]
        except LeaseLost as error:
            seen.append((error.job_id, run.stopping))
            with pytest.raises(Cancelled):
                run.check()
            raise

    handler: Any = app.handler(in_task if style == "async" else in_thread)
    async with app.worker(lease=600, beat=300) as worker:
        handle = await handler.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await take_away(app, handle)
        taken.set()
        await handle.result(timeout=5)
        await until(lambda: worker.busy == 0)
    assert seen == [(handle.id, "lost")]
    assert await handle.progress() is None
    assert await outcomes(handle) == ["crashed", "completed"]


async def test_a_refused_report_stops_the_handler(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "WRITE_SECONDS", 0.01)
    started = asyncio.Event()
    stops: list[Any] = []

    @app.handler
    async def work(run: Run) -> None:
        if run.attempt > 1:
            return
        started.set()
        try:
            while True:
                await run.progress(1)
                await asyncio.sleep(0.001)
        finally:
            stops.append(run.stopping)

    async with app.worker(lease=600, beat=300) as worker:
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await take_away(app, handle)
        await handle.result(timeout=5)
        await until(lambda: worker.busy == 0)
        assert worker.settler.refused == 0, "a lost run records nothing"
    assert stops == ["lost"]
