"""Write inside a transaction of the caller's: sqlite3, or SQLAlchemy on SQLite."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any

from piecework.stores.sqlite.applying import apply
from piecework.stores.sqlite.connect import Connection, migrate, translate
from piecework.stores.sqlite.inserting import insert
from piecework.stores.sqlite.tx import savepoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from piecework.core.job import NewJob
    from piecework.core.lifecycle import Transition
    from piecework.ports import Bound, Inserted, Refused
    from piecework.stores.sqlite.connect import Settings
    from piecework.stores.sqlite.tx import Cursor, Tx

__all__ = ["bind"]


class _OwnCursors(Connection):
    """The caller's sqlite3 connection, whatever row factory they use."""

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Cursor:
        """Run one statement."""
        cursor = self.raw.cursor()
        cursor.row_factory = None
        return cursor.execute(self.named(sql), params)


class _ThroughAlchemy:
    """A SQLAlchemy Connection: statements go through it, so that its bookkeeping stays right."""

    def __init__(self, connection: Any, prefix: str) -> None:
        self._connection = connection
        self._names = Connection(connection.connection.dbapi_connection, prefix)

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Cursor:
        """Run one statement."""
        given = params if isinstance(params, dict) else tuple(params)
        result: Cursor = self._connection.exec_driver_sql(self._names.named(sql), given)
        return result


class _Inline:
    """A blocking connection: the coroutines never suspend."""

    def __init__(self, tx: Tx, settings: Settings, now: Callable[[], int]) -> None:
        self._tx = tx
        self._settings = settings
        self._now = now
        self._ready = False

    def begin(self) -> None:
        """A transaction is open that may write."""
        # One that begins by reading may not write any more once somebody else has written.
        self._translated(lambda tx: tx.execute("BEGIN IMMEDIATE"))

    def _run(self, work: Callable[[Tx], Any]) -> Any:
        def run(tx: Tx) -> Any:
            if not self._ready:
                # Made inside the caller's transaction where the file has no tables yet: another
                # connection of ours would wait for the caller's lock for ever.
                migrate(tx, self._settings, inside=True)
                self._ready = True
            with savepoint(tx):
                return work(tx)

        return self._translated(run)

    def _translated(self, work: Callable[[Tx], Any]) -> Any:
        try:
            return work(self._tx)
        except Exception as error:
            cause = getattr(error, "orig", error)  # SQLAlchemy wraps what the driver raised
            if isinstance(cause, sqlite3.Error):
                raise translate(cause, self._settings) from error
            raise

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Bound.insert`."""
        answers: list[Inserted] = self._run(lambda tx: insert(tx, jobs, self._now()))
        return answers

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Bound.apply`."""
        answers: list[Refused] = self._run(lambda tx: apply(tx, transitions, self._now()))
        return answers


class _AlchemyAsync:
    """An AsyncConnection or AsyncSession: the same, inside its `run_sync`."""

    def __init__(self, connection: Any, settings: Settings, now: Callable[[], int]) -> None:
        self._connection = connection
        self._settings = settings
        self._now = now

    def _bound(self, sync_object: Any) -> _Inline:
        return _alchemy(sync_object, self._settings, self._now)

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Bound.insert`."""

        def insert(connection: Any) -> Any:
            return finish(self._bound(connection).insert(jobs))

        answers: list[Inserted] = await self._connection.run_sync(insert)
        return answers

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Bound.apply`."""

        def apply(connection: Any) -> Any:
            return finish(self._bound(connection).apply(transitions))

        answers: list[Refused] = await self._connection.run_sync(apply)
        return answers


def finish(coroutine: Any) -> Any:
    """Return what a coroutine returns that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a blocking connection may not suspend")


def bind(connection: Any, settings: Settings, now: Callable[[], int]) -> Bound:
    """Return a Bound for the connection; TypeError for one we do not know."""
    if isinstance(connection, sqlite3.Connection):
        tx = _OwnCursors(connection, settings.prefix)
        return _begun(tx, connection, settings, now)
    module = type(connection).__module__.partition(".")[0]
    if module == "sqlalchemy" or hasattr(connection, "run_sync"):
        if hasattr(connection, "run_sync"):
            return _AlchemyAsync(connection, settings, now)
        return _alchemy(connection, settings, now)
    if hasattr(connection, "get_bind"):  # a Session of a class of the caller's own
        return _alchemy(connection, settings, now)
    what = type(connection).__qualname__
    raise TypeError(
        f"app.within() on SQLite takes a sqlite3 connection or a SQLAlchemy connection or session, "
        f"not {what}"
    )


def _alchemy(connection: Any, settings: Settings, now: Callable[[], int]) -> _Inline:
    # A Session gives its connection, a scoped session too; a Connection has no such method.
    plain = connection.connection() if hasattr(connection, "get_bind") else connection
    name = plain.dialect.name
    if name != "sqlite":
        raise TypeError(f"this app keeps its jobs in SQLite, the session is on {name}")
    tx = _ThroughAlchemy(plain, settings.prefix)
    return _begun(tx, plain.connection.driver_connection, settings, now)


def _begun(tx: Tx, driver: Any, settings: Settings, now: Callable[[], int]) -> _Inline:
    """Return the Bound; a transaction of the caller's is open.

    sqlite3 itself opens one only at the first write, and a savepoint outside of any would commit
    on its own. `driver` is sqlite3's connection, or one like it.
    """
    _check_file(tx, settings)
    bound = _Inline(tx, settings, now)
    if not driver.in_transaction:
        autocommit = getattr(driver, "autocommit", -1)  # -1: as before Python 3.12
        if autocommit is True or (driver.isolation_level is None and autocommit == -1):
            raise ValueError(
                "the connection is in autocommit mode with no transaction open: "
                'execute("BEGIN") first, or use app.enqueue'
            )
        bound.begin()
    return bound


def _check_file(tx: Tx, settings: Settings) -> None:
    """Jobs written to another file would never run."""
    file = tx.execute("PRAGMA database_list").fetchall()[0][2]
    if os.path.realpath(file) != os.path.realpath(settings.path):
        raise ValueError(
            f"the connection is on {file or 'a database in memory'}, this app keeps its jobs in "
            f"{settings.path}: open the app on the same file"
        )
