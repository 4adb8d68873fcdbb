"""Time limits and cancels, of tasks and threads: what stops a run, and what is recorded of it.

What runs in a process of its own: test_processes.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from piecework import Cancelled, GiveUp, JobCancelled, Piecework, Retry, Run, Snooze, State, inject
from piecework.engine import active
from tests.helpers import outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 0.6, "beat": 0.1, "poll": 0.05}
"""A worker that hears of a cancel within a tenth of a second even without hints."""


@pytest.fixture
def quick_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that does not obey is cancelled again at once, not after a second."""
    monkeypatch.setattr(active, "GRACE_SECONDS", 0.02)


# ── time limits ──────────────────────────────────────────────────────────────────────────────


async def test_an_async_handler_is_cancelled_at_its_time_limit(app: Piecework) -> None:
    caught: list[str | None] = []

    @app.handler(timeout=0.05, max_attempts=1)
    async def slow(run: Run) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append(run.stopping)
            raise

    handle = await slow.enqueue()
    await app.run_until_idle()
    view = await handle.get()
    assert caught == ["timeout"]
    assert (view.state, view.error) == (
        State.FAILED,
        "TimeoutError: ran longer than its time limit of 0.05 s",
    )
    assert "Event().wait()" in ((await handle.attempts())[0].traceback or "")


async def test_a_time_limit_is_a_failed_attempt_and_retried(app: Piecework) -> None:
    seen: list[BaseException] = []

    def policy(run: Run, error: BaseException) -> float | None:
        seen.append(error)
        return 0.0

    @app.handler(timeout=0.02, max_attempts=2, retry=policy)
    async def slow(run: Run) -> str:
        if run.attempt == 1:
            await asyncio.Event().wait()
        return "in time"

    handle = await slow.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "in time"
    assert isinstance(seen[0], TimeoutError)


async def test_the_limit_of_the_enqueue_tops_the_kinds(app: Piecework) -> None:
    @app.handler(timeout=0.02, max_attempts=1)
    async def slow() -> str:
        await asyncio.sleep(0.1)
        return "done"

    free = await slow.using(timeout=None).enqueue()
    late = await slow.enqueue()
    await app.run_until_idle()
    assert await free.result(timeout=1) == "done"
    assert (await late.get()).state is State.FAILED


async def test_a_handler_that_ignores_the_cancel_is_cancelled_again_until_it_obeys(
    app: Piecework, quick_grace: None
) -> None:
    """F14."""
    hits = 0

    @app.handler(timeout=0.02, max_attempts=1)
    async def deaf() -> str:
        nonlocal hits
        while hits < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                hits += 1
        return "at last"

    handle = await deaf.enqueue()
    await app.run_until_idle()
    view = await handle.get()
    assert hits == 3
    assert (view.state, view.result) == (State.FAILED, None)
    assert (view.error or "").startswith("TimeoutError")


async def test_what_is_recorded_follows_the_limit_not_what_the_handler_raises(
    app: Piecework,
) -> None:
    @app.handler(timeout=0.02, max_attempts=1)
    async def cunning(n: int) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            match n:
                case 0:
                    raise ValueError("something else") from None
                case 1:
                    raise Snooze(0) from None
                case 2:
                    raise Cancelled("no") from None
                case 3:
                    raise GiveUp from None
                case _:
                    return "a result"
        return "?"

    handles = [await cunning.enqueue(n) for n in range(5)]
    await app.run_until_idle()
    for handle in handles:
        view = await handle.get()
        assert view.state is State.FAILED
        assert (view.error or "").startswith("TimeoutError: ran longer")
    assert "something else" in ((await handles[0].attempts())[0].traceback or "")


async def test_a_thread_sees_its_limit_in_check_and_keeps_its_slot_until_it_returns(
    app: Piecework,
) -> None:
    """F14: overdue, but nobody can stop a thread; its slot is not given to another."""
    started, let_go = threading.Event(), threading.Event()
    stops: list[Any] = []

    def slow(run: Run) -> str:
        started.set()
        while not let_go.wait(0.005):
            try:
                run.check()
            except Cancelled:
                stops.append(run.stopping)
                let_go.wait(5)
                return "ignored it"
        return "?"

    @app.handler
    async def other() -> str:
        return "ran"

    with pytest.warns(UserWarning, match="a thread cannot be stopped"):
        handler = app.handler(slow, timeout=0.05, max_attempts=1)
    async with app.worker(concurrency=1, **QUICK) as worker:
        first = await handler.enqueue()
        second = await other.enqueue()
        await until(lambda: stops)
        assert (await first.get()).state is State.RUNNING
        assert worker.busy == 1
        assert (await second.get()).state is State.AVAILABLE
        let_go.set()
        assert await second.result(timeout=5) == "ran"
    view = await first.get()
    assert stops == ["timeout"]
    assert (view.state, view.result) == (State.FAILED, None)
    assert (view.error or "").startswith("TimeoutError: ran longer")


