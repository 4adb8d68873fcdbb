"""Follow one job: get, result, progress, watch, attempts, logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from piecework import (
    Cancelled,
    GiveUp,
    Handle,
    JobCancelled,
    JobEvent,
    JobExpired,
    JobFailed,
    JobNotFound,
    Piecework,
    Progress,
    ResultInvalid,
    Retry,
    Run,
    State,
)
from piecework.core.errors import JobUnfinished
from piecework.testing import FakeClock
from tests.helpers import until, until_state

MakeApp = Callable[..., Piecework]


@dataclass(frozen=True)
class Report:
    pages: int


def count_looks(app: Piecework, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of ids at each look at statuses."""
    looks: list[int] = []
    statuses = app._store.statuses

    async def counted(ids: Any) -> Any:
        looks.append(len(ids))
        return await statuses(ids)

    monkeypatch.setattr(app._store, "statuses", counted)
    return looks


# ── a job that is not there ──────────────────────────────────────────────────────────────────


async def test_every_look_at_an_unknown_job_says_so(app: Piecework) -> None:
    handle = app.job(uuid4())

    async def watch() -> None:
        async for _ in handle.watch():
            pass

    looks: list[Callable[[], Any]] = [
        handle.get,
        handle.result,
        lambda: handle.result(timeout=5),
        lambda: handle.result(timeout=0),
        handle.progress,
        watch,
        handle.attempts,
        handle.logs,
        handle.cancel,
        handle.retry,
        lambda: handle.reschedule(delay=1),
        handle.delete,
    ]
    for look in looks:
        with pytest.raises(JobNotFound) as caught:
            await look()
        assert caught.value.job_id == handle.id
        assert isinstance(caught.value, LookupError)


async def test_who_waits_for_a_job_that_is_deleted_hears_of_it(app: Piecework) -> None:
    @app.handler
    async def note() -> None: ...

    handle = await note.using(delay=60).enqueue()
    waiting = asyncio.create_task(handle.result(timeout=10))
    await asyncio.sleep(0)
    await handle.cancel()
    await handle.delete()
    with pytest.raises((JobNotFound, JobCancelled)):
        await waiting


# ── result ───────────────────────────────────────────────────────────────────────────────────


async def test_a_result_comes_as_soon_as_the_job_has_completed(app: Piecework) -> None:
    release = asyncio.Event()

    @app.handler
    async def slow() -> int:
        await release.wait()
        return 42

    handle = await slow.enqueue()
    async with app.worker():
        waiting = asyncio.create_task(handle.result())
        await until_state(handle, "running")
        assert not waiting.done()
        release.set()
        assert await waiting == 42


@pytest.mark.parametrize("timeout", [0.01, timedelta(milliseconds=10), 0, -1])
async def test_a_timeout_leaves_the_job_alone(app: Piecework, timeout: Any) -> None:
    @app.handler
    async def note() -> None: ...

    handle = await note.enqueue()
    with pytest.raises(TimeoutError, match=str(handle.id)):
        await handle.result(timeout=timeout)
    assert (await handle.get()).state is State.AVAILABLE


async def test_a_timeout_of_nothing_gives_a_result_that_is_there(app: Piecework) -> None:
    @app.handler
    async def note() -> int:
        return 7

    handle = await note.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=0) == 7
    assert await handle.result(timeout=timedelta(0)) == 7


async def test_a_failed_job_tells_its_error_and_attempts(app: Piecework) -> None:
    @app.handler(max_attempts=3, retry=Retry(base=0))
    async def fail() -> None:
        raise ValueError("no such page")

    handle = await fail.enqueue()
    await app.run_until_idle()
    with pytest.raises(JobFailed) as caught:
        await handle.result(timeout=5)
    error = caught.value
    assert (error.job_id, error.error, error.attempts) == (
        handle.id,
        "ValueError: no such page",
        3,
    )
    assert isinstance(error, JobUnfinished)
    assert str(error).endswith("failed after 3 attempts: ValueError: no such page")


async def test_a_cancelled_job_tells_the_reason(app: Piecework) -> None:
    @app.handler
    async def note() -> None: ...

    @app.handler
    async def stop() -> None:
        raise Cancelled("enough")

    waiting, stopped, silent = await note.enqueue(), await stop.enqueue(), await note.enqueue()
    await waiting.cancel("not needed")
    await silent.cancel()
    await app.run_until_idle()
    for handle, reason in ((waiting, "not needed"), (stopped, "enough"), (silent, None)):
        with pytest.raises(JobCancelled) as caught:
            await handle.result(timeout=5)
        assert (caught.value.job_id, caught.value.reason) == (handle.id, reason)


