"""How a run ends: results, failures, retries, snoozes, giving up; and what of it is recorded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from piecework import (
    Cancelled,
    GiveUp,
    Handle,
    JobCancelled,
    JobFailed,
    JobView,
    Piecework,
    Retry,
    Run,
    Snooze,
    State,
)
from tests.helpers import MakeApp, outcomes

AT_ONCE = Retry(base=0)


def raising(
    app: Piecework,
    error: BaseException,
    *,
    style: str = "async",
    kind: str = "raising",
    **options: Any,
) -> Any:
    """Register a handler that raises the error."""

    async def in_task() -> None:
        await asyncio.sleep(0)
        raise error.with_traceback(None)

    def in_thread() -> None:
        raise error.with_traceback(None)

    return app.handler(in_task if style == "async" else in_thread, kind=kind, **options)


async def ended(app: Piecework, handler: Any) -> JobView:
    handle = await handler.enqueue()
    await app.run_until_idle()
    view: JobView = await handle.get()
    return view


# ── results ──────────────────────────────────────────────────────────────────────────────────


async def test_a_result_is_stored_with_the_job(app: Piecework) -> None:
    @app.handler
    async def answer() -> dict[str, list[int]]:
        return {"a": [1, 2]}

    handle = await answer.enqueue()
    before = await handle.get()
    await app.run_until_idle()
    view = await handle.get()
    assert (before.result, before.finished_at, before.started_at) == (None, None, None)
    assert (view.state, view.result, view.attempt) == (State.COMPLETED, {"a": [1, 2]}, 1)
    assert view.started_at is not None
    assert view.finished_at is not None
    assert view.enqueued_at <= view.started_at <= view.finished_at
    assert view.node is not None
    assert view.worker is not None


async def test_a_handler_that_returns_nothing_has_the_result_none(app: Piecework) -> None:
    @app.handler
    async def nothing() -> None: ...

    handle = await nothing.enqueue()
    await app.run_until_idle()
    assert await app.job(handle.id).result(timeout=1) is None


@pytest.mark.parametrize(
    "value",
    [object(), {1, object()}, math.nan, [math.inf], "lone \ud800", b"\xff", lambda: None],
    ids=["object", "set", "nan", "inf", "surrogate", "bytes", "function"],
)
async def test_a_result_json_cannot_hold_fails_the_job_without_a_retry(
    app: Piecework, value: Any
) -> None:
    runs = []

    @app.handler(max_attempts=5, retry=AT_ONCE)
    async def odd() -> Any:
        runs.append(1)
        return value

    view = await ended(app, odd)
    if isinstance(value, bytes):
        assert view.state is State.COMPLETED
        return
    assert (view.state, view.attempt, view.result) == (State.FAILED, 1, None)
    assert len(runs) == 1
    assert "result" in (view.error or "")


async def test_a_result_beyond_the_limit_fails_the_job_without_a_retry(make_app: MakeApp) -> None:
    app = make_app(max_args_bytes=1_000)

    @app.handler(retry=AT_ONCE)
    async def big() -> str:
        return "x" * 1_001

    view = await ended(app, big)
    assert (view.state, view.attempt) == (State.FAILED, 1)
    assert "limit is 1,000" in (view.error or "")


async def test_strange_texts_survive_the_way_through_the_store(app: Piecework) -> None:
    text = 'nul \x00 "quotes" \\ \u2028 é 𝄞 \ufffd </script> %s ?'

    @app.handler
    async def echo() -> str:
        return text

    handle = await echo.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == text


# ── failures ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_failure_is_retried_until_max_attempts_then_final(
    app: Piecework, style: str
) -> None:
    handler = raising(app, ValueError("no page"), style=style, max_attempts=3, retry=AT_ONCE)
    handle = await handler.enqueue()
    await app.run_until_idle()
    view = await handle.get()
    assert (view.state, view.attempt, view.error) == (State.FAILED, 3, "ValueError: no page")
    attempts = await handle.attempts()
    assert [(a.number, a.outcome, a.error) for a in attempts] == [
        (1, "failed", "ValueError: no page"),
        (2, "failed", "ValueError: no page"),
        (3, "failed", "ValueError: no page"),
    ]
    assert [a.fence for a in attempts] == sorted({a.fence for a in attempts})
    for attempt in attempts:
        assert attempt.traceback is not None
        assert "raise error" in attempt.traceback
        assert "piecework/engine" not in attempt.traceback
        assert attempt.started_at is not None
        assert attempt.ended_at is not None
        assert attempt.started_at <= attempt.ended_at
        assert attempt.worker == view.worker
    with pytest.raises(JobFailed, match="failed after 3 attempts: ValueError: no page") as caught:
        await handle.result(timeout=1)
    assert (caught.value.error, caught.value.attempts) == ("ValueError: no page", 3)


async def test_success_after_a_failure_completes_and_keeps_the_history(app: Piecework) -> None:
    @app.handler(retry=AT_ONCE)
    async def second_time(run: Run) -> int:
        if run.attempt == 1:
            raise ConnectionError("first")
        return run.attempt

    handle = await second_time.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == 2
    assert await outcomes(handle) == ["failed", "completed"]
    assert (await handle.get()).error is None


async def test_the_next_instant_is_stored_and_a_retry_is_not_early(app: Piecework) -> None:
    handler = raising(app, ValueError("x"), retry=Retry(delays=[100], jitter=False))
    view = await ended(app, handler)
    assert (view.state, view.attempt) == (State.SCHEDULED, 1)
    wait = view.due_at - datetime.now(UTC)
    assert timedelta(seconds=95) < wait <= timedelta(seconds=100)
    assert view.error == "ValueError: x"


@pytest.mark.parametrize(
    ("policy", "least", "most"),
    [
        (Retry(base=50, jitter=False), 45, 50),
        (Retry(base=50), 0, 50),
        (Retry(base=10_000, cap=70, jitter=False), 65, 70),
        (lambda run, error: 60, 55, 60),
        (lambda run, error: 1e300, 360 * 86_400, 366 * 86_400),
        (lambda run, error: math.nan, 0, 1),
        (lambda run, error: math.inf, 0, 1),
        (lambda run, error: -5, 0, 1),
        (lambda run, error: "soon", 0, 1),
        (lambda run, error: 1 / 0, 0, 1),
    ],
    ids=["base", "jitter", "cap", "function", "huge", "nan", "inf", "negative", "str", "raises"],
)
async def test_the_policy_says_when_to_try_again(
    app: Piecework, policy: Any, least: float, most: float
) -> None:
    """F44: a function of the user's that answers nonsense counts as the default policy."""
    handler = raising(app, ValueError("x"), max_attempts=2, retry=policy)
    handle = await handler.using(delay=0).enqueue()
    async with app.worker(concurrency=1):
        await handle_failed_once(handle)
    view = await handle.get()
    ended_at = (await handle.attempts())[0].ended_at
    assert ended_at is not None
    assert view.attempt <= 2
    if view.attempt == 1:
        wait = (view.due_at - ended_at).total_seconds()
        assert least <= wait <= most + 0.001