async def test_check_raises_cancelled_and_the_run_fails_by_its_limit(app: Piecework) -> None:
    def slow(run: Run) -> None:
        while True:
            run.check()
            time.sleep(0.001)

    with pytest.warns(UserWarning, match="a thread cannot be stopped"):
        handler = app.handler(slow, timeout=0.03, max_attempts=1)
    handle = await handler.enqueue()
    await app.run_until_idle()
    assert ((await handle.get()).error or "").startswith("TimeoutError: ran longer")


async def test_a_limit_does_not_reach_the_slots_next_run(app: Piecework, quick_grace: None) -> None:
    """A timer left over from a run that was stopped twice once cancelled the run after it."""

    @app.handler(max_attempts=1)
    async def stopped_twice() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)

    @app.handler
    async def after() -> str:
        await asyncio.sleep(0.15)
        return "undisturbed"

    async with app.worker(concurrency=1, **QUICK) as worker:
        first = await stopped_twice.using(timeout=0.3).enqueue()
        second = await after.enqueue()
        await until(lambda: worker.busy)
        worker.cancel((first.id, 1))
        worker.lost_job((first.id, 1))
        assert await second.result(timeout=5) == "undisturbed"
        assert await outcomes(second) == ["completed"]


async def test_closing_services_is_not_cut_short_by_the_limit(
    app: Piecework, quick_grace: None
) -> None:
    """Whoever returned first has completed, and its slot survives."""
    closed = asyncio.Event()

    class Slow: ...

    @asynccontextmanager
    async def make() -> AsyncIterator[Slow]:
        yield Slow()
        await asyncio.sleep(0.1)
        closed.set()

    app.services.register_factory(Slow, make)

    @app.handler(timeout=0.05, max_attempts=1)
    async def quick(n: int, slow: Slow = inject()) -> str:
        if n:
            await asyncio.Event().wait()
        return "returned"

    @app.handler
    async def after() -> str:
        await asyncio.sleep(0)
        return "lives"

    handles = [await quick.enqueue(0), await quick.enqueue(1), await after.enqueue()]
    await app.run_until_idle(concurrency=1)
    assert await handles[0].result(timeout=1) == "returned"
    assert (await handles[1].get()).state is State.FAILED
    assert await handles[2].result(timeout=1) == "lives"
    assert closed.is_set()


# ── cancel ───────────────────────────────────────────────────────────────────────────────────


async def test_a_waiting_job_is_cancelled_at_once_and_never_starts(app: Piecework) -> None:
    ran: list[int] = []

    @app.handler
    async def work(n: int) -> None:
        ran.append(n)

    now, later = await work.enqueue(1), await work.using(delay=3600).enqueue(2)
    held = await work.using(serial_key="k").enqueue(3)
    blocked = await work.using(serial_key="k").enqueue(4)
    for handle in (now, later, blocked):
        assert await handle.cancel(reason="changed my mind")
        view = await handle.get()
        assert (view.state, view.reason) == (State.CANCELLED, "changed my mind")
        assert view.finished_at is not None
        assert view.cancel_requested is not None
        assert await handle.cancel(), "again: it is"
        with pytest.raises(JobCancelled, match="changed my mind"):
            await handle.result(timeout=1)
    await app.run_until_idle()
    assert ran == [3]
    assert (await held.get()).state is State.COMPLETED
    assert not await held.cancel(), "it had ended otherwise"
    assert await now.attempts() == []


async def test_a_running_task_is_cancelled_within_a_beat(app: Piecework) -> None:
    started = asyncio.Event()
    caught: list[str | None] = []

    @app.handler
    async def work(run: Run) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append(run.stopping)
            raise

    async with app.worker(**QUICK):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await handle.cancel("enough")
        assert await handle.cancel("again"), "idempotent"
        view = await until_state(handle, "cancelled")
    assert caught == ["cancel"]
    assert (view.reason, view.error) == ("enough", None)
    assert await outcomes(handle) == ["cancelled"]


async def test_a_hint_hurries_a_cancel_when_beats_are_rare(app: Piecework) -> None:
    started = asyncio.Event()

    @app.handler
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with app.worker(lease=600, beat=300):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await handle.cancel()
        await until_state(handle, "cancelled")


async def test_a_thread_is_cancelled_by_check(app: Piecework) -> None:
    started = threading.Event()

    @app.handler
    def work(run: Run) -> None:
        started.set()
        while True:
            run.check()
            time.sleep(0.002)

    async with app.worker(**QUICK):
        handle = await work.enqueue()
        await until(started.is_set)
        await handle.cancel("stop it")
        view = await until_state(handle, "cancelled")
    assert view.reason == "stop it"


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_run_that_returns_first_is_completed_whatever_was_wished(
    app: Piecework, style: str
) -> None:
    """I13: exactly one of them is accepted, and who returned, returned."""
    started, let_go = asyncio.Event(), threading.Event()

    async def in_task() -> str:
        started.set()
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                let_go.set()
        return "finished"

    def in_thread(run: Run) -> str:
        loop.call_soon_threadsafe(started.set)
        while not run.halted:
            time.sleep(0.002)
        return "finished"

    loop = asyncio.get_running_loop()
    handler: Any = app.handler(in_task if style == "async" else in_thread)
    async with app.worker(**QUICK):
        handle = await handler.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await handle.cancel("too late")
        assert await handle.result(timeout=5) == "finished"
    view = await handle.get()
    assert (view.state, view.reason) == (State.COMPLETED, None)
    assert not await handle.cancel()