async def test_an_expired_job_says_so(clocked: Piecework, clock: FakeClock) -> None:
    @clocked.handler
    async def note() -> None: ...

    handle = await note.using(expires_in=60).enqueue()
    await clock.advance(60)
    await clocked.run_until_idle()
    with pytest.raises(JobExpired) as caught:
        await handle.result(timeout=5)
    assert caught.value.job_id == handle.id


async def test_a_result_that_does_not_fit_the_handlers_type_is_told_from_a_failure(
    make_app: MakeApp, url: str
) -> None:
    app = make_app()

    @app.handler(kind="report")
    async def old() -> dict[str, str]:
        return {"pages": "many"}

    handle = await old.enqueue()
    await app.run_until_idle()

    @app.handler(kind="other")
    async def new() -> Report:
        return Report(1)

    typed = new.handle(handle.id)
    with pytest.raises(ResultInvalid, match="plain JSON"):
        await typed.result(timeout=5)
    assert await app.job(handle.id).result(timeout=5) == {"pages": "many"}


async def test_an_awaiter_that_is_cancelled_leaves_the_others_waiting(app: Piecework) -> None:
    @app.handler
    async def note() -> int:
        return 1

    handle = await note.enqueue()
    waiting = [asyncio.create_task(handle.result(timeout=10)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await app.run_until_idle()
    assert [await waiting[0], await waiting[2]] == [1, 1]
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]


async def test_all_awaited_jobs_share_one_look(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.handler
    async def note(n: int) -> int:
        return n

    handles = await app.enqueue_many([note.prepare(n) for n in range(200)])
    looks = count_looks(app, monkeypatch)
    waiting = [asyncio.create_task(handle.result(timeout=20)) for handle in handles]
    await until(lambda: looks)
    await app.run_until_idle()
    assert await asyncio.gather(*waiting) == list(range(200))
    assert max(looks) > 100
    assert len(looks) < 100


async def test_nobody_looks_while_nobody_waits(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.handler
    async def note() -> int:
        return 1

    first, second = await note.enqueue(), await note.enqueue()
    await app.run_until_idle()
    await first.result(timeout=5)
    looks = count_looks(app, monkeypatch)
    await note.enqueue()
    await app.run_until_idle()
    assert looks == []
    assert await second.result(timeout=5) == 1


async def test_a_store_that_is_away_for_a_moment_is_waited_for(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    from piecework import StoreUnavailable

    @app.handler
    async def note() -> int:
        return 1

    handle = await note.enqueue()
    statuses, fails = app._store.statuses, [2]

    async def flaky(ids: Any) -> Any:
        if fails[0]:
            fails[0] -= 1
            raise StoreUnavailable("away")
        return await statuses(ids)

    monkeypatch.setattr(app._store, "statuses", flaky)
    await app.run_until_idle()
    assert await handle.result(timeout=10) == 1
    assert fails == [0]


async def test_an_error_nobody_foresaw_reaches_whoever_waits(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(ids: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(app._store, "statuses", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await app.job(uuid4()).result(timeout=5)


# ── progress and watch ───────────────────────────────────────────────────────────────────────


async def test_progress_tells_done_total_message_percent_and_partial(app: Piecework) -> None:
    @app.handler
    async def work(run: Run) -> None:
        await run.progress(1, total=4, message="one")
        await run.save({"half": [1]})

    @app.handler
    async def silent() -> None: ...

    handle, quiet = await work.enqueue(), await silent.enqueue()
    assert await handle.progress() is None
    await app.run_until_idle()
    progress = await handle.progress()
    assert progress == Progress(done=1, total=4, message="one", partial={"half": [1]})
    assert progress is not None
    assert progress.percent == 25.0
    assert (await handle.get()).progress == progress
    assert await quiet.progress() is None


async def test_a_partial_result_is_kept_when_the_run_fails(app: Piecework) -> None:
    @app.handler
    async def work(run: Run) -> None:
        await run.save([1, 2])
        raise GiveUp("stuck")

    handle = await work.enqueue()
    await app.run_until_idle()
    progress = await handle.progress()
    assert progress is not None
    assert progress.partial == [1, 2]


async def test_watch_yields_the_job_as_it_is_and_each_change_until_it_is_final(
    app: Piecework,
) -> None:
    steps = [asyncio.Event() for _ in range(2)]

    @app.handler
    async def work(run: Run) -> None:
        await steps[0].wait()
        await run.progress(1, total=2)
        await steps[1].wait()

    handle = await work.enqueue()
    events: list[JobEvent] = []

    async def watch() -> None:
        async for event in handle.watch():
            events.append(event)
            if event.state is State.RUNNING:
                steps[0 if event.progress is None else 1].set()

    watching = asyncio.create_task(watch())
    await until(lambda: events)
    async with app.worker():
        await asyncio.wait_for(watching, 10)
    assert {event.id for event in events} == {handle.id}
    assert [event.state for event in events] == [
        State.AVAILABLE,
        State.RUNNING,
        State.RUNNING,
        State.COMPLETED,
    ]
    assert [event.progress and event.progress.done for event in events] == [None, None, 1, 1]
    assert [event.attempt for event in events] == [0, 1, 1, 1]


async def test_a_job_that_has_ended_is_watched_once(app: Piecework) -> None:
    @app.handler
    async def note() -> None: ...

    handle = await note.enqueue()
    await app.run_until_idle()
    assert [event.state async for event in handle.watch()] == [State.COMPLETED]


async def test_a_watcher_may_leave_before_the_end(app: Piecework) -> None:
    @app.handler
    async def note() -> int:
        return 1

    handle = await note.enqueue()
    async for event in handle.watch():
        assert event.state is State.AVAILABLE
        break
    await app.run_until_idle()
    assert await handle.result(timeout=5) == 1


# ── attempts and logs ────────────────────────────────────────────────────────────────────────


async def test_attempts_are_readable_one_by_one(app: Piecework) -> None:
    @app.handler(max_attempts=3, retry=Retry(base=0))
    async def flaky(run: Run) -> int:
        if run.attempt < 3:
            raise ValueError(f"try {run.attempt}")
        return run.attempt

    handle = await flaky.enqueue()
    assert await handle.attempts() == []
    async with app.worker(node="web-1") as worker:
        await worker.run_until_idle()
    first, second, third = await handle.attempts()
    view = await handle.get()
    assert [each.number for each in (first, second, third)] == [1, 2, 3]
    assert (first.error, second.error, third.error) == (
        "ValueError: try 1",
        "ValueError: try 2",
        None,
    )
    assert "Traceback" in (first.traceback or "")
    assert third.outcome == "completed"
    for attempt in (first, second, third):
        assert attempt.node == "web-1"
        assert attempt.worker == view.worker
        assert attempt.ended_at is not None
        assert attempt.started_at <= attempt.ended_at
    assert first.fence < second.fence < third.fence == view.fence
    assert view.finished_at == third.ended_at


async def test_a_running_attempt_has_not_ended(app: Piecework) -> None:
    release = asyncio.Event()

    @app.handler
    async def slow() -> None:
        await release.wait()

    handle = await slow.enqueue()
    async with app.worker():
        await until_state(handle, "running")
        (attempt,) = await handle.attempts()
        release.set()
    assert (attempt.number, attempt.ended_at, attempt.outcome) == (1, None, None)


async def test_logs_are_kept_with_the_job_in_order(app: Piecework) -> None:
    @app.handler(max_attempts=2, retry=Retry(base=0))
    async def chatty(run: Run) -> None:
        run.log.info("attempt %d", run.attempt)
        logging.getLogger("shop.mail").warning("ordinary")
        run.log.debug("too small")
        if run.attempt == 1:
            raise ValueError("again")

    handle = await chatty.enqueue()
    assert await handle.logs() == []
    await app.run_until_idle()
    lines = await handle.logs()
    assert [(line.level, line.message) for line in lines] == [
        ("INFO", "attempt 1"),
        ("WARNING", "ordinary"),
        ("INFO", "attempt 2"),
        ("WARNING", "ordinary"),
    ]
    assert lines[1].logger == "shop.mail"
    assert all(line.at.utcoffset() == timedelta(0) for line in lines)


# ── the view ─────────────────────────────────────────────────────────────────────────────────


async def test_a_view_has_every_field_of_the_contract(app: Piecework) -> None:
    fields = """id name kind queue state priority attempt max_attempts crashes generation args
        result progress error reason metadata node worker unique_key serial_key schedule tick
        parent enqueued_at due_at started_at finished_at expires_at cancel_requested"""
    view = await (await app.kind("k").enqueue({"a": [1]})).get()
    for field in fields.split():
        getattr(view, field)
    assert view.args == {"a": [1]}
    assert view.state == "available"
    assert view.enqueued_at.utcoffset() == timedelta(0)


async def test_handles_of_a_closed_app_open_it_again(app: Piecework, url: str) -> None:
    @app.handler
    async def note() -> int:
        return 1

    handle: Handle[int] = await note.enqueue()
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0)
    await app.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await app.run_until_idle()
    assert await handle.result(timeout=5) == 1
