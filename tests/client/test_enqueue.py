"""How a job finds its handler, and what an enqueue gives back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from piecework import (
    AmbiguousArgs,
    ArgsInvalid,
    Handle,
    PayloadTooLarge,
    Piecework,
    Prepared,
    Run,
    State,
    UnknownKind,
)

MakeApp = Callable[..., Piecework]


@dataclass(frozen=True)
class OrderJob:
    order_id: str
    order_name: str = "tea"


class SendMail(BaseModel):
    to: str


async def stored(app: Piecework) -> int:
    return sum((await app.count()).values())


# ── finding the handler ──────────────────────────────────────────────────────────────────────


async def test_an_args_object_finds_its_handler(app: Piecework) -> None:
    @app.handler
    async def ship(args: OrderJob, run: Run) -> str:
        return f"{args.order_id} {run.kind}"

    handle = await app.enqueue(OrderJob("1"), delay=0, priority=5)
    view = await handle.get()
    await app.run_until_idle()
    assert (view.kind, view.args, view.priority) == (
        "ship",
        {"order_id": "1", "order_name": "tea"},
        5,
    )
    assert handle.created
    assert await handle.result(timeout=5) == "1 ship"


async def test_a_handler_class_is_found_by_its_args(app: Piecework) -> None:
    @app.handler
    class MailHandler:
        async def __call__(self, args: SendMail) -> str:
            return args.to

    handle = await app.enqueue(SendMail(to="a@b.c"))
    await app.run_until_idle()
    assert (await handle.get()).kind == "MailHandler"
    assert await handle.result(timeout=5) == "a@b.c"


async def test_a_handler_enqueues_its_own_args(app: Piecework) -> None:
    @app.handler
    async def ship(args: OrderJob) -> str:
        return args.order_name

    @app.handler
    def resize(path: str, width: int = 320) -> str:
        return f"{path}@{width}"

    handles = [
        await ship.enqueue(OrderJob("1", "a")),
        await resize.enqueue("a.png", width=64),
        await resize.enqueue("b.png"),
        await resize.using(priority=1).enqueue(path="c.png"),
        await resize.using(priority=1).using(name="n", priority=2).enqueue("d.png", 1),
    ]
    await app.run_until_idle()
    assert [await handle.result(timeout=5) for handle in handles] == [
        "a",
        "a.png@64",
        "b.png@320",
        "c.png@320",
        "d.png@1",
    ]
    last = await handles[-1].get()
    assert (last.priority, last.name) == (2, "n")


async def test_an_unknown_args_type_says_how_to_register_one(app: Piecework) -> None:
    with pytest.raises(UnknownKind, match="OrderJob"):
        await app.enqueue(OrderJob("1"))
    for odd in ("text", 5, None, {"order_id": "1"}, OrderJob):
        with pytest.raises(UnknownKind):
            await app.enqueue(odd)
    assert await stored(app) == 0


async def test_two_handlers_of_one_args_type_are_both_named(app: Piecework) -> None:
    @app.handler
    async def ship(args: OrderJob) -> None: ...

    @app.handler
    async def pack(args: OrderJob) -> None: ...

    with pytest.raises(AmbiguousArgs, match="ship and pack") as caught:
        await app.enqueue(OrderJob("1"))
    assert caught.value.kinds == ("ship", "pack")
    assert await stored(app) == 0
    assert (await (await pack.enqueue(OrderJob("1"))).get()).kind == "pack"
    assert (await (await app.enqueue(ship.prepare(OrderJob("1")))).get()).kind == "ship"


async def test_args_that_do_not_fit_are_refused_before_anything_is_stored(app: Piecework) -> None:
    @app.handler
    async def resize(path: str, width: int = 320) -> None: ...

    @app.handler
    async def ship(args: OrderJob) -> None: ...

    wrong: list[Callable[[], Any]] = [
        lambda: resize.enqueue("a", "64"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: resize.enqueue("a", height=1),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        lambda: resize.enqueue("a", 1, 2),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        lambda: resize.enqueue("surrogate \ud800"),
        lambda: resize.enqueue("nul \x00"),
        lambda: ship.enqueue(SendMail(to="x")),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: ship.enqueue(OrderJob("1"), delay=3),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        lambda: ship.enqueue(OrderJob(1)),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: app.enqueue(OrderJob("1", None)),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ]
    missing: Any = resize.enqueue
    for enqueue in [missing, *wrong]:
        with pytest.raises(ArgsInvalid) as caught:
            await enqueue()
        assert isinstance(caught.value, ValueError)
        assert caught.value.kind in ("resize", "ship")
    assert await stored(app) == 0


# ── prepare ──────────────────────────────────────────────────────────────────────────────────


async def test_a_prepared_job_is_checked_but_not_stored(app: Piecework) -> None:
    @app.handler
    async def resize(path: str) -> str:
        return path

    prepared = resize.using(priority=3, queue="q").prepare("a.png")
    with pytest.raises(ArgsInvalid):
        resize.prepare(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert isinstance(prepared, Prepared)
    assert repr(prepared) == "<Prepared resize>"
    assert await stored(app) == 0
    first, second = await app.enqueue(prepared), await app.enqueue(prepared, priority=9)
    views = [await first.get(), await second.get()]
    assert first.id != second.id
    assert [(view.priority, view.queue) for view in views] == [(3, "q"), (9, "q")]


async def test_options_given_through_the_app_come_on_top(app: Piecework) -> None:
    @app.handler(priority=1, queue="kind")
    async def resize(path: str) -> None: ...

    prepared = resize.using(priority=2, name="prepared").prepare("a")
    view = await (await app.using(priority=3).enqueue(prepared)).get()
    assert (view.priority, view.name, view.queue) == (3, "prepared", "kind")


# ── many ─────────────────────────────────────────────────────────────────────────────────────


async def test_many_jobs_get_their_handles_in_order(app: Piecework) -> None:
    @app.handler
    async def ship(args: OrderJob) -> str:
        return args.order_name

    @app.handler
    async def resize(path: str) -> str:
        return path

    handles = await app.enqueue_many(
        [
            OrderJob("1", "a"),
            resize.prepare("b.png"),
            resize.using(priority=9).prepare("c.png"),
            app.kind("resize").prepare({"path": "d.png"}),
        ]
    )
    await app.run_until_idle()
    assert [await handle.result(timeout=5) for handle in handles] == [
        "a",
        "b.png",
        "c.png",
        "d.png",
    ]
    assert all(handle.created for handle in handles)
    assert await app.enqueue_many([]) == []


async def test_more_than_a_thousand_jobs_are_one_call(app: Piecework) -> None:
    @app.handler
    async def tick(n: int) -> None: ...

    handles = await app.enqueue_many([tick.prepare(n) for n in range(2_345)])
    newest = await app.find(limit=3)
    assert len({handle.id for handle in handles}) == await stored(app) == 2_345
    assert [view.args["n"] for view in newest] == [2_344, 2_343, 2_342]
    assert (await handles[1_000].get()).args == {"n": 1_000}


async def test_one_bad_job_among_many_leaves_none(app: Piecework) -> None:
    @app.handler
    async def ship(args: OrderJob) -> None: ...

    bad: list[tuple[Any, type[Exception]]] = [
        (SendMail(to="x"), UnknownKind),
        (OrderJob(1), ArgsInvalid),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ("text", UnknownKind),
    ]
    for job, error in bad:
        with pytest.raises(error):
            await app.enqueue_many([OrderJob("1"), OrderJob("2"), job])
    assert await stored(app) == 0


# ── by name ──────────────────────────────────────────────────────────────────────────────────


async def test_a_registered_kind_by_name_validates_plain_data(app: Piecework) -> None:
    @app.handler(kind="SendEmail", unique_key=lambda args: args.to)
    async def send(args: SendMail) -> str:
        return args.to

    handle = await app.kind("SendEmail").enqueue({"to": "a@b.c"})
    again = await app.kind("SendEmail").using(priority=4).enqueue({"to": "a@b.c"})
    for wrong in ({"to": 5}, {}, list[Any](), "a@b.c", None):
        with pytest.raises(ArgsInvalid):
            await app.kind("SendEmail").enqueue(wrong)
    await app.run_until_idle()
    assert again == handle
    assert await handle.result(timeout=5) == "a@b.c"
    assert await stored(app) == 1
    assert "to" in app.kind("SendEmail").schema()["properties"]


async def test_an_unknown_kind_by_name_is_stored_as_it_stands(make_app: MakeApp) -> None:
    app = make_app(max_args_bytes=100)
    email = app.kind("SendEmail").using(priority=4, queue="mail")
    handle = await email.enqueue({"to": "é", "deep": [1, {"a": None}]})
    empty = await app.kind("SendEmail").enqueue()
    view = await handle.get()
    assert (view.kind, view.args, view.priority, view.queue) == (
        "SendEmail",
        {"to": "é", "deep": [1, {"a": None}]},
        4,
        "mail",
    )
    assert (await empty.get()).args == {}
    for wrong in ({"a": float("nan")}, {"a": object()}, {"a": "\x00"}, {"a": "\ud800"}):
        with pytest.raises(ArgsInvalid):
            await email.enqueue(wrong)
    with pytest.raises(PayloadTooLarge):
        await email.enqueue({"to": "x" * 100})
    with pytest.raises(UnknownKind):
        app.kind("SendEmail").schema()
    assert await stored(app) == 2


@pytest.mark.parametrize("kind", ["", " ", "x" * 201, "a\nb", "a\x00"])
async def test_a_kind_that_cannot_be_a_name_is_refused(app: Piecework, kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        app.kind(kind)


async def test_what_one_app_enqueues_by_name_another_runs(make_app: MakeApp) -> None:
    """A service without the handler's code, beside the one that has it."""
    url_app = make_app()
    if not url_app._store.shared:
        pytest.skip("a memory store is one app's own")
    worker = make_app()

    @worker.handler(kind="SendEmail")
    async def send(args: SendMail) -> str:
        return args.to

    handle = await url_app.kind("SendEmail").enqueue({"to": "a@b.c"})
    await worker.run_until_idle()
    assert await handle.result(timeout=5) == "a@b.c"


