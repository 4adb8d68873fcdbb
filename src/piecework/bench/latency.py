"""How long after its enqueue began a job's handler begins."""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import TYPE_CHECKING, Final

from piecework.bench.child import Child
from piecework.bench.drains import drain
from piecework.bench.jobs import CONCURRENCY, Jobs, WentWrong
from piecework.bench.result import Result
from piecework.bench.rounds import p50_p99

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.bench.bench import Bench

__all__ = ["busy", "idle", "idle_across"]

_PATIENCE_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.005


async def _enqueue_now_and_then(jobs: Jobs, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(random.uniform(0.005, 0.025))  # noqa: S311 - no secret
        await jobs.late.enqueue(perf_counter())


def idle(bench: Bench) -> Iterator[Result]:
    """The worker idles in the process that enqueues."""
    count = bench.scale.latencies
    url = bench.store()

    async def main() -> list[float]:
        jobs = Jobs(url)
        async with jobs.app, jobs.app.worker(concurrency=CONCURRENCY):
            await _enqueue_now_and_then(jobs, count)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while len(jobs.lateness) < count:  # noqa: ASYNC110 - at most once
                    await asyncio.sleep(0.01)
        return jobs.lateness

    yield Result(
        what="latency idle, same process, p50 / p99",
        ours=p50_p99(asyncio.run(main())),
        unit="ms",
        ceiling=(0.5, 2),
        note="from the call of enqueue to the handler's first line",
    )


def idle_across(bench: Bench) -> Iterator[Result]:
    """The worker idles in another process."""
    count = bench.scale.latencies
    url = bench.store()

    async def main() -> list[float]:
        jobs = Jobs(url)
        async with jobs.app, Child(url) as child:
            await _enqueue_now_and_then(jobs, count)
            return await _lateness(child, count)

    yield Result(
        what="latency idle, two processes, p50 / p99",
        ours=p50_p99(asyncio.run(main())),
        unit="ms",
        ceiling=(3, 8),
    )


async def _lateness(child: Child, count: int) -> list[float]:
    late: list[float] = []
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while len(late) < count:
            await asyncio.sleep(0.05)
            late += (await child.report()).lateness
    return late


def busy(bench: Bench) -> Iterator[Result]:
    """Jobs come evenly, half as many as one worker process can drain; it is another process."""
    rate = drain(bench.store(), bench.scale.drain) / 2
    url = bench.store()

    async def main() -> tuple[list[float], float]:
        jobs = Jobs(url)
        async with jobs.app, Child(url) as child:
            sent, began = 0, perf_counter()
            while (passed := perf_counter() - began) < bench.scale.busy_seconds:
                behind = int(passed * rate) - sent
                if behind > 0:
                    await jobs.app.enqueue_many(
                        [jobs.late.prepare(perf_counter()) for _ in range(behind)]
                    )
                    sent += behind
                await asyncio.sleep(_TICK_SECONDS)
            reached = sent / (perf_counter() - began)
            return await _lateness(child, sent), reached

    late, reached = asyncio.run(main())
    if not late:
        raise WentWrong("no job ran at half of the drain rate")
    _, p99 = p50_p99(late)
    yield Result(
        what="latency at half of the drain rate, two processes, p99",
        ours=(p99,),
        unit="ms",
        ceiling=(20,),
        note=f"{reached:,.0f} jobs/s were enqueued meanwhile",
    )
