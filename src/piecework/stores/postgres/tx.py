"""One connection in use, its statements in our namespace and stamped with one clock."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime

__all__ = ["NOW", "SECOND", "Driver", "Tx", "named", "savepoint"]

NOW: Final = "t AS MATERIALIZED (SELECT coalesce($1::timestamptz, clock_timestamp()) AS now)"
"""The instant of a statement: the server's, or the given clock's. The first parameter is `at`."""

SECOND: Final = 1_000_000
"""Durations are stored, and given, in microseconds."""


class Driver(Protocol):
    """What we need of a connection: asyncpg's own methods."""

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Run one statement and return its rows."""
        ...

    async def execute(self, query: str) -> Any:
        """Run statements without parameters."""
        ...


@lru_cache(maxsize=1024)
def named(sql: str, namespace: str) -> str:
    """Return the statement with the namespace's schema."""
    if namespace == "piecework":
        return sql
    return sql.replace("piecework.", f'"{namespace}".')


class Tx:
    """A connection, in a transaction of ours or of the caller's, or in none for one statement."""

    __slots__ = ("_driver", "_namespace", "at")

    def __init__(self, driver: Driver, namespace: str, at: datetime | None) -> None:
        self._driver = driver
        self._namespace = namespace
        self.at = at

    async def fetch(self, sql: str, *params: Any) -> list[Any]:
        """Run one statement and return its rows."""
        return await self._driver.fetch(named(sql, self._namespace), *params)

    async def stamped(self, sql: str, *params: Any) -> list[Any]:
        """As `fetch`, for a statement whose first parameter is the instant."""
        return await self._driver.fetch(named(sql, self._namespace), self.at, *params)

    async def one(self, sql: str, *params: Any) -> Any:
        """Return the first row or None."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    async def copy(
        self, schema: str, table: str, columns: Sequence[str], records: Sequence[Any]
    ) -> None:
        """Add rows by COPY."""
        copy_in: Any = getattr(self._driver, "copy_records_to_table")  # noqa: B009 - ours alone
        await copy_in(table, schema_name=schema, columns=columns, records=records)

    async def run(self, sql: str) -> None:
        """Run statements without parameters."""
        await self._driver.execute(named(sql, self._namespace))


@asynccontextmanager
async def savepoint(tx: Tx) -> AsyncGenerator[None]:
    """What happens inside is undone as one if it raises."""
    await tx.run("SAVEPOINT piecework_part")
    try:
        yield
    except Exception:
        await tx.run("ROLLBACK TO SAVEPOINT piecework_part; RELEASE SAVEPOINT piecework_part")
        raise
    await tx.run("RELEASE SAVEPOINT piecework_part")