@pytest.mark.parametrize("style", ["async", "thread"])
@pytest.mark.parametrize("ending", ["fail", "snooze", "give up", "cancelled"])
async def test_a_run_that_ends_otherwise_after_the_wish_is_cancelled(
    app: Piecework, style: str, ending: str
) -> None:
    """It never waits again, for a retry or a snooze, and is run only once."""
    error: Exception = {
        "fail": ValueError("x"),
        "snooze": Snooze(0),
        "give up": GiveUp("no"),
        "cancelled": Cancelled("mine"),
    }[ending]
    runs = 0
    wished = threading.Event()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def in_task() -> None:
        nonlocal runs
        runs += 1
        started.set()
        while not wished.is_set():  # noqa: ASYNC110 - as a handler may
            await asyncio.sleep(0.001)
        raise error

    def in_thread() -> None:
        nonlocal runs
        runs += 1
        loop.call_soon_threadsafe(started.set)
        wished.wait(5)
        raise error

    handler: Any = app.handler(
        in_task if style == "async" else in_thread, kind="work", retry=Retry(base=0)
    )
    # Beats and hints are so rare that the handler ends before it is told.
    async with app.worker(lease=600, beat=300) as worker:
        worker.chores._pulse.hurry = lambda: None  # type: ignore[method-assign]
        handle = await handler.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await handle.cancel("the wish")
        wished.set()
        view = await until_state(handle, *(s for s in State if s is not State.RUNNING))
    assert view.state is State.CANCELLED
    assert view.reason == ("mine" if ending == "cancelled" else "the wish")
    assert runs == 1


async def test_a_cancel_that_meets_a_claimed_job_before_its_start_stops_it_there(
    app: Piecework,
) -> None:
    """A job in the worker's buffer is running to the store, though its handler never began."""
    started, let_go = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @app.handler
    async def work(n: int) -> None:
        ran.append(n)
        started.set()
        await let_go.wait()

    async with app.worker(concurrency=1, lease=600, beat=300) as worker:
        worker._seconds_per_job = 0.005  # it thinks that jobs are quick, and claims ahead
        handles = [await work.enqueue(n) for n in range(3)]
        await asyncio.wait_for(started.wait(), 5)
        await until_state(handles[1], "running")
        assert await handles[1].cancel()
        await until_state(handles[1], "cancelled")
        let_go.set()
        await handles[2].result(timeout=5)
    assert ran == [0, 2]


async def test_twenty_cancels_at_once_record_one(app: Piecework) -> None:
    started = asyncio.Event()

    @app.handler
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with app.worker(**QUICK):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        answers = await asyncio.gather(*(handle.cancel(f"by {n}") for n in range(20)))
        view = await until_state(handle, "cancelled")
    assert all(answers)
    assert (view.reason or "").startswith("by ")
    assert await outcomes(handle) == ["cancelled"]


async def test_a_cancel_from_another_app_on_the_file_reaches_the_run(
    sqlite_app: Piecework, sqlite_url: str
) -> None:
    mine, theirs = sqlite_app, Piecework(sqlite_url)
    started = asyncio.Event()

    @mine.handler
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with mine.worker(**QUICK):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await theirs.job(handle.id).cancel("from next door")
        view = await until_state(handle, "cancelled")
    await theirs.close()
    assert view.reason == "from next door"


async def test_a_cancel_during_the_opening_of_services_ends_in_cancelled(
    app: Piecework,
) -> None:
    opening = asyncio.Event()

    class Slow: ...

    async def make() -> Slow:
        opening.set()
        await asyncio.Event().wait()
        return Slow()

    app.services.register_factory(Slow, make)

    @app.handler
    async def work(slow: Slow = inject()) -> None:
        raise AssertionError("not reached")

    async with app.worker(**QUICK):
        handle = await work.enqueue()
        await asyncio.wait_for(opening.wait(), 5)
        await handle.cancel()
        await until_state(handle, "cancelled")


async def test_a_timeout_scope_of_the_handlers_own_is_not_mistaken_for_a_stop(
    app: Piecework,
) -> None:
    @app.handler(timeout=30)
    async def work() -> str:
        for _ in range(3):
            try:
                async with asyncio.timeout(0.005):
                    await asyncio.Event().wait()
            except TimeoutError:
                continue
        return "three times"

    handle = await work.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "three times"


async def test_a_stop_passes_through_the_handlers_own_scopes(app: Piecework) -> None:
    """asyncio.timeout and TaskGroup must let a cancel through that is not theirs."""
    started = asyncio.Event()
    cleaned: list[str] = []

    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("child")

    @app.handler
    async def work() -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
            started.set()

    async with app.worker(**QUICK):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await asyncio.sleep(0)
        await handle.cancel()
        await until_state(handle, "cancelled")
    assert cleaned == ["child"]