# ── handles ──────────────────────────────────────────────────────────────────────────────────


async def test_a_handle_of_a_handler_is_typed_and_one_by_id_is_plain(app: Piecework) -> None:
    @app.handler
    async def order() -> OrderJob:
        return OrderJob("1", "tea")

    handle = await order.enqueue()
    await app.run_until_idle()
    plain, typed = app.job(str(handle.id)), order.handle(handle.id)
    assert await handle.result() == await typed.result() == OrderJob("1", "tea")
    assert await plain.result() == {"order_id": "1", "order_name": "tea"}
    assert handle == typed == plain
    assert len({handle, typed, plain}) == 1
    assert handle != handle.id
    assert repr(plain) == f"<Handle {handle.id}>"
    (many,) = await app.enqueue_many([order.prepare()])
    await app.run_until_idle()
    assert await many.result() == OrderJob("1", "tea")


@pytest.mark.parametrize("odd", ["", "17", "not-a-uuid", 5, None, b"\x00" * 16])
async def test_what_is_no_id_is_refused_where_it_is_given(app: Piecework, odd: Any) -> None:
    with pytest.raises(ValueError, match="no job id"):
        app.job(odd)


# ── too large ────────────────────────────────────────────────────────────────────────────────


async def test_args_beyond_the_limit_are_refused_with_both_sizes(app: Piecework) -> None:
    @app.handler
    async def keep(text: str) -> int:
        return len(text)

    overhead = len('{"text":""}')
    fits = await keep.enqueue("x" * (1_048_576 - overhead))
    with pytest.raises(PayloadTooLarge, match=r"1,048,577 bytes.*limit is 1,048,576") as caught:
        await keep.enqueue("x" * (1_048_577 - overhead))
    with pytest.raises(PayloadTooLarge):
        await app.enqueue_many([keep.prepare("a"), app.kind("other").prepare({"t": "é" * 600_000})])
    await app.run_until_idle()
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (1_048_577, 1_048_576)
    assert await fits.result(timeout=5) == 1_048_576 - overhead
    assert await stored(app) == 1


