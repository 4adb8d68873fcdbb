"""The blocking twin: every method from a plain thread, and where it must refuse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from piecework import DuplicateJob, JobNotFound, Piecework, Progress, Run, State, UnknownKind
from piecework.app.sync import SyncHandle

MakeApp = Callable[..., Piecework]


@dataclass(frozen=True)
class OrderJob:
    order_id: str


@pytest.fixture
def twin(url: str) -> Iterator[Piecework]:
    """An app that no event loop of the test's ever sees."""
    app = Piecework(url)
    yield app
    app.sync.close()


@pytest.fixture
def ship(twin: Piecework) -> Any:
    @twin.handler
    async def ship(args: OrderJob, run: Run) -> str:
        await run.progress(1, total=2, message="half")
        run.log.info("shipped")
        return args.order_id

    return ship


def portal_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "piecework-sync"]


# ── every method once ────────────────────────────────────────────────────────────────────────


def test_a_script_enqueues_runs_and_follows_a_job(twin: Piecework, ship: Any) -> None:
    handle = twin.sync.enqueue(OrderJob("1"), priority=3, name="first")
    assert handle.created
    assert handle.get().state is State.AVAILABLE
    assert handle.progress() is None
    assert handle.attempts() == []
    twin.sync.run_until_idle()
    assert handle.result(timeout=5) == "1"
    assert twin.sync.job(str(handle.id)).result(timeout=timedelta(seconds=5)) == "1"
    assert handle.progress() == Progress(done=1, total=2, message="half")
    assert [event.state for event in handle.watch()] == [State.COMPLETED]
    assert [attempt.outcome for attempt in handle.attempts()] == ["completed"]
    assert [line.message for line in handle.logs()] == ["shipped"]
    assert handle.cancel() is False
    assert handle.reschedule(delay=5) is False
    assert handle.retry() is True
    assert handle.retry() is False
    assert handle.delete() is False
    assert handle.reschedule(at=datetime(2099, 1, 1, tzinfo=UTC)) is True
    assert handle.cancel("enough") is True
    assert handle.get().reason == "enough"
    assert handle.delete() is True
    with pytest.raises(JobNotFound):
        handle.get()


def test_prepared_jobs_are_enqueued_alone_and_together(twin: Piecework, ship: Any) -> None:
    one = twin.sync.enqueue(ship.prepare(OrderJob("1")), unique_key="k")
    again = twin.sync.using(unique_key="k").enqueue(OrderJob("1"))
    many = twin.sync.enqueue_many([OrderJob("2"), ship.using(priority=9).prepare(OrderJob("3"))])
    assert (again.id, again.created) == (one.id, False)
    assert again == one
    assert len({one, again}) == 1
    assert repr(one) == f"<SyncHandle {one.id}>"
    assert [handle.get().priority for handle in many] == [0, 9]
    with pytest.raises(DuplicateJob):
        twin.sync.enqueue(OrderJob("1"), unique_key="k", on_duplicate="raise")
    with pytest.raises(UnknownKind):
        twin.sync.enqueue("text")


def test_a_kind_is_enqueued_by_name(twin: Piecework, ship: Any) -> None:
    kind = twin.sync.kind("ship")
    one = kind.enqueue({"order_id": "1"})
    two = kind.using(queue="q").enqueue({"order_id": "2"})
    (three,) = twin.sync.enqueue_many([kind.prepare({"order_id": "3"})])
    twin.sync.run_until_idle(concurrency=2)
    assert [handle.result(timeout=5) for handle in (one, two, three)] == ["1", "2", "3"]
    assert "order_id" in kind.schema()["properties"]
    assert two.get().queue == "q"


def test_a_callable_is_called_ad_hoc() -> None:
    app = Piecework("memory://")
    handle = app.sync.using(queue="q", name="n").call(lambda a, b: a + b, 1, b=2)
    app.sync.run_until_idle()
    assert handle.result(timeout=5) == 3
    assert (handle.get().serial_key, handle.get().name) == ("q", "n")
    app.sync.close()


def test_many_jobs_are_looked_at_and_acted_on(twin: Piecework, ship: Any) -> None:
    handles = twin.sync.enqueue_many([OrderJob(f"{n}") for n in range(5)])
    found = twin.sync.find(kind="ship", limit=2)
    assert [view.id for view in found] == [handles[4].id, handles[3].id]
    assert [view.id for view in twin.sync.find(after=handles[1])] == [handles[0].id]
    assert twin.sync.count() == {("default", State.AVAILABLE): 5}
    assert [report.done for report in twin.sync.cancel_many(ids=handles, reason="r")] == [True] * 5
    assert handles[0].get().reason == "r"
    assert [report.done for report in twin.sync.retry_many(ids=handles[:1])] == [True]
    assert len(twin.sync.delete_many(state="cancelled")) == 4
    assert twin.sync.nodes() == []
    assert twin.sync.check()
    twin.sync.migrate()


def test_queues_are_controlled(twin: Piecework, ship: Any) -> None:
    queues = twin.sync.queues
    twin.sync.enqueue(OrderJob("1"), queue="q")
    queues.pause("q")
    queues.limit("q", running=2, rate="5/s")
    (queue,) = queues.list()
    assert (queue.paused, queue.limit, queue.rate) == (True, 2, (5, 1.0))
    queues.resume("q")
    queues.limit("q", running=None, rate=None)
    assert [report.done for report in queues.clear("q")] == [True]
    assert queues.list() == []


