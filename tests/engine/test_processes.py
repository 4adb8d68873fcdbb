"""Handlers in processes of their own: killed when it must be, and what their death means."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from piecework import JobFailed, NotImportable, Piecework, Retry, State
from tests.engine import isolated
from tests.engine.isolated import Task, adopt
from tests.helpers import outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 0.6, "beat": 0.1, "poll": 0.05}


@pytest.fixture
def app() -> Piecework:
    """One store is enough: what happens in the child never touches it."""
    return Piecework("memory://")


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_it_runs_elsewhere_and_the_child_is_used_again(url: str) -> None:
    async with Piecework(url) as app:
        handler = adopt(isolated.pid_of, app)
        handles = [await handler.enqueue(n) for n in range(3)]
        await app.run_until_idle(concurrency=1)
        results = [await handle.result(timeout=1) for handle in handles]
        assert [n for n, _ in results] == [0, 1, 2]
        pids = {pid for _, pid in results}
        assert len(pids) == 1
        assert os.getpid() not in pids
        assert all(gone(pid) for pid in pids), "no child outlives the worker"


async def test_an_async_handler_with_an_args_object_runs_there_too(app: Piecework) -> None:
    handler = adopt(isolated.pid_async, app)
    handle = await handler.enqueue(Task("tea \x01 é 𝄞"))
    await app.run_until_idle()
    result = await handle.result(timeout=1)
    assert result["pid"] != os.getpid()
    assert (result["text"], result["attempt"]) == ("tea \x01 é 𝄞", 1)
    assert result["job"] == str(handle.id)


async def test_services_are_built_in_the_child(app: Piecework) -> None:
    handler = adopt(isolated.uses_service, app)
    app.services.register_factory(isolated.Counter, isolated.Counter)
    handle = await handler.enqueue()
    await app.run_until_idle()
    built, ran = await handle.result(timeout=1)
    assert built == ran != os.getpid()


@pytest.mark.parametrize("handler", [isolated.forever, isolated.stubborn])
async def test_it_is_killed_at_its_time_limit(app: Piecework, handler: Any, tmp_path: Path) -> None:
    """F14: whatever it does, and its slot is free at once."""
    mark = tmp_path / "pid"
    slow = adopt(handler, app, max_attempts=1)
    after = adopt(isolated.pid_of, app)
    handle = await slow.using(timeout=1.5).enqueue(str(mark))
    other = await after.enqueue(1)
    await app.run_until_idle(concurrency=1)
    view = await handle.get()
    assert (view.state, view.error) == (
        State.FAILED,
        "TimeoutError: ran longer than its time limit of 1.5 s",
    )
    assert view.crashes == 0
    assert gone(int(mark.read_text()))
    assert (await other.result(timeout=1))[0] == 1


async def test_it_is_killed_with_its_offspring_by_a_cancel(app: Piecework, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    handler = adopt(isolated.with_offspring, app)
    async with app.worker(**QUICK):
        handle = await handler.enqueue(str(mark))
        await until(lambda: mark.exists() and mark.read_text())
        assert await handle.cancel("enough")
        view = await until_state(handle, "cancelled")
        await until(lambda: gone(int(mark.read_text())))
    assert view.reason == "enough"
    assert await outcomes(handle) == ["cancelled"]


async def test_a_shutdown_kills_it_at_the_deadline_and_releases_it_uncharged(
    app: Piecework, tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    handler = adopt(isolated.forever, app)
    async with app.worker(shutdown_timeout=0, **QUICK):
        handle = await handler.enqueue(str(mark))
        await until(lambda: mark.exists() and mark.read_text())
    view = await handle.get()
    assert (view.state, view.attempt, view.crashes) == (State.AVAILABLE, 0, 0)
    assert await outcomes(handle) == ["released"]
    assert gone(int(mark.read_text()))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("exit", "its process exited with code 3"),
        ("kill", "its process was killed by SIGKILL (out of memory?)"),
        ("segv", "its process was killed by SIGSEGV"),
    ],
)
async def test_a_child_that_dies_is_a_crash_and_poison_is_buried(
    app: Piecework, how: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F09: it fails at max_crashes with the reason, and nobody else is harmed."""
    monkeypatch.setattr("piecework.engine.isolate.AFTER_CRASH", Retry(base=0))
    poison = adopt(isolated.die, app, max_crashes=2)
    healthy = adopt(isolated.pid_of, app)
    handle = await poison.enqueue(how)
    others = [await healthy.enqueue(n) for n in range(3)]
    await app.run_until_idle(concurrency=2)
    view = await handle.get()
    assert (view.state, view.crashes, view.attempt) == (State.FAILED, 2, 2)
    assert view.reason == f"crashed its worker 2 times: {why}"
    assert view.error == f"WorkerCrashed: {why}"
    assert await outcomes(handle) == ["crashed", "failed"]
    for other in others:
        assert (await other.get()).state is State.COMPLETED


async def test_sys_exit_in_the_child_is_an_ordinary_failure(app: Piecework) -> None:
    handler = adopt(isolated.die, app, max_attempts=1)
    handle = await handler.enqueue("sys.exit")
    await app.run_until_idle()
    view = await handle.get()
    assert (view.state, view.error, view.crashes) == (State.FAILED, "SystemExit: 4", 0)


async def test_failures_snoozes_and_retries_come_through(app: Piecework) -> None:
    handler = adopt(isolated.by_attempt, app)
    handle = await handler.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "third"
    assert await outcomes(handle) == ["failed", "snoozed", "completed"]