async def handle_failed_once(handle: Handle[Any]) -> None:
    async for event in handle.watch():
        if event.attempt >= 1 and event.state is State.SCHEDULED:
            return


async def test_a_policy_that_exits_the_program_counts_as_the_default(app: Piecework) -> None:
    def leave(run: Run, error: BaseException) -> float:
        raise SystemExit(3)

    handler = raising(app, ValueError("x"), max_attempts=2, retry=leave)
    handle = await handler.enqueue()
    await app.run_until_idle()
    assert (await handle.get()).attempt >= 1
    assert (await handle.attempts())[0].error == "ValueError: x"


async def test_a_policy_function_may_give_up(app: Piecework) -> None:
    seen: list[Any] = []

    def decide(run: Run, error: BaseException) -> float | None:
        seen.append((run.attempt, str(error)))
        return 0.0 if run.attempt < 2 else None

    view = await ended(app, raising(app, ValueError("x"), max_attempts=9, retry=decide))
    assert (view.state, view.attempt) == (State.FAILED, 2)
    assert seen == [(1, "x"), (2, "x")]


async def test_an_error_of_a_give_up_class_is_not_retried(app: Piecework) -> None:
    policy = Retry(base=0, give_up_on=(LookupError,))
    view = await ended(app, raising(app, KeyError("gone"), retry=policy))
    assert (view.state, view.attempt) == (State.FAILED, 1)


