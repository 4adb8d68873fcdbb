"""What a run logs is kept with the job; the program's own logging stays as it was."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from piecework import Piecework, Retry, Run
from piecework.observe import MAX_LINES, MAX_LOG_BYTES
from tests.helpers import until

mine = logging.getLogger("mine.deep")


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger as a fresh program has it: no handlers, WARNING."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    yield root
    assert root.level == logging.WARNING, "left as it was"
    assert not any(type(each).__name__ == "LogCapture" for each in root.handlers)
    root.handlers[:] = handlers
    root.setLevel(level)


class Listing(logging.Handler):
    """A handler of the program's own."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def lines_of(app: Piecework, handler: Any, *args: Any) -> list[str]:
    handle = await handler.enqueue(*args)
    await app.run_until_idle()
    return [line.message for line in await handle.logs()]


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_run_log_and_ordinary_logging_are_kept_from_info_on(
    app: Piecework, style: str
) -> None:
    async def in_task(run: Run) -> None:
        talk(run)
        await asyncio.create_task(later())
        await asyncio.to_thread(mine.info, "from a thread of its own")

    async def later() -> None:
        mine.info("from a task of its own")

    def in_thread(run: Run) -> None:
        talk(run)

    def talk(run: Run) -> None:
        run.log.debug("not this")
        run.log.info("first %s", "line")
        mine.debug("nor this")
        mine.info("second")
        mine.warning("third")
        try:
            raise ValueError("oops")
        except ValueError:
            run.log.exception("fourth")

    handler: Any = app.handler(in_task if style == "async" else in_thread)
    handle = await handler.enqueue()
    await app.run_until_idle()
    lines = await handle.logs()
    assert [(line.level, line.logger, line.message.splitlines()[0]) for line in lines][:4] == [
        ("INFO", "piecework.run", "first line"),
        ("INFO", "mine.deep", "second"),
        ("WARNING", "mine.deep", "third"),
        ("ERROR", "piecework.run", "fourth"),
    ]
    assert lines[3].message.endswith("ValueError: oops")
    assert [line.message for line in lines[4:]] == (
        ["from a task of its own", "from a thread of its own"] if style == "async" else []
    )
    assert [line.at for line in lines] == sorted(line.at for line in lines)


async def test_lines_of_runs_side_by_side_do_not_mix(app: Piecework) -> None:
    both = asyncio.Barrier(2)

    @app.handler
    async def work(name: str) -> None:
        for n in range(3):
            await both.wait()
            mine.info("%s %d", name, n)

    handles = [await work.enqueue(name) for name in "ab"]
    await app.run_until_idle()
    for handle, name in zip(handles, "ab", strict=True):
        assert [line.message for line in await handle.logs()] == [f"{name} {n}" for n in range(3)]


async def test_two_workers_in_one_process_keep_each_line_once(app: Piecework) -> None:
    @app.handler
    async def work() -> None:
        mine.info("only once")

    async with app.worker(), app.worker():
        handle = await work.enqueue()
        await handle.result(timeout=5)
    assert [line.message for line in await handle.logs()] == ["only once"]


async def test_a_worker_that_goes_leaves_the_logs_of_another_alone(app: Piecework) -> None:
    @app.handler
    async def work() -> None:
        mine.info("still kept")

    async with app.worker():
        async with app.worker():
            pass
        first = await work.enqueue()
        await first.result(timeout=5)
    outer = app.worker()
    await outer.__aenter__()
    inner = app.worker()
    await inner.__aenter__()
    await outer.__aexit__(None, None, None)
    second = await work.enqueue()
    await second.result(timeout=5)
    await inner.__aexit__(None, None, None)
    for handle in (first, second):
        assert [line.message for line in await handle.logs()] == ["still kept"]


async def test_lines_outside_of_runs_are_not_kept_and_the_programs_handlers_see_what_they_saw(
    app: Piecework, root: logging.Logger
) -> None:
    listing = Listing()
    root.addHandler(listing)

    @app.handler
    async def work(run: Run) -> None:
        mine.info("info of a run")
        mine.warning("warning of a run")
        run.log.info("run.log info")
        run.log.warning("run.log warning")

    mine.warning("before")
    async with app.worker():
        mine.info("unheard, as before")
        mine.warning("heard")
        handle = await work.enqueue()
        await handle.result(timeout=5)
    mine.info("unheard")
    mine.warning("after")
    assert listing.lines == ["before", "heard", "warning of a run", "run.log warning", "after"]
    assert [line.message for line in await handle.logs()] == [
        "info of a run",
        "warning of a run",
        "run.log info",
        "run.log warning",
    ]