async def test_the_limit_can_be_set(make_app: MakeApp) -> None:
    app = make_app(max_args_bytes=20)

    @app.handler
    async def keep(text: str) -> None: ...

    await keep.enqueue("x" * 9)
    with pytest.raises(PayloadTooLarge, match="limit is 20"):
        await keep.enqueue("x" * 10)
    with pytest.raises(PayloadTooLarge, match="21 bytes"):
        await keep.enqueue("é" * 5)
    assert await stored(app) == 1


async def test_strange_texts_come_back_as_they_were(app: Piecework) -> None:
    text = 'a \x7f "quotes" \\ \u2028 é 𝄞 \ufffd </script> %s ? :name'

    @app.handler
    async def echo(text: str) -> str:
        return text

    handle = await echo.enqueue(text)
    await app.run_until_idle()
    assert (await handle.get()).args == {"text": text}
    assert await handle.result(timeout=5) == text


# ── inside a run ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_a_job_enqueued_inside_a_run_has_it_as_parent(app: Piecework, style: str) -> None:
    @app.handler
    async def child(n: int) -> None: ...

    async def in_task() -> list[str]:
        one = await child.enqueue(1)
        two = await asyncio.create_task(child.enqueue(2))
        three = await app.enqueue_many([child.prepare(3), child.prepare(4)])
        return [str(handle.id) for handle in [one, two, *three]]

    def in_thread() -> list[str]:
        one = app.sync.enqueue(child.prepare(1))
        many = app.sync.enqueue_many([child.prepare(n) for n in (2, 3, 4)])
        return [str(handle.id) for handle in [one, *many]]

    parent = app.handler(in_task if style == "async" else in_thread, kind="parent")
    handle: Handle[Any] = await parent.enqueue()
    await app.run_until_idle()
    children = await handle.result(timeout=5)
    found = await app.find(parent=handle)
    assert sorted(str(view.id) for view in found) == sorted(children)
    assert {view.parent for view in found} == {handle.id}
    assert {view.state for view in found} == {State.COMPLETED}
    assert (await handle.get()).parent is None
    assert (await (await child.enqueue(9)).get()).parent is None


async def test_other_args_behind_a_key_are_logged_for_whoever_runs_it(
    app: Piecework, caplog: pytest.LogCaptureFixture
) -> None:
    @app.handler(unique_key="k")
    async def note(text: str) -> None: ...

    await note.enqueue("a")
    with caplog.at_level(logging.WARNING, "piecework.client"), pytest.warns(match="other") as seen:
        await note.enqueue("b")
    assert "other args" in caplog.text
    assert len(seen) == 1
