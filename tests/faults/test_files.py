"""A file that cannot be used says so in one line; what was acknowledged stays (F29-F33, S21)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework import Piecework, SchemaOutdated, State, StoreUnavailable
from piecework.stores.sqlite import SqliteStore


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A file with one job in it."""
    path = tmp_path / "jobs.db"
    async with Piecework(f"sqlite:///{path}") as app:
        await app.kind("work").enqueue({"n": 1})
    return path


async def refusal(url: str, kind: type[StoreUnavailable] = StoreUnavailable) -> str:
    app = Piecework(url)
    with pytest.raises(kind) as caught:
        await app.kind("work").enqueue({"n": 2})
    await app.close()
    message = str(caught.value)
    assert "\n" not in message
    return message


async def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder: name a file" in await refusal(f"sqlite:///{tmp_path}")


async def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    message = await refusal(f"sqlite:///{tmp_path}/no/jobs.db")
    assert f"{tmp_path}/no does not exist" in message


async def test_a_read_only_folder_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the answer of the system is given for it."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert "is read-only" in await refusal(f"sqlite:///{tmp_path}/jobs.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes\n" * 100)
    before = path.read_bytes()
    assert "is no intact SQLite database" in await refusal(f"sqlite:///{path}")
    assert path.read_bytes() == before


async def test_a_table_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE piecework_job (title TEXT)")
    other.close()
    assert "is not Piecework's" in await refusal(f"sqlite:///{path}")


async def test_a_table_of_another_shape_is_noticed(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("ALTER TABLE piecework_job RENAME COLUMN reason TO because")
    other.close()
    assert "piecework_job that is not Piecework's" in await refusal(f"sqlite:///{file}")


async def test_another_namespace_lives_beside_foreign_tables(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE piecework_job (title TEXT)")
    other.close()
    async with Piecework(f"sqlite:///{path}", namespace="shop") as app:
        handle = await app.kind("work").enqueue({"n": 1})
        assert (await handle.get()).state is State.AVAILABLE
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM shop_job").fetchone() == (1,)
    other.close()


async def test_a_newer_schema_asks_for_a_newer_release(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("INSERT INTO piecework_schema VALUES (99, 0)")
    other.close()
    message = await refusal(f"sqlite:///{file}", SchemaOutdated)
    assert "has schema 99" in message
    assert "upgrade piecework" in message


async def test_without_migration_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    assert "?migrate=off" in await refusal(f"sqlite:///{path}?migrate=off", SchemaOutdated)
    async with Piecework(f"sqlite:///{path}"):
        pass
    async with Piecework(f"sqlite:///{path}?migrate=off") as app:
        await app.kind("work").enqueue({"n": 1})


async def test_only_the_owner_may_read_what_jobs_carry(file: Path) -> None:
    """S21: a new file is 0600, and so are the two beside it."""
    store = SqliteStore(file)
    await store.open()
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    await store.close()


async def test_a_held_write_lock_names_the_way_out(file: Path) -> None:
    """F29: never a bare "database is locked"; and the reads go on."""
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    app = Piecework(f"sqlite:///{file}?busy=0.2")
    with pytest.raises(StoreUnavailable, match=r"app\.within") as caught:
        await app.kind("work").enqueue({"n": 2})
    assert "stayed busy for 0.2 s" in str(caught.value)
    assert len(await app.find()) == 1
    holder.execute("ROLLBACK")
    await app.kind("work").enqueue({"n": 2})
    assert len(await app.find()) == 2
    await app.close()
    holder.close()


async def test_who_waits_for_the_file_gets_its_turn(file: Path) -> None:
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    app = Piecework(f"sqlite:///{file}?busy=10")
    waiting = asyncio.create_task(app.kind("work").enqueue({"n": 2}))
    await asyncio.sleep(0)
    holder.execute("COMMIT")
    assert (await waiting).created
    await app.close()
    holder.close()


@pytest.fixture
async def full(file: Path) -> AsyncIterator[tuple[Piecework, SqliteStore]]:
    """An app whose file may not grow any more."""
    store = SqliteStore(file)
    app = Piecework(store)
    await store.open()
    limit_pages(store, 1)
    yield app, store
    await app.close()


def limit_pages(store: SqliteStore, pages: int) -> None:
    lanes = store._lanes()
    connection = lanes.writer._connection
    assert connection is not None
    connection.raw.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_refuses_the_enqueue_and_keeps_the_rest(
    full: tuple[Piecework, SqliteStore],
) -> None:
    """F30: nothing acknowledged is lost, and the store works again once there is room."""
    app, store = full
    big = "x" * 200_000
    results = await asyncio.gather(
        *(app.kind("work").enqueue({"text": big}) for _ in range(20)), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, StoreUnavailable)]
    assert refused
    assert "no space left" in str(refused[0])
    stored = {job.id for job in await app.find(limit=100)}
    acknowledged = {each.id for each in results if not isinstance(each, BaseException)}
    assert acknowledged <= stored
    assert len(stored) == 1 + len(acknowledged)
    limit_pages(store, 1_000_000)
    handle = await app.kind("work").enqueue({"text": big})
    assert (await handle.get()).args == {"text": big}
    check = {finding.topic: finding.text for finding in await app.check()}
    assert check["integrity"] == "ok"


async def test_a_failed_commit_fails_all_its_members(file: Path) -> None:
    """None is acknowledged whose transaction did not commit."""
    store = SqliteStore(file)
    app = Piecework(store)
    await store.open()
    connection = store._lanes().writer._connection
    assert connection is not None
    # A deferred constraint fails at the COMMIT itself.
    connection.raw.executescript(
        """PRAGMA foreign_keys = ON;
        CREATE TABLE other (id INTEGER PRIMARY KEY);
        CREATE TABLE witness (other INTEGER REFERENCES other DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER spoil AFTER INSERT ON piecework_job WHEN NEW.kind = 'spoilt'
        BEGIN INSERT INTO witness VALUES (1); END;"""
    )
    results = await asyncio.gather(
        app.kind("work").enqueue({"n": 2}),
        app.kind("spoilt").enqueue({"n": 3}),
        app.kind("work").enqueue({"n": 4}),
        return_exceptions=True,
    )
    assert [type(each) for each in results] == [StoreUnavailable] * 3
    assert len(await app.find()) == 1
    assert (await app.kind("work").enqueue({"n": 5})).created
    await app.close()