async def test_a_program_that_logs_info_sees_info_once(
    app: Piecework, root: logging.Logger
) -> None:
    listing = Listing()
    root.addHandler(listing)
    root.setLevel(logging.INFO)

    @app.handler
    async def work(run: Run) -> None:
        mine.info("a")
        run.log.info("b")
        mine.debug("c")

    handle = await work.enqueue()
    await app.run_until_idle()
    root.setLevel(logging.WARNING)
    assert [line for line in listing.lines if len(line) == 1] == ["a", "b"]
    assert [line.message for line in await handle.logs()] == ["a", "b"]


async def test_warnings_still_reach_stderr_where_nothing_is_configured(
    app: Piecework,
    root: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(root, "handlers", [])  # those of pytest are there again by now
    stderr: Any = vars(logging)["_StderrHandler"]
    monkeypatch.setattr(logging, "lastResort", stderr(logging.WARNING))

    @app.handler
    async def work() -> None:
        mine.info("not on stderr")
        mine.warning("on stderr")

    handle = await work.enqueue()
    async with app.worker(), app.worker():
        await handle.result(timeout=5)
    mine.warning("after")
    assert capsys.readouterr().err == "on stderr\nafter\n"


async def test_a_thousand_lines_are_kept_and_the_rest_is_counted(app: Piecework) -> None:
    @app.handler
    async def chatty(run: Run) -> None:
        for n in range(MAX_LINES + 500):
            run.log.info("%d", n)

    lines = await lines_of(app, chatty)
    assert len(lines) == MAX_LINES
    assert lines[:-1] == [str(n) for n in range(MAX_LINES - 1)]
    assert lines[-1].startswith("501 more lines were left out")


async def test_sixty_four_kibibytes_are_kept(app: Piecework) -> None:
    @app.handler
    async def wordy(run: Run) -> None:
        for _ in range(100):
            run.log.info("é" * 1_000)
        run.log.info("x" * 10_000_000)
        run.log.info("short")

    lines = await lines_of(app, wordy)
    assert sum(len(line.encode()) for line in lines[:-1]) <= MAX_LOG_BYTES
    assert lines[0] == "é" * 1_000
    assert "left out" in lines[-1]


async def test_each_attempt_has_its_own_lines_in_order(app: Piecework) -> None:
    @app.handler(max_attempts=3, retry=Retry(base=0))
    async def work(run: Run) -> None:
        run.log.info("attempt %d", run.attempt)
        raise ValueError

    assert await lines_of(app, work) == ["attempt 1", "attempt 2", "attempt 3"]


async def test_lines_show_while_the_run_goes_on(
    app: Piecework, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piecework.engine.reports.WRITE_SECONDS", 0.01)
    let_go = threading.Event()

    @app.handler
    def work(run: Run) -> None:
        run.log.info("begun")
        let_go.wait(5)
        run.log.info("ended")

    async with app.worker():
        handle = await work.enqueue()
        lines = await until(handle.logs)
        assert [line.message for line in lines] == ["begun"]
        let_go.set()
        await handle.result(timeout=5)
    assert [line.message for line in await handle.logs()] == ["begun", "ended"]


async def test_odd_lines_are_kept_and_harm_nobody(app: Piecework) -> None:
    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @app.handler
    async def odd() -> str:
        mine.info("nul \x00 surrogate \ud800 ansi \x1b[31m")
        mine.info("wrong %d %s", "args")
        mine.info("%s", BadError())
        logging.getLogger("n\ud800\x00" + "x" * 10_000).warning("from an odd logger")
        return "done"

    handle = await odd.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "done"
    lines = await handle.logs()
    assert lines[0].message == "nul \ufffd surrogate ? ansi \x1b[31m"
    assert "cannot be formatted" in lines[1].message
    assert "cannot be formatted" in lines[2].message
    assert lines[3].message == "from an odd logger"
    assert len(lines[3].logger) < 1_100


async def test_lines_are_gone_with_the_job(app: Piecework) -> None:
    @app.handler
    async def work(run: Run) -> None:
        run.log.info("a line")

    handle = await work.enqueue()
    await app.run_until_idle()
    assert len(await handle.logs()) == 1
    assert await handle.delete()
    assert await app._store.logs(handle.id) == []


async def test_lines_a_stopped_run_wrote_before_its_end_are_kept(app: Piecework) -> None:
    started = asyncio.Event()

    @app.handler(max_attempts=1)
    async def work(run: Run) -> None:
        run.log.info("before")
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            run.log.info("while stopping")

    async with app.worker(lease=0.6, beat=0.1):
        handle = await work.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        await handle.cancel()
        await until(handle.logs)
    assert [line.message for line in await handle.logs()] == ["before", "while stopping"]
