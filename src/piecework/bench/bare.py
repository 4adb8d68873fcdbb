"""The yardsticks: the least that asyncio or SQLite must do for the same, without a queue around.

Tables are bare (an integer key and a text), the file is in WAL mode with synchronous FULL, as ours.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from piecework.bench.rounds import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = [
    "claim_and_ack",
    "commit_each",
    "commit_groups",
    "insert_at_once",
    "run_tasks",
    "single_commits",
]

_BODY: Final = '{"number":123456}'
_INSERT: Final = "INSERT INTO bare (state, body) VALUES (0, ?)"
_CLAIM: Final = """
    UPDATE bare SET state = 1
    WHERE id IN (SELECT id FROM bare WHERE state = 0 ORDER BY id LIMIT 100)
    RETURNING id, body"""
_ACK: Final = "UPDATE bare SET state = 2 WHERE id BETWEEN ? AND ?"


def run_tasks(count: int) -> float:
    """Return how many empty coroutines a second run, each as a task that is awaited."""

    async def nothing() -> None:
        pass

    async def main() -> float:
        with Stopwatch() as watch:
            for _ in range(count):
                await asyncio.create_task(nothing())
        return watch.rate(count)

    return asyncio.run(main())


def _open(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS bare "
        "(id INTEGER PRIMARY KEY, state INTEGER NOT NULL, body TEXT NOT NULL)"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS bare_state ON bare (id) WHERE state = 0")
    return connection


def commit_each(file: Path, count: int) -> float:
    """Return how many one-row inserts a second are committed, one by one."""
    with closing(_open(file)) as connection, Stopwatch() as watch:
        for _ in range(count):
            connection.execute(_INSERT, (_BODY,))
    return watch.rate(count)


@contextmanager
def single_commits(file: Path) -> Generator[Callable[[], float]]:
    """Yield what commits one row and returns how many seconds that took."""
    with closing(_open(file)) as connection:

        def commit() -> float:
            with Stopwatch() as watch:
                connection.execute(_INSERT, (_BODY,))
            return watch.seconds

        yield commit


def insert_at_once(file: Path, count: int) -> float:
    """Return how many rows a second go in with one executemany and one commit."""
    with closing(_open(file)) as connection, Stopwatch() as watch:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [(_BODY,)] * count)
        connection.execute("COMMIT")
    return watch.rate(count)


def claim_and_ack(file: Path, count: int) -> float:
    """Return how many rows a second are claimed and acknowledged, 100 with two commits."""
    with closing(_open(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [(_BODY,)] * count)
        connection.execute("COMMIT")
        done = 0
        with Stopwatch() as watch:
            while rows := connection.execute(_CLAIM).fetchall():
                ids = [row_id for row_id, _ in rows]
                connection.execute(_ACK, (min(ids), max(ids)))
                done += len(rows)
    assert done == count
    return watch.rate(done)


def commit_groups(file: Path, producers: int, count: int) -> float:
    """Return how many one-row inserts a second that many tasks get acknowledged.

    One thread takes all that waits, inserts row by row, commits once, then answers every task.
    """
    with closing(_open(file)) as connection:
        return asyncio.run(_commit_groups(connection, producers, count // producers))


async def _commit_groups(connection: sqlite3.Connection, producers: int, each: int) -> float:
    loop = asyncio.get_running_loop()
    waiting: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def answer(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)

    def write() -> None:
        while (first := waiting.get()) is not None:
            futures = [first]
            while not waiting.empty() and (another := waiting.get()) is not None:
                futures.append(another)
            connection.execute("BEGIN IMMEDIATE")
            for _ in futures:
                connection.execute(_INSERT, (_BODY,))
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(answer, futures)

    async def produce() -> None:
        for _ in range(each):
            future = loop.create_future()
            waiting.put(future)
            await future

    thread = threading.Thread(target=write, name="bare-writer")
    thread.start()
    with Stopwatch() as watch:
        await asyncio.gather(*(produce() for _ in range(producers)))
    waiting.put(None)
    thread.join()
    return watch.rate(producers * each)
