"""Act on jobs: cancel, retry, reschedule, delete; one or many, in each state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from piecework import (
    DuplicateJob,
    GiveUp,
    Handle,
    JobNotFound,
    NaiveTime,
    Piecework,
    Retry,
    Run,
    State,
)
from piecework.testing import FakeClock
from tests.helpers import outcomes, until_state

FINAL = [State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED]
WAITING = [State.SCHEDULED, State.BLOCKED, State.AVAILABLE]


@pytest.fixture
def note(clocked: Piecework) -> Any:
    @clocked.handler
    async def note(text: str = "") -> str:
        if text == "fail":
            raise GiveUp("asked to")
        return text

    return note


async def in_state(
    app: Piecework, note: Any, clock: FakeClock, state: State, **options: Any
) -> Handle[Any]:
    """Return a job in that state, which nobody but the test moves."""
    handle: Handle[Any]
    match state:
        case State.SCHEDULED:
            return await note.using(delay=60, **options).enqueue()  # type: ignore[no-any-return]
        case State.BLOCKED:
            await note.using(serial_key="s").enqueue()
            return await note.using(serial_key="s", **options).enqueue()  # type: ignore[no-any-return]
        case State.AVAILABLE:
            return await note.using(**options).enqueue()  # type: ignore[no-any-return]
        case State.COMPLETED | State.FAILED:
            text = "fail" if state is State.FAILED else "a"
            handle = await note.using(**options).enqueue(text)
        case State.CANCELLED:
            handle = await note.using(**options).enqueue()
            await handle.cancel("first")
        case State.EXPIRED:
            handle = await note.using(expires_in=1, **options).enqueue()
            await clock.advance(2)
        case _:
            raise AssertionError(state)
    await app.run_until_idle()
    assert (await handle.get()).state is state
    return handle


@asynccontextmanager
async def running(app: Piecework, **options: Any) -> AsyncIterator[Handle[Any]]:
    """A job that runs until the block ends."""
    release = asyncio.Event()

    @app.handler(kind="running")
    async def slow() -> str:
        await release.wait()
        return "ran"

    handle = await slow.using(**options).enqueue()
    async with app.worker():
        await until_state(handle, "running")
        try:
            yield handle
        finally:
            release.set()


# ── cancel ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", WAITING)
async def test_a_waiting_job_that_is_cancelled_never_starts(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    assert await handle.cancel(reason="no need") is True
    assert await handle.cancel(reason="again") is True
    await clock.advance(120)
    await clocked.run_until_idle()
    view = await handle.get()
    assert (view.state, view.reason, view.started_at) == (State.CANCELLED, "no need", None)
    assert view.cancel_requested is not None
    assert await handle.attempts() == []


@pytest.mark.parametrize("state", FINAL)
async def test_a_job_that_has_ended_cannot_be_cancelled(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    before = await handle.get()
    assert await handle.cancel("late") is (state is State.CANCELLED)
    assert await handle.get() == before


async def test_a_running_job_is_told_and_stops(app: Piecework) -> None:
    async with running(app) as handle:
        assert await handle.cancel("stop it") is True
        assert await handle.cancel("again") is True
        view = await until_state(handle, "cancelled")
    assert view.reason == "stop it"


async def test_a_cancel_promotes_the_next_of_its_serial_key(note: Any) -> None:
    first = await note.using(serial_key="s").enqueue()
    second = await note.using(serial_key="s").enqueue()
    await first.cancel()
    assert (await second.get()).state is State.AVAILABLE


async def test_a_reason_no_store_could_hold_is_made_storable(note: Any) -> None:
    handle = await note.enqueue()
    await handle.cancel("a\x00b \ud800 " + "x" * 5_000)
    reason = (await handle.get()).reason
    assert reason is not None
    assert "\x00" not in reason
    assert 0 < len(reason) <= 1_000


# ── retry ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", FINAL)
async def test_a_final_job_runs_again_as_a_new_generation(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    fence = (await handle.get()).fence
    assert await handle.retry() is True
    view = await handle.get()
    assert (view.state, view.generation, view.attempt, view.crashes) == (State.AVAILABLE, 2, 0, 0)
    nothing = (view.result, view.error, view.reason, view.progress, view.expires_at)
    assert nothing == (None, None, None, None, None)
    assert (view.started_at, view.finished_at, view.cancel_requested) == (None, None, None)
    assert view.due_at == clock.now()
    assert view.fence > fence
    await clock.advance(100)
    await clocked.run_until_idle()
    wanted = State.FAILED if state is State.FAILED else State.COMPLETED
    assert (await handle.get()).state is wanted


async def test_attempts_of_every_generation_stay_readable(clocked: Piecework, note: Any) -> None:
    handle = await note.enqueue("fail")
    await clocked.run_until_idle()
    await handle.retry()
    await clocked.run_until_idle()
    attempts = await handle.attempts()
    assert [(each.generation, each.number) for each in attempts] == [(1, 1), (2, 1)]
    assert await outcomes(handle) == ["failed", "failed"]


async def test_a_job_put_off_is_due_at_once(clocked: Piecework, note: Any) -> None:
    handle = await note.using(delay=3_600).enqueue("a")
    assert await handle.retry() is True
    view = await handle.get()
    assert (view.state, view.generation) == (State.AVAILABLE, 1)
    await clocked.run_until_idle()
    assert await handle.result(timeout=5) == "a"


async def test_a_job_waiting_for_its_retry_is_tried_at_once(clocked: Piecework) -> None:
    @clocked.handler(retry=Retry(base=3_600, jitter=False))
    async def flaky(run: Run) -> int:
        if run.attempt == 1:
            raise ValueError("once")
        return run.attempt

    handle = await flaky.enqueue()
    await clocked.run_until_idle()
    assert (await handle.get()).state is State.SCHEDULED
    assert await handle.retry() is True
    await clocked.run_until_idle()
    assert await handle.result(timeout=5) == 2
    assert (await handle.get()).generation == 1


@pytest.mark.parametrize("state", [State.AVAILABLE, State.BLOCKED])
async def test_a_job_about_to_run_has_nothing_to_retry(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    before = await handle.get()
    assert await handle.retry() is False
    assert await handle.get() == before


async def test_a_running_job_has_nothing_to_retry(app: Piecework) -> None:
    async with running(app) as handle:
        assert await handle.retry() is False
        assert (await handle.get()).state is State.RUNNING


async def test_a_retry_takes_the_unique_key_anew(clocked: Piecework, note: Any) -> None:
    first = await note.using(unique_key="k").enqueue("a")
    await clocked.run_until_idle()
    second = await note.using(unique_key="k").enqueue("a")
    with pytest.raises(DuplicateJob) as caught:
        await first.retry()
    assert (caught.value.kind, caught.value.unique_key, caught.value.job_id) == (
        "note",
        "k",
        second.id,
    )
    assert (await first.get()).state is State.COMPLETED
    await clocked.run_until_idle()
    assert await first.retry() is True
    assert await note.using(unique_key="k").enqueue("a") == first


async def test_a_retry_behind_a_busy_serial_key_is_blocked(clocked: Piecework, note: Any) -> None:
    first = await note.using(serial_key="s").enqueue("a")
    await clocked.run_until_idle()
    await note.using(serial_key="s").enqueue("b")
    assert await first.retry()
    assert (await first.get()).state is State.BLOCKED


# ── reschedule ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", WAITING)
async def test_a_waiting_job_gets_another_time(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    at = clock.now() + timedelta(hours=2)
    assert await handle.reschedule(at=at) is True
    assert (await handle.get()).due_at == at
    assert (await handle.get()).state is State.SCHEDULED
    assert await handle.reschedule(delay=timedelta(hours=1)) is True
    assert (await handle.get()).due_at == clock.now() + timedelta(hours=1)


async def test_a_job_can_be_rescheduled_to_now(clocked: Piecework, note: Any) -> None:
    handle = await note.using(delay=60).enqueue("a")
    assert await handle.reschedule(delay=0)
    assert (await handle.get()).state is State.AVAILABLE
    await clocked.run_until_idle()
    assert await handle.result(timeout=5) == "a"


@pytest.mark.parametrize("state", FINAL)
async def test_a_final_job_keeps_its_time(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    before = await handle.get()
    assert await handle.reschedule(delay=60) is False
    assert await handle.get() == before


async def test_a_running_job_keeps_its_time(app: Piecework) -> None:
    async with running(app) as handle:
        assert await handle.reschedule(delay=60) is False
        assert (await handle.get()).state is State.RUNNING


@pytest.mark.parametrize(
    ("when", "error"),
    [
        ({}, ValueError),
        ({"at": datetime(2099, 1, 1, tzinfo=UTC), "delay": 1}, ValueError),
        ({"at": datetime(2099, 1, 1)}, NaiveTime),
        ({"at": datetime.max.replace(tzinfo=UTC)}, ValueError),
        ({"delay": -1}, ValueError),
        ({"delay": float("nan")}, ValueError),
        ({"delay": "5"}, TypeError),
        ({"at": "tomorrow"}, TypeError),
    ],
    ids=str,
)
async def test_a_time_that_cannot_be_meant_changes_nothing(
    note: Any, when: dict[str, Any], error: type[Exception]
) -> None:
    handle = await note.using(delay=60).enqueue()
    before = await handle.get()
    with pytest.raises(error):
        await handle.reschedule(**when)
    assert await handle.get() == before


# ── delete ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", FINAL)
async def test_a_final_job_is_deleted_with_all_that_is_its_own(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state, metadata={"a": "b"})
    assert await handle.delete() is True
    for look in (handle.get, handle.attempts, handle.logs, handle.delete):
        with pytest.raises(JobNotFound):
            await look()
    assert await clocked.find(metadata={"a": "b"}) == []
    assert await clocked.count() == {}


@pytest.mark.parametrize("state", WAITING)
async def test_a_live_job_is_not_deleted(
    clocked: Piecework, note: Any, clock: FakeClock, state: State
) -> None:
    handle = await in_state(clocked, note, clock, state)
    assert await handle.delete() is False
    assert (await handle.get()).state is state


async def test_a_running_job_is_not_deleted(app: Piecework) -> None:
    async with running(app) as handle:
        assert await handle.delete() is False


# ── many ─────────────────────────────────────────────────────────────────────────────────────


async def test_cancel_many_reports_each_job(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    done = await in_state(clocked, note, clock, State.COMPLETED)
    gone = await in_state(clocked, note, clock, State.CANCELLED)
    available = await in_state(clocked, note, clock, State.AVAILABLE)
    later = await in_state(clocked, note, clock, State.SCHEDULED)
    unknown = uuid4()
    reports = await clocked.cancel_many(
        ids=[later, unknown, done.id, str(available.id), gone, later], reason="all"
    )
    assert [(report.id, report.done) for report in reports] == [
        (later.id, True),
        (unknown, False),
        (done.id, False),
        (available.id, True),
        (gone.id, True),
    ]
    assert [report.reason for report in reports] == [
        None,
        "no such job",
        "it is completed already",
        None,
        None,
    ]
    assert [(await handle.get()).reason for handle in (available, later)] == ["all", "all"]


async def test_cancel_many_records_the_wish_on_running_jobs(app: Piecework) -> None:
    async with running(app) as handle:
        (report,) = await app.cancel_many(state=State.RUNNING, reason="stop")
        again = await app.cancel_many(ids=[handle])
        assert (report.id, report.done) == (handle.id, True)
        assert [report.done for report in again] == [True]
        await until_state(handle, "cancelled")


async def test_retry_many_reports_each_job(clocked: Piecework, note: Any, clock: FakeClock) -> None:
    failed = await in_state(clocked, note, clock, State.FAILED)
    keyed = await in_state(clocked, note, clock, State.COMPLETED, unique_key="k")
    holder = await note.using(unique_key="k", serial_key="s").enqueue()
    later = await in_state(clocked, note, clock, State.SCHEDULED)
    unknown = uuid4()
    reports = await clocked.retry_many(ids=[failed, keyed, holder, later, unknown])
    assert [(report.id, report.done) for report in reports] == [
        (failed.id, True),
        (keyed.id, False),
        (holder.id, False),
        (later.id, True),
        (unknown, False),
    ]
    assert [report.reason for report in reports] == [
        None,
        f"its unique key is held by job {holder.id}",
        "it is available",
        None,
        "no such job",
    ]
    assert (await failed.get()).generation == 2
    assert (await later.get()).state is State.AVAILABLE


async def test_of_two_jobs_that_want_one_key_only_one_is_retried(
    clocked: Piecework, note: Any
) -> None:
    pair: list[Handle[Any]] = []
    for _ in range(2):
        pair.append(await note.using(unique_key="k").enqueue("a"))
        await clocked.run_until_idle()
    reports = await clocked.retry_many(ids=pair)
    assert [report.done for report in reports] == [True, False]
    assert str(pair[0].id) in (reports[1].reason or "")


async def test_delete_many_reports_each_job(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    done = await in_state(clocked, note, clock, State.COMPLETED)
    live = await in_state(clocked, note, clock, State.AVAILABLE)
    unknown = uuid4()
    reports = await clocked.delete_many(ids=[live, done, unknown, done])
    assert [(report.id, report.done, report.reason) for report in reports] == [
        (live.id, False, "it is available: cancel it first"),
        (done.id, True, None),
        (unknown, False, "no such job"),
    ]
    with pytest.raises(JobNotFound):
        await done.get()


async def test_many_are_chosen_by_the_filters_of_find(clocked: Piecework, note: Any) -> None:
    mine = note.using(queue="q", metadata={"tenant": "a"})
    await clocked.enqueue_many([mine.prepare(f"{n}") for n in range(1_203)])
    await clocked.enqueue_many([note.using(queue="q").prepare("x"), note.prepare("y")])
    assert len(await clocked.cancel_many(queue="q", metadata={"tenant": "a"})) == 1_203
    assert (await clocked.count())["q", State.CANCELLED] == 1_203
    retried = await clocked.retry_many(queue="q", state="cancelled", metadata={"tenant": "a"})
    assert (len(retried), {report.done for report in retried}) == (1_203, {True})
    await clocked.cancel_many(kind=note, queue="q")
    assert len(await clocked.delete_many(queue="q", state=State.CANCELLED)) == 1_204
    assert await clocked.count() == {("default", State.AVAILABLE): 1}


async def test_no_more_than_the_filters_choose_are_chosen_page_by_page(
    clocked: Piecework, note: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import piecework.app

    monkeypatch.setattr(piecework.app, "MANY", 10)
    await clocked.enqueue_many([note.using(queue="ab"[n % 2]).prepare() for n in range(60)])
    assert len(await clocked.cancel_many(queue="a")) == 30
    assert len(await clocked.cancel_many(ids=[])) == 0
    assert (await clocked.count())["b", State.AVAILABLE] == 30


async def test_many_of_nothing_in_particular_is_refused(app: Piecework) -> None:
    """A forgotten filter must not cancel everything."""
    for act in (app.cancel_many, app.retry_many, app.delete_many):
        with pytest.raises(ValueError, match="ids="):
            await act()
        with pytest.raises(ValueError, match="no job id"):
            await act(ids=["17"])
        with pytest.raises(TypeError, match="unknown filter"):
            await act(limit=5)


async def test_acts_on_no_jobs_give_no_reports(app: Piecework) -> None:
    for act in (app.cancel_many, app.retry_many, app.delete_many):
        assert await act(ids=[]) == []
        assert await act(queue="nothing") == []
