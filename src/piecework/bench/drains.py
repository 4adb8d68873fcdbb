"""How many waiting jobs a second a worker runs and settles: plain, limited, keyed, amid others."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from piecework.bench import bare, peers
from piecework.bench.child import Child
from piecework.bench.jobs import CONCURRENCY, QUEUE, Jobs
from piecework.bench.result import Result
from piecework.bench.rounds import Stopwatch, alternate
from piecework.bench.stored import fill
from piecework.core.job import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from piecework.bench.bench import Bench

__all__ = ["drain", "echoes", "keyed", "limited", "memory", "plain", "stored", "together"]

Filling: TypeAlias = Callable[[Jobs, int], Awaitable[None]]

_UNFINISHED: Final = "SELECT 1 FROM piecework_job WHERE state IN ('available', 'running') LIMIT 1"
_RUNNING: Final = "SELECT count(*) FROM piecework_job WHERE state = 'running'"


async def echoes(jobs: Jobs, count: int) -> None:
    """Jobs that return a result."""
    for start in range(0, count, 10_000):
        numbers = range(start, min(count, start + 10_000))
        await jobs.app.enqueue_many([jobs.echo.prepare(number) for number in numbers])


def limited_echoes(limit: int) -> Filling:
    """The same in a queue of which so many may run at once, over the whole fleet."""

    async def fill_in(jobs: Jobs, count: int) -> None:
        await jobs.app.queues.limit(QUEUE, running=limit)
        await echoes(jobs, count)

    return fill_in


async def keyed_echoes(jobs: Jobs, count: int) -> None:
    """The same, each with a serial key of its own."""
    for start in range(0, count, 10_000):
        numbers = range(start, min(count, start + 10_000))
        await jobs.app.enqueue_many([jobs.keyed.prepare(number) for number in numbers])


async def nothings(jobs: Jobs, count: int) -> None:
    """Jobs that take and return nothing."""
    await jobs.app.enqueue_many([jobs.nothing.prepare() for _ in range(count)])


def drain(url: str, count: int, filling: Filling = echoes, concurrency: int = CONCURRENCY) -> float:
    """Return how many jobs a second run, from the worker's start to its end, all settled."""

    async def main() -> float:
        jobs = Jobs(url)
        async with jobs.app:
            before = (await jobs.app.count()).get((QUEUE, State.COMPLETED), 0)
            await filling(jobs, count)
            with Stopwatch() as watch:
                await jobs.app.run_until_idle(concurrency=concurrency)
            await jobs.expect(before + count)
        return watch.rate(count)

    return asyncio.run(main())


# ── rows ─────────────────────────────────────────────────────────────────────────────────────


def memory(bench: Bench) -> Iterator[Result]:
    """Ours in memory beside a bare task for each job."""
    count = bench.scale.memory
    ours, theirs = alternate(
        bench.scale.rounds,
        lambda: drain(bench.store(), count, nothings),
        lambda: bare.run_tasks(count),
    )
    yield Result(
        what="drain",
        ours=(ours,),
        unit="jobs/s",
        yardstick="create_task + await",
        theirs=theirs,
        least=0.2,
        note=f"{1e6 / ours:.1f} µs a job, claim to settle; bare {1e6 / theirs:.1f} µs",
    )


def plain(bench: Bench) -> Iterator[Result]:
    """Ours with results and history, synchronous FULL, beside bare batches and beside Huey."""
    scale = bench.scale
    contestants = [
        lambda: drain(bench.store(), scale.drain),
        lambda: bare.claim_and_ack(bench.file(), scale.drain),
    ]
    huey = bench.peers and peers.has_huey()
    if huey:
        contestants.append(lambda: peers.huey_drain(bench.file("-huey"), scale.peers))
    ours, floor, *rest = alternate(scale.rounds, *contestants)
    yield Result(
        what="drain",
        ours=(ours,),
        unit="jobs/s",
        yardstick="claim + ack, by 100",
        theirs=floor,
        note=f"{1e6 / ours:.1f} µs a job, claim to settle",
    )
    if huey:
        yield Result(
            what="drain",
            ours=(ours,),
            unit="jobs/s",
            yardstick="Huey",
            theirs=rest[0],
            least=5,
        )


def limited(bench: Bench) -> Iterator[Result]:
    """Ours with a limit that is as large as the worker, beside the same without."""
    yield _limited(bench, CONCURRENCY)
    yield _limited(bench, 10 * CONCURRENCY)


