"""Enqueues inside a transaction of the caller's own: sqlite3, SQLAlchemy."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from piecework import DuplicateJob, Handle, Piecework, State, StoreUnavailable, UnknownKind
from tests.helpers import until

MakeApp = Callable[..., Piecework]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def shop(path: Path) -> AsyncIterator[Piecework]:
    """An app on a file that has a table of the user's, too, and none of ours yet."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    async with Piecework(f"sqlite:///{path}?busy=5") as app:
        yield app


@pytest.fixture
def ship(shop: Piecework) -> Any:
    @shop.handler
    async def ship(order: str) -> str:
        return order

    return ship


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        yield connection


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    yield engine
    await engine.dispose()


ORDER = text("INSERT INTO orders VALUES (:id)")


async def contents(app: Piecework, path: Path) -> tuple[list[str], list[str]]:
    """The user's orders, and the args of the jobs, as others see them."""
    with closing(sqlite3.connect(path)) as connection:
        orders = [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]
    return orders, sorted(view.args["order"] for view in await app.find())


# ── sqlite3 ──────────────────────────────────────────────────────────────────────────────────


async def test_a_job_is_there_only_once_the_caller_commits(
    shop: Piecework, ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    connection.execute("INSERT INTO orders VALUES ('1')")
    handle = await shop.within(connection).enqueue(ship.prepare("1"), priority=7)
    many = await shop.within(connection).enqueue_many([ship.prepare("2"), ship.prepare("3")])
    assert await contents(shop, path) == ([], [])
    connection.commit()
    assert await contents(shop, path) == (["1"], ["1", "2", "3"])
    assert [job.created for job in [handle, *many]] == [True] * 3
    assert (await handle.get()).priority == 7
    await shop.run_until_idle()
    assert await handle.result(timeout=5) == "1"


async def test_a_rollback_takes_the_job_with_it(
    shop: Piecework, ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    connection.execute("INSERT INTO orders VALUES ('1')")
    await shop.within(connection).enqueue(ship.prepare("1"))
    connection.rollback()
    assert await contents(shop, path) == ([], [])


async def test_without_a_write_before_it_the_enqueue_begins_the_transaction(
    shop: Piecework, ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    await shop.within(connection).enqueue(ship.prepare("1"))
    assert connection.in_transaction
    connection.rollback()
    assert await contents(shop, path) == ([], [])


async def test_a_rollback_to_a_savepoint_takes_only_what_came_after(
    shop: Piecework, ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    connection.execute("INSERT INTO orders VALUES ('1')")
    await shop.within(connection).enqueue(ship.prepare("1"))
    connection.execute("SAVEPOINT mine")
    connection.execute("INSERT INTO orders VALUES ('2')")
    await shop.within(connection).enqueue(ship.prepare("2"))
    connection.execute("ROLLBACK TO mine")
    connection.commit()
    assert await contents(shop, path) == (["1"], ["1"])


async def test_an_empty_file_gets_its_tables_inside_the_transaction(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    app = Piecework(f"sqlite:///{path}")
    ship = app.kind("ship")
    with closing(sqlite3.connect(path)) as connection:
        await app.within(connection).enqueue(ship.prepare({"order": "1"}))
        connection.rollback()
        tables = "SELECT count(*) FROM sqlite_master"
        assert connection.execute(tables).fetchone() == (0,)
        await app.within(connection).enqueue(ship.prepare({"order": "2"}))
        await app.within(connection).enqueue(ship.prepare({"order": "3"}))
        connection.commit()
    assert sorted(view.args["order"] for view in await app.find()) == ["2", "3"]
    await app.close()


async def test_a_connection_in_autocommit_is_refused(
    shop: Piecework, ship: Any, path: Path
) -> None:
    """It would commit the job by itself, before the caller's own work."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(ValueError, match="autocommit"):
            await shop.within(connection).enqueue(ship.prepare("1"))
        assert await contents(shop, path) == ([], [])
        connection.execute("BEGIN")
        await shop.within(connection).enqueue(ship.prepare("2"))
        assert await contents(shop, path) == ([], [])
        connection.execute("COMMIT")
    assert await contents(shop, path) == ([], ["2"])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit= came with 3.12")
async def test_both_new_ways_of_transaction_control_are_understood(
    shop: Piecework, ship: Any, path: Path
) -> None:
    connect: Any = sqlite3.connect
    with closing(connect(path, autocommit=True)) as connection:
        with pytest.raises(ValueError, match="autocommit"):
            await shop.within(connection).enqueue(ship.prepare("1"))
        assert not connection.in_transaction
    with closing(connect(path, autocommit=False)) as connection:
        await shop.within(connection).enqueue(ship.prepare("2"))
        connection.commit()
    assert await contents(shop, path) == ([], ["2"])


async def test_the_callers_row_factory_is_left_alone(
    shop: Piecework, ship: Any, connection: sqlite3.Connection
) -> None:
    connection.row_factory = sqlite3.Row
    first = await shop.within(connection).enqueue(ship.prepare("1"), unique_key="k")
    again = await shop.within(connection).enqueue(ship.prepare("1"), unique_key="k")
    connection.commit()
    assert (again, again.created) == (first, False)
    assert connection.row_factory is sqlite3.Row
    assert connection.execute("SELECT 1 AS one").fetchone()["one"] == 1


async def test_a_conflict_leaves_the_callers_transaction_whole(
    shop: Piecework, ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    await shop.enqueue(ship.using(unique_key="k").prepare("1"))
    connection.execute("INSERT INTO orders VALUES ('1')")
    await shop.within(connection).enqueue(ship.prepare("2"))
    duplicate = ship.using(unique_key="k", on_duplicate="raise").prepare("1")
    with pytest.raises(DuplicateJob):
        await shop.within(connection).enqueue_many([ship.prepare("3"), duplicate])
    with pytest.raises(UnknownKind):
        await shop.within(connection).enqueue(object())
    with pytest.raises(TypeError, match="unknown option"):
        await shop.within(connection).enqueue(ship.prepare("4"), dealy=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    connection.execute("INSERT INTO orders VALUES ('2')")
    connection.commit()
    assert await contents(shop, path) == (["1", "2"], ["1", "2"])


async def test_two_writers_in_turn_one_waits_for_the_other_and_says_so(
    ship: Any, path: Path, connection: sqlite3.Connection
) -> None:
    """Who holds a transaction open and enqueues beside it would wait for themselves."""
    async with Piecework(f"sqlite:///{path}?busy=0.05") as app:
        connection.execute("INSERT INTO orders VALUES ('1')")
        with pytest.raises(StoreUnavailable, match=r"app\.within"):
            await app.kind("ship").enqueue({"order": "1"})
        handle = await app.within(connection).enqueue(app.kind("ship").prepare({"order": "1"}))
        connection.commit()
        assert [view.id for view in await app.find()] == [handle.id]


# ── SQLAlchemy, blocking ─────────────────────────────────────────────────────────────────────


async def test_a_sqlalchemy_connection_commits_and_rolls_back_the_job(
    shop: Piecework, ship: Any, path: Path, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(ORDER, {"id": "1"})
        handle = await shop.within(connection).enqueue(ship.prepare("1"))
        with connection.begin_nested() as nested:
            connection.execute(ORDER, {"id": "2"})
            await shop.within(connection).enqueue(ship.prepare("2"))
            nested.rollback()
        assert await contents(shop, path) == ([], [])
    with engine.connect() as connection:
        await shop.within(connection).enqueue(ship.prepare("3"))
        connection.rollback()
    assert await contents(shop, path) == (["1"], ["1"])
    await shop.run_until_idle()
    assert await handle.result(timeout=5) == "1"


@pytest.mark.parametrize("scoped", [False, True], ids=["session", "scoped"])
async def test_a_sqlalchemy_session_commits_and_rolls_back_the_job(
    shop: Piecework, ship: Any, path: Path, engine: Engine, scoped: Any
) -> None:
    make = sessionmaker(engine)
    session: Any = scoped_session(make) if scoped else make()
    session.execute(ORDER, {"id": "1"})
    await shop.within(session).enqueue_many([ship.prepare("1")])
    with session.begin_nested() as nested:
        session.execute(ORDER, {"id": "2"})
        await shop.within(session).enqueue(ship.prepare("2"))
        nested.rollback()
    assert await contents(shop, path) == ([], [])
    session.commit()
    await shop.within(session).enqueue(ship.prepare("3"))
    session.rollback()
    session.close()
    assert await contents(shop, path) == (["1"], ["1"])


# ── SQLAlchemy, async ────────────────────────────────────────────────────────────────────────


async def test_an_async_connection_commits_and_rolls_back_the_job(
    shop: Piecework, ship: Any, path: Path, async_engine: AsyncEngine
) -> None:
    async with async_engine.begin() as connection:
        await connection.execute(ORDER, {"id": "1"})
        await shop.within(connection).enqueue(ship.prepare("1"))
        async with connection.begin_nested() as nested:
            await shop.within(connection).enqueue(ship.prepare("2"))
            await nested.rollback()
        assert await contents(shop, path) == ([], [])
    async with async_engine.connect() as connection:
        await shop.within(connection).enqueue(ship.prepare("3"))
        await connection.rollback()
    assert await contents(shop, path) == (["1"], ["1"])


async def test_an_async_session_commits_and_rolls_back_the_job(
    shop: Piecework, ship: Any, path: Path, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        await session.execute(ORDER, {"id": "1"})
        handle = await shop.within(session).enqueue(ship.prepare("1"), unique_key="k")
        again = await shop.within(session).enqueue(ship.prepare("1"), unique_key="k")
        async with session.begin_nested() as nested:
            await shop.within(session).enqueue(ship.prepare("2"))
            await nested.rollback()
        assert await contents(shop, path) == ([], [])
    async with AsyncSession(async_engine) as session:
        await shop.within(session).enqueue(ship.prepare("3"))
    assert await contents(shop, path) == (["1"], ["1"])
    assert (again, again.created) == (handle, False)


async def test_a_refusal_leaves_an_async_session_usable(
    shop: Piecework, ship: Any, path: Path, async_engine: AsyncEngine
) -> None:
    job = ship.using(unique_key="k", on_duplicate="raise").prepare("1")
    async with AsyncSession(async_engine) as session, session.begin():
        await session.execute(ORDER, {"id": "1"})
        await shop.within(session).enqueue(job)
        with pytest.raises(DuplicateJob):
            await shop.within(session).enqueue(job)
        await session.execute(ORDER, {"id": "2"})
    assert await contents(shop, path) == (["1", "2"], ["1"])


async def test_a_sqlalchemy_connection_in_autocommit_is_refused(
    shop: Piecework, ship: Any, path: Path, engine: Engine
) -> None:
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with alone.connect() as connection, pytest.raises(ValueError, match="autocommit"):
        await shop.within(connection).enqueue(ship.prepare("1"))
    assert await contents(shop, path) == ([], [])


async def test_an_async_connection_in_autocommit_is_refused(
    shop: Piecework, ship: Any, path: Path, async_engine: AsyncEngine
) -> None:
    alone = async_engine.execution_options(isolation_level="AUTOCOMMIT")
    async with alone.connect() as connection:
        with pytest.raises(ValueError, match="autocommit"):
            await shop.within(connection).enqueue(ship.prepare("1"))
    assert await contents(shop, path) == ([], [])


# ── what else ────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_wakes_after_the_commit_and_not_before(
    shop: Piecework, ship: Any, connection: sqlite3.Connection
) -> None:
    """It polls only every ten minutes here: without a wake the result comes too late."""
    async with shop.worker(poll=600, lease=30):
        handle = await shop.within(connection).enqueue(ship.prepare("1"))
        assert await shop.find() == []
        connection.commit()
        assert await handle.result(timeout=5) == "1"


async def test_a_job_enqueued_inside_a_run_and_a_transaction_has_its_parent(
    shop: Piecework, ship: Any, path: Path
) -> None:
    @shop.handler
    async def parent() -> str:
        with closing(sqlite3.connect(path)) as connection:
            handle = await shop.within(connection).enqueue(ship.prepare("1"))
            connection.commit()
        return str(handle.id)

    handle = await parent.enqueue()
    await shop.run_until_idle()
    child: Handle[Any] = shop.job(await handle.result(timeout=5))
    assert (await child.get()).parent == handle.id


@pytest.mark.parametrize(
    "odd", [None, "jobs.db", 5, object()], ids=["none", "text", "number", "object"]
)
async def test_what_is_no_connection_is_a_type_error(app: Piecework, odd: Any) -> None:
    with pytest.raises(TypeError, match=type(odd).__name__):
        await app.within(odd).enqueue(app.kind("ship").prepare({}))


async def test_the_memory_store_has_no_transactions() -> None:
    app = Piecework("memory://")
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(TypeError, match="memory store"):
            await app.within(connection).enqueue(app.kind("ship").prepare({}))
        with pytest.raises(TypeError, match="memory store"):
            app.sync.within(connection).enqueue(app.kind("ship").prepare({}))
    assert await app.count() == {}
    await app.close()


def test_the_twin_writes_in_the_callers_own_thread(path: Path, engine: Engine) -> None:
    """A sqlite3 connection may only be used by the thread that made it."""
    app = Piecework(f"sqlite:///{path}")
    ship = app.kind("ship")
    with closing(sqlite3.connect(path)) as connection:
        one = app.sync.within(connection).enqueue(ship.prepare({"order": "1"}), priority=3)
        app.sync.within(connection).enqueue_many([ship.prepare({"order": "2"})])
        connection.rollback()
        assert app.sync.find() == []
        two = app.sync.within(connection).enqueue(ship.prepare({"order": "3"}))
        connection.commit()
    with Session(engine) as session, session.begin():
        three = app.sync.within(session).enqueue(ship.prepare({"order": "4"}))
    assert sorted(view.id for view in app.sync.find()) == sorted([two.id, three.id])
    assert two.get().state is State.AVAILABLE
    assert one.id != two.id
    app.sync.close()


async def test_the_twin_refuses_an_async_connection(
    shop: Piecework, ship: Any, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session:
        with pytest.raises(TypeError, match=r"await app\.within"):
            shop.sync.within(session).enqueue(ship.prepare("1"))
    assert await shop.find() == []


async def test_a_job_waits_for_a_commit_in_another_thread(
    shop: Piecework, ship: Any, path: Path
) -> None:
    def sell() -> Any:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("INSERT INTO orders VALUES ('1')")
            handle = shop.sync.within(connection).enqueue(ship.prepare("1"))
            connection.commit()
            return handle.id

    async with shop.worker(poll=600):
        job_id = await asyncio.to_thread(sell)
        assert await shop.job(job_id).result(timeout=5) == "1"
    assert await until(lambda: contents(shop, path)) == (["1"], ["1"])