def test_every_method_of_the_app_has_its_twin() -> None:
    """`worker` and `make_worker` need a loop; the rest of the app waits as well as awaits."""

    def public(what: Any) -> set[str]:
        return {name for name in dir(what) if not name.startswith("_")}

    app = Piecework("memory://")
    at_home = {"worker", "make_worker", "handler", "kinds", "services", "sync", "draft"}
    assert public(app) - public(app.sync) - at_home == {"aclose_connections"}
    assert public(app.queues) - public(app.sync.queues) == set()
    assert public(app.job(uuid4())) - public(app.sync.job(uuid4())) == {"decode"}
    assert public(app.kind("k")) - public(app.sync.kind("k")) == set()
    assert public(app.using()) - public(app.sync.using()) == set()


# ── which thread, which loop ─────────────────────────────────────────────────────────────────


def test_many_threads_at_once_share_one_twin(twin: Piecework, ship: Any) -> None:
    def work(n: int) -> str:
        handle: SyncHandle[Any] = twin.sync.enqueue(OrderJob(f"{n}"))
        handle.get()
        return str(handle.id)

    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(work, range(64)))
    twin.sync.run_until_idle()
    assert len(set(ids)) == 64
    assert twin.sync.count() == {("default", State.COMPLETED): 64}
    assert len(portal_threads()) >= 1


def test_threads_that_wait_are_answered_by_a_thread_that_works(twin: Piecework, ship: Any) -> None:
    handles = twin.sync.enqueue_many([OrderJob(f"{n}") for n in range(8)])
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(handle.result, 10) for handle in handles]
        twin.sync.run_until_idle()
        assert [each.result(10) for each in waiting] == [f"{n}" for n in range(8)]


async def test_a_waiting_call_on_the_workers_loop_is_refused(app: Piecework) -> None:
    """It would wait for itself, for ever."""

    @app.handler
    async def note() -> int:
        return 1

    handle = app.sync.enqueue(note.prepare())
    async with app.worker():
        calls: list[Callable[[], Any]] = [
            lambda: app.sync.enqueue(note.prepare()),
            lambda: app.sync.enqueue_many([note.prepare()]),
            app.sync.count,
            app.sync.find,
            app.sync.run_until_idle,
            app.sync.queues.list,
            handle.result,
            handle.get,
            lambda: next(handle.watch()),
            app.sync.close,
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="await the same method"):
                call()
        assert await asyncio.to_thread(handle.result, 10) == 1
    assert app.sync.count() == {("default", State.COMPLETED): 1}


async def test_a_handler_on_the_workers_loop_is_refused_and_one_in_a_thread_is_not(
    app: Piecework,
) -> None:
    @app.handler
    async def note() -> None: ...

    @app.handler
    async def on_loop() -> str:
        with pytest.raises(RuntimeError, match="block the event loop"):
            app.sync.enqueue(note.prepare())
        return "refused"

    @app.handler
    def in_thread() -> str:
        return str(app.sync.enqueue(note.prepare()).id)

    one, two = await on_loop.enqueue(), await in_thread.enqueue()
    await app.run_until_idle()
    assert await one.result(timeout=5) == "refused"
    assert (await app.job(await two.result(timeout=5)).get()).parent == two.id


def test_a_handler_run_by_the_twin_is_refused_on_its_loop_only(twin: Piecework) -> None:
    @twin.handler
    async def on_loop() -> str:
        with pytest.raises(RuntimeError, match="block the event loop"):
            twin.sync.count()
        return "refused"

    @twin.handler
    def in_thread() -> int:
        return len(twin.sync.find())

    one, two = twin.sync.enqueue(on_loop.prepare()), twin.sync.enqueue(in_thread.prepare())
    twin.sync.run_until_idle()
    assert (one.result(timeout=5), two.result(timeout=5)) == ("refused", 2)


async def test_inside_another_apps_running_loop_the_twin_works(app: Piecework, url: str) -> None:
    """A web framework's loop is held up for the moment, but nothing waits for itself."""
    other = Piecework("memory://")

    @app.handler
    async def note() -> int:
        return 1

    async with other.worker():
        handle = app.sync.enqueue(note.prepare())
        app.sync.run_until_idle()
        assert handle.result(timeout=5) == 1
    await other.close()


async def test_two_workers_of_one_app_both_keep_the_loop_forbidden(app: Piecework) -> None:
    async with app.worker(node="a"):
        async with app.worker(node="b"):
            pass
        with pytest.raises(RuntimeError):
            app.sync.count()
    assert app.sync.count() == {}


# ── closing ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def closing(make_app: MakeApp) -> AsyncIterator[Piecework]:
    before = set(portal_threads())
    yield make_app()
    assert set(portal_threads()) <= before


async def test_close_ends_the_twins_thread_and_a_later_use_starts_another(
    closing: Piecework,
) -> None:
    app = closing
    before = len(portal_threads())
    assert app.sync.count() == {}
    assert len(portal_threads()) == before + 1
    await app.close()
    assert len(portal_threads()) == before
    handle = app.sync.kind("k").enqueue({})
    assert handle.get().kind == "k"
    app.sync.close()
    app.sync.close()
    assert len(portal_threads()) == before
    assert app.sync.count() == {("default", State.AVAILABLE): 1}
    await app.close()
    await app.close()


def test_the_waiting_twin_may_be_closed_from_another_thread(twin: Piecework, ship: Any) -> None:
    handle = twin.sync.enqueue(OrderJob("1"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(handle.result, 20)
        while not twin._client._followers:
            assert not waiting.done()
        twin.sync.close()
        error = waiting.exception(10)
    assert error is not None
    assert handle.get().state is State.AVAILABLE
