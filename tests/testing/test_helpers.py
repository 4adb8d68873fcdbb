"""Calling a handler by hand, and looking at what was enqueued."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from piecework import Cancelled, Piecework, Progress, Run
from piecework.testing import assert_enqueued, assert_enqueued_sync, make_run


@dataclass(frozen=True)
class Order:
    order_id: str
    at: datetime | None = None


@pytest.fixture
def app() -> Piecework:
    return Piecework("memory://")


async def test_a_handler_is_called_by_hand_and_its_reports_are_looked_at(app: Piecework) -> None:
    @app.handler
    async def ship(args: Order, run: Run) -> str:
        for step in range(2):
            await run.progress(step + 1, total=2, message=f"step {step + 1}")
        await run.save({"id": args.order_id})
        run.log.info("shipped %s", args.order_id)
        return f"{run.kind} {run.attempt} {dict(run.metadata)}"

    run = make_run(attempt=3, metadata={"a": "b"})
    assert await ship(Order("1"), run) == "test 3 {'a': 'b'}"
    assert run.progress_reports == [
        Progress(done=1, total=2, message="step 1"),
        Progress(done=2, total=2, message="step 2"),
    ]
    assert run.saved == [{"id": "1"}]
    assert run.lines() == ["shipped 1"]
    assert run.lines() == []


def test_a_sync_handler_is_called_by_hand_and_told_to_stop() -> None:
    def work(run: Run) -> str:
        _ = run.progress(1), run.save([1])
        run.check()
        return "went on"

    run = make_run(kind="work", deadline=datetime(2026, 1, 5, tzinfo=UTC))
    assert work(run) == "went on"
    assert run.deadline == datetime(2026, 1, 5, tzinfo=UTC)
    run.stop()
    with pytest.raises(Cancelled):
        work(run)
    assert run.stopping == "cancel"
    assert [report.done for report in run.progress_reports] == [1, 1]


async def test_what_a_real_run_refuses_a_made_one_refuses_too() -> None:
    run = make_run()
    with pytest.raises(TypeError):
        await run.save(object())
    with pytest.raises(ValueError, match="NaN"):
        await run.save(math.nan)
    with pytest.raises(ValueError, match="finite"):
        await run.progress(-1)
    assert run.saved == run.progress_reports == []


async def test_what_was_enqueued_is_found_by_some_of_its_args(app: Piecework) -> None:
    @app.handler
    async def resize(path: str, width: int = 320) -> None: ...

    @app.handler
    class Ship:
        def __call__(self, args: Order) -> None: ...

    at = datetime(2026, 1, 5, tzinfo=UTC)
    await resize.enqueue("a", width=1)
    await resize.enqueue("b", width=1)
    await app.enqueue(Order("7", at))
    (job,) = await assert_enqueued(app, resize, path="a")
    assert job.args == {"path": "a", "width": 1}
    assert len(await assert_enqueued(app, resize, count=2, width=1)) == 2
    await assert_enqueued(app, Ship, order_id="7", at=at)
    await assert_enqueued(app, "Ship", count=1)
    await assert_enqueued(app, resize, count=0, path="c")


async def test_a_failed_look_lists_what_there_is_instead(app: Piecework) -> None:
    @app.handler
    async def resize(path: str) -> None: ...

    with pytest.raises(AssertionError, match="there is no job at all"):
        await assert_enqueued(app, resize)
    await resize.enqueue("a")
    with pytest.raises(AssertionError) as caught:
        await assert_enqueued(app, resize, path="b")
    assert str(caught.value) == (
        'wanted at least one job of kind \'resize\' with {"path": "b"}, found 0; there are:\n'
        '  resize {"path": "a"} available'
    )
    with pytest.raises(AssertionError, match="found 1"):
        await assert_enqueued(app, resize, count=2)
    odd: Any = len
    with pytest.raises(TypeError, match="is no handler"):
        await assert_enqueued(app, odd)


def test_without_a_loop_there_is_a_twin() -> None:
    app = Piecework("memory://")

    @app.handler
    def resize(path: str) -> None: ...

    app.sync.enqueue(resize.prepare("a"))
    assert len(assert_enqueued_sync(app, resize, path="a")) == 1
    app.sync.close()