def _limited(bench: Bench, limit: int) -> Result:
    assert bench.place is not None
    count, filling = bench.scale.drain, limited_echoes(limit)
    ours, free = alternate(
        bench.scale.rounds,
        lambda: drain(bench.store(), count, filling, limit),
        lambda: drain(bench.store(), count, echoes, limit),
    )
    file = bench.place.fresh()
    with _Watch(file) as watch:  # a round of its own: looking takes time
        drain(bench.url(file), count, filling, limit)
    return Result(
        what=f"drain, {limit} slots, queue limited to {limit} running",
        ours=(ours,),
        unit="jobs/s",
        yardstick="unlimited",
        theirs=free,
        least=0.8,
        note=f"at most {watch.most} ran at once, seen {watch.looks:,} times",
        broken=f"{watch.most} ran at once" if watch.most > limit else "",
    )


class _Watch:
    """Looks again and again how many jobs are running; `most` is the most it saw."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="bench-watch")
        self.most = 0
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        with closing(sqlite3.connect(self._file)) as connection:
            while not self._ended.wait(0.001):
                try:
                    (running,) = connection.execute(_RUNNING).fetchone()
                except sqlite3.OperationalError:
                    continue  # the tables are not there yet
                self.most = max(self.most, running)
                self.looks += 1


def keyed(bench: Bench) -> Iterator[Result]:
    """Ours with a serial key for each job, beside the same without."""
    count = bench.scale.keyed
    ours, free = alternate(
        bench.scale.rounds,
        lambda: drain(bench.store(), count, keyed_echoes),
        lambda: drain(bench.store(), count),
    )
    yield Result(
        what=f"drain, {count:,} distinct serial keys",
        ours=(ours,),
        unit="jobs/s",
        yardstick="without keys",
        theirs=free,
        least=0.5,
    )


def stored(bench: Bench) -> Iterator[Result]:
    """Ours in a full table beside an empty one, and what a job costs in each."""
    scale = bench.scale
    bench.tell(f"storing {2 * scale.stored:,} jobs")
    full = fill(bench.file("-full"), future=scale.stored, finished=scale.stored)
    bench.tell(f"drain amid {2 * scale.stored:,} jobs")
    ours, empty = alternate(
        scale.rounds,
        lambda: drain(full, scale.drain),
        lambda: drain(bench.store(), scale.drain),
    )
    yield Result(
        what=f"drain amid {scale.stored:,} future and as many finished jobs",
        ours=(ours,),
        unit="jobs/s",
        yardstick="an empty table",
        theirs=empty,
        least=0.8,
    )
    few = fill(bench.file("-bare"), future=0, finished=scale.few_stored)
    cost_full, cost_few = alternate(
        scale.rounds, lambda: _cost(full, scale.drain), lambda: _cost(few, scale.drain)
    )
    yield Result(
        what=f"cost of a job, enqueue to settled, amid {2 * scale.stored:,} stored",
        ours=(cost_full,),
        unit="µs",
        yardstick=f"amid {scale.few_stored:,}",
        theirs=cost_few,
        most=1.2,
    )


def _cost(url: str, count: int) -> float:
    """Return the microseconds of one job, from its bulk enqueue to its settling."""

    async def main() -> float:
        jobs = Jobs(url)
        async with jobs.app:
            before = (await jobs.app.count()).get((QUEUE, State.COMPLETED), 0)
            with Stopwatch() as watch:
                await echoes(jobs, count)
                await jobs.app.run_until_idle(concurrency=CONCURRENCY)
            await jobs.expect(before + count)
        return 1e6 / watch.rate(count)

    return asyncio.run(main())


def together(bench: Bench) -> Iterator[Result]:
    """Two worker processes on one file beside one."""
    count = bench.scale.drain
    two, one = alternate(
        bench.scale.rounds,
        lambda: _drain_by_processes(bench, 2, count),
        lambda: _drain_by_processes(bench, 1, count),
    )
    yield Result(
        what="drain, 2 worker processes",
        ours=(two,),
        unit="jobs/s",
        yardstick="1 worker process",
        theirs=one,
    )


def _drain_by_processes(bench: Bench, processes: int, count: int) -> float:
    assert bench.place is not None
    file = bench.place.fresh()

    async def main() -> float:
        jobs = Jobs(bench.url(file))
        async with jobs.app, AsyncExitStack() as stack:
            await jobs.app.queues.pause(QUEUE)
            await echoes(jobs, count)
            for _ in range(processes):
                await stack.enter_async_context(Child(bench.url(file)))
            with closing(sqlite3.connect(file)) as connection, Stopwatch() as watch:
                await jobs.app.queues.resume(QUEUE)
                unfinished = True
                while unfinished:
                    await asyncio.sleep(0.002)
                    unfinished = connection.execute(_UNFINISHED).fetchone() is not None
            await jobs.expect(count)
        return watch.rate(count)

    return asyncio.run(main())