async def test_max_attempts_of_the_enqueue_tops_the_kinds(app: Piecework) -> None:
    handler = raising(app, ValueError("x"), max_attempts=3, retry=AT_ONCE)
    handle = await handler.using(max_attempts=1).enqueue()
    await app.run_until_idle()
    assert (await handle.get()).attempt == 1


# ── what a handler may say ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_give_up_fails_the_job_whatever_attempts_are_left(app: Piecework, style: str) -> None:
    view = await ended(app, raising(app, GiveUp("no such user"), style=style, retry=AT_ONCE))
    assert (view.state, view.attempt, view.error) == (State.FAILED, 1, "GiveUp: no such user")


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_snooze_comes_back_later_uncharged(app: Piecework, style: str) -> None:
    runs: list[tuple[int, int]] = []

    async def in_task(run: Run) -> str:
        runs.append((run.attempt, run.fence))
        if len(runs) <= 3:
            raise Snooze(0, why="not yet")
        return "done"

    def in_thread(run: Run) -> str:
        runs.append((run.attempt, run.fence))
        if len(runs) <= 3:
            raise Snooze(timedelta(0))
        return "done"

    handler: Any = app.handler(in_task if style == "async" else in_thread, max_attempts=1)
    handle = await handler.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "done"
    assert [attempt for attempt, _ in runs] == [1, 1, 1, 1]
    fences = [fence for _, fence in runs]
    assert fences == sorted(set(fences))
    assert await outcomes(handle) == ["snoozed", "snoozed", "snoozed", "completed"]


async def test_a_snooze_shows_why_and_until_when(app: Piecework) -> None:
    view = await ended(app, raising(app, Snooze(100, why="the bank is closed")))
    assert (view.state, view.attempt, view.reason) == (
        State.SCHEDULED,
        0,
        "the bank is closed",
    )
    assert timedelta(seconds=95) < view.due_at - datetime.now(UTC) <= timedelta(seconds=100)
    assert not view.parked


async def test_a_snooze_for_ages_is_bounded(app: Piecework) -> None:
    """F44: an overflow in the store would hold up the outcomes of all others."""
    view = await ended(app, raising(app, Snooze(timedelta.max), max_attempts=1))
    assert view.state is State.SCHEDULED


async def test_a_handler_may_cancel_its_own_job(app: Piecework) -> None:
    handle = await raising(app, Cancelled("not needed any more")).enqueue()
    await app.run_until_idle()
    view = await handle.get()
    assert (view.state, view.reason) == (State.CANCELLED, "not needed any more")
    assert view.error is None
    with pytest.raises(JobCancelled, match="not needed any more"):
        await handle.result(timeout=1)


# ── whatever is raised ───────────────────────────────────────────────────────────────────────


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


class ExitingError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class HugeNameError(Exception):
    pass


HugeNameError.__qualname__ = "X" * 100_000


