"""A job this worker cannot run is put aside, uncharged, and taken by one that can (F11)."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from piecework import Piecework, State
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore
from piecework.testing import FakeClock
from tests.helpers import MakeApp

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(make_app: MakeApp, url: str, tmp_path: Path, clock: FakeClock) -> Piecework:
    """An app whose store goes by the clock."""
    store: Any = (
        MemoryStore(clock)
        if url.startswith("memory")
        else SqliteStore(tmp_path / "jobs.db", clock=clock)
    )
    return make_app(store)


async def test_an_unknown_kind_is_parked_with_the_reason_and_the_worker_lives(
    app: Piecework,
) -> None:
    @app.handler
    async def known() -> str:
        return "ran"

    strange = await app.kind("strange").enqueue({"n": 1})
    fine = await known.enqueue()
    before = datetime.now(UTC)
    await app.run_until_idle(concurrency=1)
    assert await fine.result(timeout=1) == "ran"
    view = await strange.get()
    assert (view.state, view.parked, view.attempt) == (State.SCHEDULED, True, 0)
    assert view.reason == "no handler for kind 'strange' in this worker"
    assert timedelta(seconds=59) < view.due_at - before < timedelta(seconds=65)
    assert await strange.attempts() == []
    assert [job.id for job in await app.find(parked=True)] == [strange.id]
    assert [job.id for job in await app.find(parked=False)] == [fine.id]


async def test_parking_doubles_from_a_minute_to_an_hour(timed: Piecework, clock: FakeClock) -> None:
    handle = await timed.kind("strange").enqueue()
    waits: list[float] = []
    for _ in range(9):
        await timed.run_until_idle()
        view = await handle.get()
        assert view.attempt == 0
        waits.append((view.due_at - clock.now()).total_seconds() / 60)
        await clock.advance(view.due_at - clock.now())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_worker_of_a_newer_release_takes_it_at_its_next_turn(
    timed: Piecework, clock: FakeClock
) -> None:
    handle = await timed.kind("later").using(max_attempts=1).enqueue({"n": 7})
    await timed.run_until_idle()
    assert (await handle.get()).parked

    @timed.handler(max_attempts=1)
    async def later(n: int) -> int:
        return n

    await clock.advance(61)
    await timed.run_until_idle()
    assert await handle.result(timeout=1) == 7
    view = await handle.get()
    assert (view.parked, view.attempt, view.reason) == (False, 1, None)
    assert await timed.find(parked=True) == []


async def test_parking_starts_afresh_after_the_job_once_ran(
    timed: Piecework, clock: FakeClock
) -> None:
    @timed.handler(kind="work", max_attempts=5, retry=lambda run, error: 0.0)
    async def fails() -> None:
        if len(reasons) < 1:
            reasons.append("ran")
            raise ValueError

    reasons: list[str] = []
    handle = await timed.kind("work").enqueue()
    for text in ('{"no": "such"}', '{"no": "such"}'):
        job = await timed._client.read(handle.id)
        await put_args(timed, job.id.bytes, text)
        await timed.run_until_idle()
        await clock.advance(300)
    assert (await handle.get()).parked
    await put_args(timed, handle.id.bytes, "{}")
    await timed.run_until_idle()
    assert await handle.result(timeout=1) is None
    assert not (await handle.get()).parked


async def put_args(app: Piecework, job_id: bytes, text: str) -> None:
    """Change the args of a stored job by hand."""
    store: Any = app._store
    if isinstance(store, MemoryStore):
        for row in store._rows.values():
            if row.id.bytes == job_id:
                row.args = text
        return
    with closing(sqlite3.connect(store._settings.path)) as connection, connection:
        connection.execute("UPDATE piecework_job SET args = ? WHERE id = ?", (text, job_id))


BAD_ARGS = {
    "not json": "][",
    "empty": "",
    "other shape": '{"wrong": 1}',
    "wrong type": '{"n": "seven"}',
    "null": "null",
    "list": "[]",
    "deep": "[" * 100_000,
    "nan": '{"n": NaN}',
    "pickle": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU",
    "escapes": '{"n": "\\ud800"}',
}


async def test_undecodable_args_are_parked_and_the_worker_lives(app: Piecework) -> None:
    @app.handler
    async def work(n: int) -> int:
        return n

    handles = {name: await work.enqueue(0) for name in BAD_ARGS}
    for name, handle in handles.items():
        await put_args(app, handle.id.bytes, BAD_ARGS[name])
    fine = await work.enqueue(1)
    await app.run_until_idle(concurrency=2)
    assert await fine.result(timeout=1) == 1
    for name, handle in handles.items():
        view = await handle.get()
        assert (name, view.state, view.attempt) == (name, State.SCHEDULED, 0)
        assert (view.reason or "").startswith("args cannot be read: ")
    found = await app.find(parked=True, limit=100)
    assert {job.id for job in found} == {handle.id for handle in handles.values()}


@pytest.mark.parametrize("call", ["os:system", "posix:system", "builtins:eval", "x", 7, None])
async def test_a_stored_call_outside_the_packages_is_parked(
    app: Piecework, call: object, tmp_path: Path
) -> None:
    """S01: nothing that stands in the store is imported or called."""
    mark = tmp_path / "mark"
    args = {"command": f"touch {mark}"}
    handle = await app.kind("placeholder").enqueue({})
    await put_args(app, handle.id.bytes, json.dumps({"call": call, "args": args}))
    await put_kind(app, handle.id.bytes, "piecework.call")
    await app.run_until_idle()
    view = await handle.get()
    assert view.parked
    assert (view.reason or "").startswith("args cannot be read: ")
    assert not mark.exists()


async def put_kind(app: Piecework, job_id: bytes, kind: str) -> None:
    store: Any = app._store
    if isinstance(store, MemoryStore):
        for row in store._rows.values():
            if row.id.bytes == job_id:
                row.kind = kind
        return
    with closing(sqlite3.connect(store._settings.path)) as connection, connection:
        connection.execute("UPDATE piecework_job SET kind = ? WHERE id = ?", (kind, job_id))


ROWS_BY_HAND = {
    "metadata": ("metadata", "{not json"),
    "metadata of another shape": ("metadata", "[1, 2]"),
    "progress": ("progress", "{not json"),
    "progress of another shape": ("progress", "7"),
    "partial": ("partial", "{not json"),
    "error": ("error", "{not json"),
    "result": ("result", "{not json"),
    "broken text": ("name", b"\xff\xfe"),
    "far future": ("tick", 2**62),
    "endless limit": ("timeout", 9e999),
    "negative limit": ("timeout", -1.0),
    "negative attempt": ("attempt", -7),
    "huge fence": ("fence", 2**53 + 1),
    "odd parent": ("parent", b"\x00"),
}


async def test_rows_put_in_by_hand_stop_neither_the_worker_nor_a_listing(
    sqlite_app: Piecework, tmp_path: Path
) -> None:
    app = sqlite_app

    @app.handler(max_attempts=1)
    async def work() -> str:
        return "ran"

    handles = {name: await work.enqueue() for name in ROWS_BY_HAND}
    fine = await work.enqueue()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        for name, (column, value) in ROWS_BY_HAND.items():
            cast = "CAST(? AS TEXT)" if column == "name" else "?"
            connection.execute(
                f"UPDATE piecework_job SET {column} = {cast} WHERE id = ?",  # noqa: S608
                (value, handles[name].id.bytes),
            )
    await app.run_until_idle()
    assert await fine.result(timeout=1) == "ran"
    found = await app.find(limit=100)
    assert len(found) == len(handles) + 1
    for name, handle in handles.items():
        view = await handle.get()
        assert view.state is not State.RUNNING, name
        assert view.state is not State.AVAILABLE, name
    assert len(await app.find(text="no such text")) == 0
