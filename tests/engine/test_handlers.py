"""Every style of handler runs, and gets what it asks for."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from piecework import Handle, Piecework, Run, State, inject
from tests.helpers import MakeApp, until


@dataclass(frozen=True)
class Order:
    order_id: str
    count: int = 1


class Mail(BaseModel):
    to: str
    at: datetime


class Point(TypedDict):
    x: int
    y: int


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.closed = False

    async def send(self, to: str) -> str:
        self.sent.append(to)
        return f"sent to {to}"


async def run_one(app: Piecework, handle: Handle[Any]) -> Any:
    await app.run_until_idle()
    return await handle.result(timeout=1)


# ── styles ───────────────────────────────────────────────────────────────────────────────────


async def test_an_async_handler_gets_an_args_object_and_the_run(app: Piecework) -> None:
    @app.handler(queue="orders", max_attempts=3, timeout=60)
    async def ship(args: Order, run: Run) -> str:
        return f"{args.order_id} {args.count} {run.kind} {run.queue} {run.max_attempts}"

    handle = await ship.enqueue(Order("a", 2))
    assert await run_one(app, handle) == "a 2 ship orders 3"


async def test_a_handler_is_found_by_the_type_of_its_args(app: Piecework) -> None:
    @app.handler
    async def ship(args: Order) -> str:
        return args.order_id

    @app.handler
    async def mail(args: Mail) -> str:
        return args.at.isoformat()

    at = datetime(2026, 1, 5, tzinfo=UTC)
    first = await app.enqueue(Order("a"))
    second = await app.enqueue(Mail(to="b", at=at))
    await app.run_until_idle()
    assert await first.result(timeout=1) == "a"
    assert await second.result(timeout=1) == at.isoformat()


async def test_a_handler_takes_plain_parameters_with_defaults(app: Piecework) -> None:
    @app.handler
    async def resize(path: str, width: int = 320, *, dry: bool = False) -> str:
        return f"{path} {width} {dry}"

    handles = [
        await resize.enqueue("a"),
        await resize.enqueue("b", width=64),
        await resize.enqueue("c", 1, dry=True),
        await resize.enqueue(path="d"),
    ]
    await app.run_until_idle()
    results = [await handle.result(timeout=1) for handle in handles]
    assert results == ["a 320 False", "b 64 False", "c 1 True", "d 320 False"]


async def test_a_sync_handler_runs_in_a_thread_and_leaves_the_loop_free(app: Piecework) -> None:
    let_go = threading.Event()

    @app.handler
    def blocking() -> str:
        assert let_go.wait(10)
        return threading.current_thread().name

    @app.handler
    async def free() -> str:
        let_go.set()
        return threading.current_thread().name

    first = await blocking.enqueue()
    second = await free.enqueue()
    await app.run_until_idle()
    assert await second.result(timeout=1) == threading.current_thread().name
    assert (await first.result(timeout=1)).startswith("piecework-handler")


async def test_args_and_results_keep_their_types(app: Piecework) -> None:
    @app.handler
    async def echo(point: Point, ids: list[UUID], wait: timedelta, at: datetime | None) -> Order:
        assert isinstance(ids[0], UUID)
        assert isinstance(wait, timedelta)
        assert at is None
        return Order(str(point["x"]), len(ids))

    handle = await echo.enqueue(Point(x=7, y=1), [uuid4(), uuid4()], timedelta(seconds=3), None)
    assert await run_one(app, handle) == Order("7", 2)
    assert await app.job(handle.id).result(timeout=1) == {"order_id": "7", "count": 2}
    assert await echo.handle(handle.id).result(timeout=1) == Order("7", 2)


async def test_the_decorated_name_stays_callable_as_before(app: Piecework) -> None:
    @app.handler
    async def ship(args: Order) -> int:
        return args.count

    @app.handler
    def resize(path: str, width: int = 320) -> str:
        return f"{path}@{width}"

    assert await ship(Order("a", 3)) == 3
    assert resize("a", width=1) == "a@1"
    assert resize.__name__ == "resize"
    assert await app.count() == {}


async def test_run_comes_first_in_call_style(app: Piecework) -> None:
    @app.handler
    async def first(run: Run, path: str) -> str:
        return f"{run.attempt} {path}"

    @app.handler
    def in_thread(run: Run, path: str) -> str:
        return f"{run.fence} {path}"

    a, b = await first.enqueue("x"), await in_thread.enqueue("y")
    await app.run_until_idle()
    assert [await a.result(timeout=1), await b.result(timeout=1)] == ["1 x", "1 y"]


async def test_run_tells_who_it_is(app: Piecework) -> None:
    seen: list[Run] = []

    @app.handler(metadata={"team": "a"})
    async def look(run: Run) -> None:
        seen.append(run)

    before = datetime.now(UTC)
    handle = await look.using(
        name="Look", metadata={"order": "7"}, timeout=30, queue="eyes"
    ).enqueue()
    await app.run_until_idle()
    (run,) = seen
    assert (run.id, run.kind, run.name, run.queue) == (handle.id, "look", "Look", "eyes")
    assert (run.attempt, run.max_attempts, run.generation, run.fence) == (1, 5, 1, 1)
    assert run.metadata == {"order": "7"}
    assert run.deadline is not None
    assert before + timedelta(seconds=29) < run.deadline < before + timedelta(seconds=35)
    assert (run.schedule, run.tick, run.count, run.stopping) == (None, None, None, None)


# ── classes and services ─────────────────────────────────────────────────────────────────────


async def test_a_class_is_built_anew_for_every_run_with_its_services(app: Piecework) -> None:
    built: list[object] = []
    mailer = Mailer()
    app.services.register_value(Mailer, mailer)

    @app.handler
    class MailHandler:
        def __init__(self, mailer: Mailer) -> None:
            self.mailer = mailer
            built.append(self)

        async def __call__(self, args: Mail, run: Run) -> str:
            return f"{await self.mailer.send(args.to)} {run.attempt}"

    handles = [await app.enqueue(Mail(to=to, at=datetime.now(UTC))) for to in "ab"]
    await app.run_until_idle()
    assert [await handle.result(timeout=1) for handle in handles] == ["sent to a 1", "sent to b 1"]
    assert built[0] is not built[1]
    assert isinstance(MailHandler(Mailer()), MailHandler)


async def test_a_sync_class_runs_in_a_thread(app: Piecework) -> None:
    @app.handler
    class Count:
        def __call__(self, args: Order) -> str:
            return threading.current_thread().name

    handle = await app.enqueue(Order("a"))
    assert (await run_one(app, handle)).startswith("piecework-handler")


async def test_a_service_is_shared_inside_one_run_and_new_in_the_next(app: Piecework) -> None:
    class Other:
        def __init__(self, mailer: Mailer) -> None:
            self.mailer = mailer

    async def make_other(svcs_container: Any) -> Other:
        return Other(await svcs_container.aget(Mailer))

    app.services.register_factory(Mailer, Mailer)
    app.services.register_factory(Other, make_other)
    seen: list[tuple[Mailer, Other]] = []

    @app.handler
    async def use(n: int, mailer: Mailer = inject(), other: Other = inject()) -> None:
        seen.append((mailer, other))

    await use.enqueue(1)
    await use.enqueue(2)
    await app.run_until_idle()
    (mailer1, other1), (mailer2, other2) = seen
    assert mailer1 is other1.mailer
    assert mailer2 is other2.mailer
    assert mailer1 is not mailer2


def sync_factory() -> Mailer:
    return Mailer()


async def async_factory() -> Mailer:
    return Mailer()


def sync_generator() -> Iterator[Mailer]:
    mailer = Mailer()
    yield mailer
    mailer.closed = True


async def async_generator() -> AsyncIterator[Mailer]:
    mailer = Mailer()
    yield mailer
    mailer.closed = True


@contextmanager
def sync_manager() -> Iterator[Mailer]:
    yield from sync_generator()


@asynccontextmanager
async def async_manager() -> AsyncIterator[Mailer]:
    async for mailer in async_generator():
        yield mailer


FACTORIES = [sync_factory, async_factory, sync_manager, async_manager]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("style", ["async", "thread"])
async def test_services_come_from_every_kind_of_factory(
    app: Piecework, factory: Any, style: str
) -> None:
    app.services.register_factory(Mailer, factory)
    seen: list[Mailer] = []

    async def use_async(to: str, mailer: Mailer = inject()) -> None:
        assert not mailer.closed
        seen.append(mailer)

    def use_thread(to: str, mailer: Mailer = inject()) -> None:
        assert not mailer.closed
        seen.append(mailer)

    use = app.handler(use_async) if style == "async" else app.handler(use_thread)
    await use.enqueue("a")
    await app.run_until_idle()
    assert len(seen) == 1
    assert seen[0].closed is ("manager" in factory.__name__)


@pytest.mark.parametrize("ending", ["return", "raise", "exit", "timeout", "cancel"])
async def test_services_are_closed_whatever_the_outcome(app: Piecework, ending: str) -> None:
    app.services.register_factory(Mailer, async_manager)
    seen: list[Mailer] = []
    started = asyncio.Event()

    @app.handler(max_attempts=1)
    async def use(mailer: Mailer = inject()) -> None:
        seen.append(mailer)
        started.set()
        if ending == "raise":
            raise ValueError
        if ending == "exit":
            raise SystemExit
        if ending != "return":
            await asyncio.Event().wait()

    async with app.worker(lease=0.6, beat=0.1):
        handle = await use.using(timeout=0.1 if ending == "timeout" else None).enqueue()
        await asyncio.wait_for(started.wait(), 5)
        if ending == "cancel":
            await handle.cancel()
        await until(lambda: seen[0].closed)


async def test_a_service_that_is_not_registered_fails_the_attempt_and_says_which(
    app: Piecework,
) -> None:
    @app.handler(max_attempts=1)
    async def use(mailer: Mailer = inject()) -> None:
        raise AssertionError("not reached")

    handle = await use.enqueue()
    await app.run_until_idle()
    view = await handle.get()
    assert view.state is State.FAILED
    assert view.error is not None
    assert "MissingService" in view.error
    assert "register_factory(Mailer" in view.error


async def test_a_service_that_cannot_be_built_is_a_failed_attempt(app: Piecework) -> None:
    async def broken() -> Mailer:
        raise ConnectionError("no route")

    app.services.register_factory(Mailer, broken)

    @app.handler(max_attempts=1)
    async def use(mailer: Mailer = inject()) -> None:
        raise AssertionError("not reached")

    handle = await use.enqueue()
    await app.run_until_idle()
    assert (await handle.get()).error == "ConnectionError: no route"


async def test_a_service_that_cannot_be_closed_does_not_undo_the_result(app: Piecework) -> None:
    @asynccontextmanager
    async def sticky() -> AsyncIterator[Mailer]:
        yield Mailer()
        raise OSError("will not close")

    app.services.register_factory(Mailer, sticky)

    @app.handler
    async def use(mailer: Mailer = inject()) -> str:
        return "done"

    handle = await use.enqueue()
    await app.run_until_idle()
    assert await handle.result(timeout=1) == "done"


async def test_services_may_be_registered_after_the_handler(app: Piecework) -> None:
    @app.handler
    async def use(to: str, mailer: Mailer) -> str:
        return await mailer.send(to)

    app.services.register_factory(Mailer, Mailer)
    handle = await app.kind("use").enqueue({"to": "a"})
    assert await run_one(app, handle) == "sent to a"


# ── the surroundings of a run ────────────────────────────────────────────────────────────────

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_context_variables_do_not_leak_from_run_to_run(app: Piecework, style: str) -> None:
    seen: list[str] = []

    async def paint_async(name: str) -> None:
        seen.append(color.get())
        color.set(name)
        await asyncio.sleep(0)
        seen.append(color.get())

    def paint_thread(name: str) -> None:
        seen.append(color.get())
        color.set(name)
        seen.append(color.get())

    paint = app.handler(paint_async) if style == "async" else app.handler(paint_thread)
    for name in ("red", "green", "blue"):
        await paint.enqueue(name)
    await app.run_until_idle(concurrency=1)
    assert seen == ["none", "red", "none", "green", "none", "blue"]
    assert color.get() == "none"


async def test_runs_side_by_side_keep_their_own_context(app: Piecework) -> None:
    both = asyncio.Barrier(2)

    @app.handler
    async def paint(name: str) -> str:
        color.set(name)
        await both.wait()
        await asyncio.sleep(0)
        return color.get()

    handles = [await paint.enqueue(name) for name in ("red", "green")]
    await app.run_until_idle()
    assert [await handle.result(timeout=1) for handle in handles] == ["red", "green"]


async def test_a_task_begun_in_a_run_belongs_to_its_context(app: Piecework) -> None:
    @app.handler
    async def parent() -> str:
        color.set("mine")

        async def child() -> str:
            return color.get()

        return await asyncio.create_task(child())

    assert await run_one(app, await parent.enqueue()) == "mine"


async def test_asyncio_timeout_works_inside_a_handler(app: Piecework) -> None:
    @app.handler
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.sleep(0)
            return "gave up waiting"
        return "?"

    assert await run_one(app, await impatient.enqueue()) == "gave up waiting"


async def test_wait_for_gather_and_shield_work_inside_a_handler(app: Piecework) -> None:
    @app.handler
    async def busy() -> list[int]:
        async def number(n: int) -> int:
            await asyncio.sleep(0)
            return n

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        first, second = await asyncio.gather(number(1), number(2))
        return [first, second, await asyncio.shield(number(3))]

    assert await run_one(app, await busy.enqueue()) == [1, 2, 3]


async def test_a_task_group_works_inside_a_handler(app: Piecework) -> None:
    @app.handler
    async def group() -> int:
        async with asyncio.TaskGroup() as tasks:
            numbers = [tasks.create_task(asyncio.sleep(0, n)) for n in (1, 2, 3)]
        return sum(task.result() for task in numbers)

    assert await run_one(app, await group.enqueue()) == 6


async def test_a_failing_task_group_fails_the_attempt_and_the_slot_lives(app: Piecework) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("inside")

    @app.handler(max_attempts=1)
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
            tasks.create_task(asyncio.Event().wait())

    @app.handler
    async def after() -> str:
        await asyncio.sleep(0)
        return "lives"

    first, second = await group.enqueue(), await after.enqueue()
    await app.run_until_idle(concurrency=1)
    view = await first.get()
    assert view.state is State.FAILED
    assert "ExceptionGroup" in (view.error or "")
    (attempt,) = await first.attempts()
    assert "ValueError: inside" in (attempt.traceback or "")
    assert await second.result(timeout=1) == "lives"


async def test_a_handler_that_cancels_its_own_task_fails_and_the_slot_lives(
    app: Piecework,
) -> None:
    """What anyio's cancel scopes do inside a task must not end the slot that lent it."""

    @app.handler(max_attempts=1)
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @app.handler
    async def forgiving() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            task.uncancel()
        await asyncio.sleep(0)
        return "went on"

    @app.handler
    async def after() -> str:
        await asyncio.sleep(0)
        return "lives"

    first, second, third = (
        await suicidal.enqueue(),
        await forgiving.enqueue(),
        await after.enqueue(),
    )
    await app.run_until_idle(concurrency=1)
    assert (await first.get()).state is State.FAILED
    assert "CancelledError" in ((await first.get()).error or "")
    assert await second.result(timeout=1) == "went on"
    assert await third.result(timeout=1) == "lives"