def chained() -> Exception:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
    "cancelled": asyncio.CancelledError,
    "base": lambda: BaseException("base"),
    "stop": lambda: StopIteration(1),
    "stop async": StopAsyncIteration,
    "group": lambda: BaseExceptionGroup("many", [SystemExit(), ValueError("x")]),
    "unprintable": UnprintableError,
    "exiting": ExitingError,
    "huge name": HugeNameError,
    "chained": chained,
    "memory": lambda: MemoryError("no room"),
    "recursion": lambda: RecursionError("deep"),
    "nul": lambda: ValueError("a\x00b"),
    "surrogate": lambda: ValueError("a\ud800b"),
    "bytes": lambda: ValueError(b"\xff\xfe"),
    "huge": lambda: ValueError("x" * 50_000_000),
    "lines": lambda: ValueError("a\r\nb\x1b[31mred"),
    "timeout": lambda: TimeoutError("theirs"),
}


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_whatever_a_handler_raises_is_recorded_and_the_worker_lives(
    app: Piecework, style: str
) -> None:
    """F12, F13: each is an ordinary failed attempt, retried as the policy says."""
    handles: dict[str, Handle[Any]] = {}
    for name, make in ERRORS.items():
        handler = raising(app, make(), style=style, kind=name, max_attempts=2, retry=Retry(base=0))
        handles[name] = await handler.enqueue()

    @app.handler
    async def after() -> str:
        return "lives"

    last = await after.enqueue()
    await app.run_until_idle(concurrency=1)
    assert await last.result(timeout=1) == "lives"
    for name, handle in handles.items():
        view = await handle.get()
        assert (name, view.state, view.attempt) == (name, State.FAILED, 2)
        assert await outcomes(handle) == ["failed", "failed"]
        for attempt in await handle.attempts():
            assert attempt.error is not None
            assert len(attempt.error) < 25_000
            assert len(attempt.traceback or "") < 25_000
            attempt.error.encode()
            assert "\x00" not in attempt.error
    traceback = (await handles["chained"].attempts())[0].traceback or ""
    assert "KeyError: 'inner'" in traceback
    assert "direct cause" in traceback


@pytest.mark.parametrize(
    "error",
    [Snooze(0.01, why="\ud800"), Cancelled("\ud800"), GiveUp("\ud800"), Snooze(0, why="a\x00b")],
    ids=["snooze", "cancelled", "give up", "nul"],
)
async def test_a_reason_no_store_can_hold_does_not_hold_up_other_outcomes(
    app: Piecework, error: Exception
) -> None:
    handler = raising(app, error, max_attempts=1)

    @app.handler
    async def fine() -> str:
        return "fine"

    odd = await handler.enqueue()
    others = [await fine.enqueue() for _ in range(5)]
    async with app.worker(concurrency=6):
        for other in others:
            assert await other.result(timeout=5) == "fine"
    view = await odd.get()
    assert view.state is not State.RUNNING
    assert "?" in f"{view.reason} {view.error}" or "\ufffd" in str(view.reason)


async def test_attempts_are_read_one_by_one_also_after_an_operators_retry(
    app: Piecework,
) -> None:
    """Part 6: the last attempt lives in the job's row, earlier ones have rows of their own."""
    works = False

    @app.handler(max_attempts=2, retry=AT_ONCE)
    async def flaky() -> str:
        if not works:
            raise ValueError("down")
        return "up"

    handle = await flaky.enqueue()
    await app.run_until_idle()
    assert await outcomes(handle) == ["failed", "failed"]
    works = True
    assert await handle.retry()
    assert await outcomes(handle) == ["failed", "failed"]
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "up"
    attempts = await handle.attempts()
    assert [(a.generation, a.number, a.outcome) for a in attempts] == [
        (1, 1, "failed"),
        (1, 2, "failed"),
        (2, 1, "completed"),
    ]
    assert all(attempt.ended_at is not None for attempt in attempts)


async def test_a_running_attempt_is_listed_without_an_outcome(app: Piecework) -> None:
    started, let_go = asyncio.Event(), asyncio.Event()

    @app.handler
    async def work() -> None:
        started.set()
        await let_go.wait()

    async with app.worker() as worker:
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        (attempt,) = await handle.attempts()
        assert (attempt.number, attempt.outcome, attempt.ended_at) == (1, None, None)
        assert attempt.worker == worker.id
        let_go.set()
        await handle.result(timeout=5)
