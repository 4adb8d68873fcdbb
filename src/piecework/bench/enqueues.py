"""How many jobs a second are acknowledged: one by one, by many at once, in bulk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from piecework.bench import bare, peers
from piecework.bench.jobs import Jobs
from piecework.bench.result import Result
from piecework.bench.rounds import Stopwatch, alternate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.bench.bench import Bench

__all__ = ["at_once", "bulk", "memory", "one_by_one"]

PRODUCERS: Final = 100


def enqueue(url: str, count: int, producers: int = 1) -> float:
    """Return how many single enqueues a second so many tasks get acknowledged."""

    async def produce(jobs: Jobs, each: int) -> None:
        for number in range(each):
            await jobs.echo.enqueue(number)

    async def main() -> float:
        jobs = Jobs(url)
        async with jobs.app:
            await produce(jobs, 1)
            with Stopwatch() as watch:
                await asyncio.gather(*(produce(jobs, count // producers) for _ in range(producers)))
        return watch.rate(count // producers * producers)

    return asyncio.run(main())


def enqueue_bulk(url: str, count: int) -> float:
    """Return how many jobs a second go in with one enqueue_many, checking them included."""

    async def main() -> float:
        jobs = Jobs(url)
        async with jobs.app:
            with Stopwatch() as watch:
                prepared = [jobs.echo.prepare(number) for number in range(count)]
                await jobs.app.enqueue_many(prepared)
        return watch.rate(count)

    return asyncio.run(main())


# ── rows ─────────────────────────────────────────────────────────────────────────────────────


def memory(bench: Bench) -> Iterator[Result]:
    """Ours in memory beside a bare task for each job; bulk beside one by one."""
    count = bench.scale.memory
    single, many, task = alternate(
        bench.scale.rounds,
        lambda: enqueue(bench.store(), count),
        lambda: enqueue_bulk(bench.store(), count),
        lambda: bare.run_tasks(count),
    )
    yield Result(
        what="enqueue one by one",
        ours=(single,),
        unit="jobs/s",
        yardstick="create_task + await",
        theirs=task,
        note=f"{1e6 / single:.1f} µs a job",
    )
    yield Result(
        what=f"enqueue in bulk, {count:,} at once",
        ours=(many,),
        unit="jobs/s",
        yardstick="one by one",
        theirs=single,
        note=f"{1e6 / many:.1f} µs a job",
    )


def one_by_one(bench: Bench) -> Iterator[Result]:
    """Each enqueue awaited before the next one, beside commits of one row; and beside Huey."""
    count = bench.scale.one_by_one
    contestants = [
        lambda: enqueue(bench.store(), count),
        lambda: bare.commit_each(bench.file(), count),
    ]
    huey = bench.peers and peers.has_huey()
    if huey:
        contestants.append(lambda: peers.huey_enqueue(bench.file("-huey"), count))
    ours, floor, *rest = alternate(bench.scale.rounds, *contestants)
    yield Result(
        what="enqueue one by one",
        ours=(ours,),
        unit="jobs/s",
        yardstick="one-row commits",
        theirs=floor,
        least=0.8,
        note=f"{1e6 / ours:.0f} µs a job; bare {1e6 / floor:.0f} µs",
    )
    if huey:
        yield Result(
            what="enqueue one by one", ours=(ours,), unit="jobs/s", yardstick="Huey", theirs=rest[0]
        )


def at_once(bench: Bench) -> Iterator[Result]:
    """Single enqueues of a hundred tasks, beside a bare group commit for as many."""
    count = bench.scale.producers
    ours, floor = alternate(
        bench.scale.rounds,
        lambda: enqueue(bench.store(), count, PRODUCERS),
        lambda: bare.commit_groups(bench.file(), PRODUCERS, count),
    )
    yield Result(
        what=f"enqueue, {PRODUCERS} producers at once",
        ours=(ours,),
        unit="jobs/s",
        yardstick="bare group commit",
        theirs=floor,
        least=0.4,
        note=f"{1e6 / ours:.1f} µs a job; bare {1e6 / floor:.1f} µs",
    )


def bulk(bench: Bench) -> Iterator[Result]:
    """One enqueue_many, beside one executemany into a bare table."""
    count = bench.scale.drain
    ours, floor = alternate(
        bench.scale.rounds,
        lambda: enqueue_bulk(bench.store(), count),
        lambda: bare.insert_at_once(bench.file(), count),
    )
    yield Result(
        what=f"enqueue in bulk, {count:,} at once",
        ours=(ours,),
        unit="jobs/s",
        yardstick="bare executemany",
        theirs=floor,
        note=f"{1e6 / ours:.1f} µs a job; bare {1e6 / floor:.1f} µs",
    )
