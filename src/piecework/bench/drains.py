"""How many waiting jobs a second a worker runs and settles: plain, limited, keyed, amid others."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from piecework.bench import bare, peers
from piecework.bench.child import Child
from piecework.bench.jobs import CONCURRENCY, QUEUE, Jobs
from piecework.bench.result import Result
from piecework.bench.rounds import Stopwatch, alternate
from piecework.bench.stored import fill

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from piecework.bench.bench import Bench

__all__ = ["keyed", "limited", "memory", "plain", "stored", "together"]

Fill = "Callable[[Jobs], Awaitable[None]]"


def drain(url: str, count: int, fill_in: Callable[[Jobs], Awaitable[None]]) -> float:
    """Return how many jobs a second run, from the worker's start to its end, all settled."""

    async def main() -> float:
        jobs = Jobs(url)
        async with jobs.app:
            before = (await jobs.app.count()).get((QUEUE, State.COMPLETED), 0)
            await fill_in(jobs)
            with Stopwatch() as watch:
                await jobs.drain(before + count)
        return watch.rate(count)

    return asyncio.run(main())