@pytest.mark.parametrize("text", ["no page é \ud83d", "x" * 900_000], ids=["odd", "huge"])
async def test_an_error_comes_through_with_its_traceback(app: Piecework, text: str) -> None:
    handler = adopt(isolated.fail, app, max_attempts=1)
    handle = await handler.enqueue(text.encode("ascii", "backslashreplace").decode())
    await app.run_until_idle()
    (attempt,) = await handle.attempts()
    assert (attempt.error or "").startswith(f"ValueError: {text[:7]}")
    assert "raise ValueError" in (attempt.traceback or "")
    assert "piecework/engine" not in (attempt.traceback or "")
    assert len(attempt.error or "") < 25_000


async def test_unprintable_errors_and_odd_results_come_through(app: Piecework) -> None:
    first = await adopt(isolated.unprintable, app, max_attempts=1).enqueue()
    second = await adopt(isolated.odd_result, app).enqueue()
    await app.run_until_idle()
    assert "cannot be printed" in ((await first.get()).error or "")
    view = await second.get()
    assert (view.state, view.attempt) == (State.FAILED, 1)
    assert "no JSON" in (view.error or "")


async def test_progress_partials_and_logs_come_through_though_it_fails(url: str) -> None:
    async with Piecework(url) as app:
        handler = adopt(isolated.reports, app, max_attempts=1)
        handle = await handler.enqueue()
        await app.run_until_idle()
        progress = await handle.progress()
        assert progress is not None
        assert (progress.done, progress.total, progress.message) == (2, 4, "two")
        assert (progress.percent, progress.partial) == (50.0, {"rows": [1, 2]})
        lines = [(line.level, line.logger, line.message) for line in await handle.logs()]
        assert lines == [
            ("INFO", "piecework.run", "from run.log"),
            ("WARNING", "mine", "from logging"),
        ]
        assert (await handle.get()).error == "ValueError: after all that"


async def test_a_partial_beyond_the_apps_limit_is_refused_in_the_child() -> None:
    """The limit is the app's own, on either side of the pipe; the worker's slot survives."""
    async with Piecework("memory://", max_args_bytes=5_000) as app:
        handler = adopt(isolated.saves_too_much, app)
        handles = [await handler.enqueue(size) for size in (10, 6_000)]
        await app.run_until_idle(concurrency=1)
        assert [await h.result(timeout=1) for h in handles] == ["saved", "PayloadTooLarge"]


async def test_a_limit_above_the_default_holds_in_the_child_too() -> None:
    async with Piecework("memory://", max_args_bytes=4_000_000) as app:
        saves = await adopt(isolated.saves_too_much, app).enqueue(2_000_000)
        await app.run_until_idle()
        assert await saves.result(timeout=1) == "saved"


async def test_the_conversation_is_not_the_handlers_standard_input(app: Piecework) -> None:
    """A program it starts, or a stray input(), must not eat the next order."""
    first = await adopt(isolated.reads_stdin, app).enqueue()
    second = await adopt(isolated.starts_a_reader, app).enqueue()
    third = await adopt(isolated.pid_of, app).enqueue(1)
    async with asyncio.timeout(15):
        await app.run_until_idle(concurrency=1)
    assert await first.result(timeout=1) == ""
    assert await second.result(timeout=1) == ""
    assert (await third.result(timeout=1))[0] == 1


async def test_a_thread_left_behind_does_not_keep_the_child(app: Piecework) -> None:
    handle = await adopt(isolated.leaves_a_thread, app).enqueue()
    async with asyncio.timeout(10):
        await app.run_until_idle()
    assert await handle.result(timeout=1) == "left one"


async def test_a_nested_function_is_refused_at_registration(app: Piecework) -> None:
    def nested() -> None: ...

    with pytest.raises(NotImportable, match="defined inside a function"):
        app.handler(nested, isolate="process")
    with pytest.raises(NotImportable, match="lambda"):
        app.handler(lambda: None, kind="x", isolate="process")


async def test_what_the_child_cannot_import_fails_and_says_so(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = adopt(isolated.pid_of, app, max_attempts=1)
    monkeypatch.setattr(isolated.pid_of.__wrapped__, "__qualname__", "no_such")
    handle = await handler.enqueue(1)
    await app.run_until_idle()
    with pytest.raises(JobFailed, match="NotImportable: the child process cannot import it"):
        await handle.result(timeout=1)


async def test_a_service_the_child_lacks_fails_and_says_where_to_register_it(
    app: Piecework,
) -> None:
    app.services.register_factory(isolated.OnlyThere, isolated.OnlyThere)
    handle = await adopt(isolated.needs_what_is_only_there, app, max_attempts=1).enqueue(1)
    second = await adopt(isolated.asks_for_what_is_only_there, app, max_attempts=1).enqueue(1)
    await app.run_until_idle()
    for each in (handle, second):
        with pytest.raises(JobFailed, match=r"NotImportable.*OnlyThere.*regist"):
            await each.result(timeout=1)


async def test_a_child_that_cannot_be_started_is_a_failed_attempt(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more processes, no more memory: the job waits and tries again, and the slot lives."""
    real, failures = asyncio.create_subprocess_exec, 1

    async def refuse(*args: Any, **options: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise BlockingIOError("Resource temporarily unavailable")
        return await real(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    handler = adopt(isolated.pid_of, app, retry=Retry(base=0))
    handle = await handler.enqueue(1)
    await app.run_until_idle(concurrency=1)
    assert (await handle.result(timeout=1))[0] == 1
    first, second = await handle.attempts()
    assert "temporarily unavailable" in (first.error or "")
    assert second.outcome == "completed"