async def test_a_cancel_left_over_by_a_handler_does_not_reach_the_next_run(
    app: Piecework,
) -> None:
    """A cancel asked for in the last step before the return would be thrown into the next job."""

    @app.handler
    async def mean() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "left one behind"

    @app.handler
    async def after() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "lives"

    first, second = await mean.enqueue(), await after.enqueue()
    await app.run_until_idle(concurrency=1)
    assert await first.result(timeout=1) == "left one behind"
    assert await second.result(timeout=1) == "lives"


async def test_a_partial_and_a_builtin_can_be_handlers_under_a_kind(app: Piecework) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    plus_two: Any = app.handler(functools.partial(add, b=2), kind="plus two")
    handle = await plus_two.enqueue(3)
    assert await run_one(app, handle) == 5


# ── options of a kind ────────────────────────────────────────────────────────────────────────


async def test_a_renamed_kind_still_runs_under_its_alias(make_app: MakeApp) -> None:
    app = make_app()

    @app.handler(kind="new", aliases=["old", "older"])
    async def work(n: int) -> int:
        return n

    handles = [await app.kind(kind).enqueue({"n": n}) for n, kind in enumerate(["old", "new"])]
    plain = await app.kind("older").enqueue({"n": 5})
    await app.run_until_idle()
    assert [await handle.result(timeout=1) for handle in [*handles, plain]] == [0, 1, 5]
    assert app.kinds == ("new",)


