"""app.within where others write to the file as well, and where the connection is on another."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from piecework import Piecework, StoreUnavailable


@pytest.fixture
def ship(sqlite_app: Piecework) -> Any:
    @sqlite_app.handler
    async def ship(n: int) -> int:
        return n

    return ship


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def test_a_connection_on_another_file_is_refused(
    sqlite_app: Piecework, ship: Any, tmp_path: Path
) -> None:
    """Its jobs would be stored where no worker ever looks."""
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        with pytest.raises(ValueError, match="keeps its jobs in"):
            await sqlite_app.within(connection).enqueue(ship.prepare(1))
        assert not connection.in_transaction
    in_memory = closing(sqlite3.connect(":memory:"))
    with in_memory as connection, pytest.raises(ValueError, match="a database in memory"):
        await sqlite_app.within(connection).enqueue(ship.prepare(1))
    engine = create_engine(f"sqlite:///{other}", poolclass=NullPool)
    with engine.begin() as alchemy, pytest.raises(ValueError, match=r"other\.db"):
        await sqlite_app.within(alchemy).enqueue(ship.prepare(1))
    engine.dispose()
    assert other.stat().st_size == 0


async def test_the_same_file_by_another_path_is_the_same(
    sqlite_app: Piecework, ship: Any, tmp_path: Path, file: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with closing(sqlite3.connect(link / "jobs.db")) as connection:
        handle = await sqlite_app.within(connection).enqueue(ship.prepare(1))
        connection.commit()
    assert (await handle.get()).args == {"n": 1}


async def test_many_transactions_at_once_only_wait_for_each_other(
    sqlite_app: Piecework, sqlite_url: str, ship: Any, file: Path
) -> None:
    """F29: one that began by reading would be refused at once, whatever the busy timeout."""
    errors: list[Exception] = []

    def write(name: int) -> None:
        try:
            with closing(sqlite3.connect(file, timeout=20)) as connection:
                for n in range(15):
                    sqlite_app.sync.within(connection).enqueue(ship.prepare(100 * name + n))
                    connection.commit()
        except Exception as error:  # noqa: BLE001 - any would be wrong
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for n in range(15):
        await ship.enqueue(n)
        await asyncio.sleep(0)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert errors == []
    assert sum((await sqlite_app.count()).values()) == 75


async def test_a_transaction_that_read_too_long_ago_is_told_what_to_do(
    sqlite_app: Piecework, ship: Any, file: Path
) -> None:
    await ship.enqueue(0)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM piecework_job").fetchone()
        await ship.enqueue(1)
        with pytest.raises(StoreUnavailable, match="BEGIN IMMEDIATE"):
            await sqlite_app.within(connection).enqueue(ship.prepare(2))


@pytest.mark.parametrize("style", ["sqlite3", "sqlalchemy", "async"])
async def test_a_held_lock_is_never_a_bare_database_is_locked(
    sqlite_app: Piecework, ship: Any, file: Path, style: str
) -> None:
    await ship.enqueue(0)
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        wanted = pytest.raises(StoreUnavailable, match=r"app\.within")
        options = {"timeout": 0.05}
        if style == "sqlite3":
            with closing(sqlite3.connect(file, timeout=0.05)) as connection, wanted:
                await sqlite_app.within(connection).enqueue(ship.prepare(1))
        elif style == "sqlalchemy":
            engine = create_engine(f"sqlite:///{file}", poolclass=NullPool, connect_args=options)
            with engine.connect() as alchemy, wanted:
                await sqlite_app.within(alchemy).enqueue(ship.prepare(1))
            engine.dispose()
        else:
            url = f"sqlite+aiosqlite:///{file}"
            other = create_async_engine(url, poolclass=NullPool, connect_args=options)
            async with other.connect() as slow:
                with wanted:
                    await sqlite_app.within(slow).enqueue(ship.prepare(1))
            await other.dispose()
