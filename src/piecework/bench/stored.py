"""Fill a file with jobs that are not to run now, quickly: by SQL, in the store's own schema."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from piecework.bench.jobs import QUEUE
from piecework.bench.place import url_of
from piecework.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["fill"]

_DAY: Final = 86_400_000_000

# Ids as UUIDv7 are: growing, all of them older than those that are made from now on.
FILL: Final = """
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)
    INSERT INTO piecework_job (id, kind, queue, state, max_attempts, max_crashes, attempt, fence,
        enqueued_at, due_at, args, worker, ran_on, started_at, finished_at, result)
    SELECT CAST(:prefix || printf('%014d', n) AS BLOB), 'bench.echo', :queue, :state, 5, 3,
        :finished, :finished, :now - :day + n, iif(:finished, :now - :day + n, :now + :day + n),
        printf('{"number":%d}', n), iif(:finished, zeroblob(16), NULL),
        iif(:finished, 'bench', NULL), iif(:finished, :now - :day + n, NULL),
        iif(:finished, :now - :day + n, NULL), iif(:finished, CAST(n AS TEXT), NULL)
    FROM number"""


def fill(file: Path, *, future: int, finished: int) -> str:
    """Return the URL of the file, which holds so many jobs for tomorrow and from yesterday."""

    async def make() -> None:
        store = SqliteStore(file)
        await store.open()
        await store.close()

    asyncio.run(make())
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for state, count in (("completed", finished), ("scheduled", future)):
            values = {
                "count": count,
                "prefix": "\x00f" if state == "completed" else "\x00s",
                "queue": QUEUE,
                "state": state,
                "finished": state == "completed",
                "now": time.time_ns() // 1000,
                "day": _DAY,
            }
            if count:
                connection.execute(FILL, values)
        # On the disk before anything is measured, or its writing would be measured, too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return url_of(file)