async def test_a_kinds_options_are_those_of_its_jobs(app: Piecework) -> None:
    @app.handler(
        queue="q",
        priority=7,
        max_attempts=2,
        max_crashes=1,
        timeout=9,
        expires_in=60,
        unique_key="u",
        serial_key="s",
        metadata={"a": "b"},
    )
    async def work() -> None: ...

    view = await (await work.enqueue()).get()
    assert (view.queue, view.priority, view.max_attempts, view.max_crashes) == ("q", 7, 2, 1)
    assert (view.timeout, view.unique_key, view.serial_key) == (9.0, "u", "s")
    assert view.metadata == {"a": "b"}
    assert view.expires_at is not None
    assert timedelta(seconds=59) < view.expires_at - view.due_at <= timedelta(seconds=60)


async def test_keys_may_be_functions_of_the_args(app: Piecework) -> None:
    @app.handler(unique_key=lambda path: f"u-{path}", serial_key=lambda width: f"s-{width}")
    async def resize(path: str, width: int = 3) -> None: ...

    @app.handler(unique_key=lambda order: order.order_id)
    async def ship(args: Order) -> None: ...

    view = await (await resize.enqueue("a")).get()
    assert (view.unique_key, view.serial_key) == ("u-a", "s-3")
    assert (await (await app.enqueue(Order("7"))).get()).unique_key == "7"
    by_name = await app.kind("resize").enqueue({"path": "z", "width": 1})
    assert ((await by_name.get()).unique_key, (await by_name.get()).serial_key) == ("u-z", "s-1")
