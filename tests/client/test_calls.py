"""Ad-hoc calls: any callable in memory, what lies below `calls=` on a durable store."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from piecework import ArgsInvalid, NotImportable, Piecework, PieceworkError, State

MakeApp = Callable[..., Piecework]

SOURCE = """
class Mailer:
    sent = []
    async def send(self, to: str, copy: bool = False) -> str:
        self.sent.append(to)
        return f"sent to {to}"

def resize(path: str, width: int = 320) -> str:
    return f"{path}@{width}"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's package, shop.mail."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "mail.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("shop.mail")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def caller(make_app: MakeApp, shop: Any) -> Piecework:
    """An app that may call what is in shop, with a Mailer."""
    app = make_app(calls=("shop",))
    app.services.register_factory(shop.Mailer, shop.Mailer)
    return app


def outside(text: str) -> str:
    return text


async def stored(app: Piecework) -> int:
    return sum((await app.count()).values())


# ── on both stores ───────────────────────────────────────────────────────────────────────────


async def test_a_method_is_called_on_the_injected_service(caller: Piecework, shop: Any) -> None:
    using = caller.using(queue="EmailQueue", name="Send welcome")
    handle = await using.call(shop.Mailer.send, to="a@b.c")
    view = await handle.get()
    await caller.run_until_idle()
    assert (view.queue, view.name, view.state) == (
        "EmailQueue",
        "Send welcome",
        State.AVAILABLE,
    )
    assert handle.created
    assert await handle.result(timeout=5) == "sent to a@b.c"
    assert shop.Mailer.sent == ["a@b.c"]


async def test_a_function_is_called_with_its_own_args(caller: Piecework, shop: Any) -> None:
    handles = [
        await caller.using().call(shop.resize, "a.png"),
        await caller.using(priority=2, metadata={"a": "b"}).call(shop.resize, "b.png", width=1),
    ]
    await caller.run_until_idle()
    assert [await handle.result(timeout=5) for handle in handles] == ["a.png@320", "b.png@1"]
    assert [view.id for view in await caller.find(metadata={"a": "b"})] == [handles[1].id]


async def test_calls_in_one_named_queue_are_serial_unless_said_otherwise(
    caller: Piecework, shop: Any
) -> None:
    async def key(**options: Any) -> str | None:
        handle = await caller.using(**options).call(shop.resize, "a")
        return (await handle.get()).serial_key

    assert await key(queue="a") == "a"
    assert await key(queue="b") == "b"
    assert await key(queue="a", serial=True) == "a"
    assert await key(queue="a", serial=False) is None
    assert await key(queue="a", serial_key="own") == "own"
    assert await key() is None
    assert await key(serial=True) == "default"


async def test_one_queue_runs_in_order_and_another_in_parallel(
    caller: Piecework, shop: Any
) -> None:
    handles = [
        await caller.using(queue=queue).call(shop.resize, "x")
        for queue in ("slow", "slow", "fast", "slow")
    ]
    states = [(await handle.get()).state for handle in handles]
    assert states == [State.AVAILABLE, State.BLOCKED, State.AVAILABLE, State.BLOCKED]
    await caller.run_until_idle()
    views = [await handle.get() for handle in handles if handle != handles[2]]
    for before, after in pairwise(views):
        assert before.finished_at is not None
        assert after.started_at is not None
        assert before.finished_at <= after.started_at


async def test_args_that_do_not_fit_are_refused_before_anything_is_stored(
    caller: Piecework, shop: Any
) -> None:
    for args, kwargs in (((), {}), (("a", 1, 2), {}), (("a",), {"height": 1}), ((5,), {})):
        with pytest.raises(ArgsInvalid):
            await caller.using().call(shop.resize, *args, **kwargs)
    with pytest.raises(TypeError, match="unknown option"):
        await caller.using(que="a").call(shop.resize, "a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert await stored(caller) == 0


async def test_a_method_without_its_service_registered_ends_with_a_reason(
    make_app: MakeApp, shop: Any
) -> None:
    app = make_app(calls=("shop",))
    try:
        handle = await app.using().call(shop.Mailer.send, to="a@b.c")
    except PieceworkError as error:
        assert "Mailer" in str(error)  # noqa: PT017 - refused at once is as good
        return
    await app.run_until_idle()
    view = await handle.get()
    assert view.state is not State.COMPLETED
    assert "Mailer" in f"{view.error} {view.reason}"


# ── in memory ────────────────────────────────────────────────────────────────────────────────


async def test_memory_takes_any_callable() -> None:
    async with Piecework("memory://") as app:
        seen: list[str] = []

        def closure(text: str) -> int:
            seen.append(text)
            return len(seen)

        handles = [
            await app.using().call(closure, "a"),
            await app.using().call(lambda n: n + 1, 1),
            await app.using().call(outside, "b"),
        ]
        await app.run_until_idle()
        assert [await handle.result(timeout=5) for handle in handles] == [1, 2, "b"]
        assert seen == ["a"]


# ── on a durable store ───────────────────────────────────────────────────────────────────────


async def test_a_durable_store_takes_only_what_lies_below_its_packages(
    sqlite_url: str, shop: Any
) -> None:
    async with Piecework(sqlite_url, calls=("shop",)) as app:

        def closure() -> None: ...

        refused: list[Callable[..., Any]] = [
            closure,
            lambda: None,
            outside,
            len,
            shop.Mailer().send,
            shop.Mailer,
        ]
        for fn in refused:
            with pytest.raises(NotImportable):
                await app.using().call(fn)
        assert await stored(app) == 0
        assert (await app.using().call(shop.resize, "a")).created


async def test_without_packages_a_durable_store_takes_none_and_says_what_to_name(
    sqlite_url: str, shop: Any
) -> None:
    async with Piecework(sqlite_url) as app:
        with pytest.raises(NotImportable, match=r"calls=\('shop',\)"):
            await app.using().call(shop.resize, "a")
        assert await stored(app) == 0


async def test_a_stored_name_outside_the_packages_parks_the_job(sqlite_url: str, shop: Any) -> None:
    async with Piecework(sqlite_url, calls=("shop",)) as app, Piecework(sqlite_url) as strict:
        handle = await app.using().call(shop.resize, "a")
        await strict.run_until_idle()
        view = await handle.get()
        assert (view.state, view.attempt, view.parked) == (State.SCHEDULED, 0, True)
        assert "calls=" in (view.reason or "")
        assert [job.id for job in await app.find(parked=True)] == [handle.id]
        assert await handle.retry()
        await app.run_until_idle()
        assert await handle.result(timeout=5) == "a@320"
