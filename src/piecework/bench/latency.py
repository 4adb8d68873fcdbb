"""How long after its enqueue began a job's handler begins."""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import TYPE_CHECKING, Final

from piecework.bench import bare
from piecework.bench.child import Child
from piecework.bench.drains import drain
from piecework.bench.jobs import CONCURRENCY, Jobs, WentWrong
from piecework.bench.result import Result
from piecework.bench.rounds import p50_p99

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from piecework.bench.bench import Bench

__all__ = ["across", "busy", "idle", "memory"]

_PATIENCE_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.005
_WARM_UP_SECONDS: Final = 0.5


async def _enqueue_now_and_then(
    jobs: Jobs, count: int, beside: Callable[[], float] | None
) -> list[float]:
    """So many jobs are enqueued, far apart; return what `beside`, called as often, returned."""
    others: list[float] = []
    for _ in range(count):
        await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311 - no secret
        if beside is not None:
            others.append(beside())
            await asyncio.sleep(0.005)
        await jobs.late.enqueue(perf_counter())
    return others


def memory(bench: Bench) -> Iterator[Result]:
    """The worker idles in the process that enqueues; no disk is in the way."""
    late, _ = _idle(bench, None)
    yield _row("latency idle, p50 / p99", late, [], (0.5, 2))


def idle(bench: Bench) -> Iterator[Result]:
    """The worker idles in the process that enqueues."""
    with bare.single_commits(bench.file()) as commit:
        late, commits = _idle(bench, commit)
    yield _row("latency idle, same process, p50 / p99", late, commits, (0.5, 2))


def _idle(bench: Bench, beside: Callable[[], float] | None) -> tuple[list[float], list[float]]:
    count = bench.scale.latencies
    url = bench.store()

    async def main() -> tuple[list[float], list[float]]:
        jobs = Jobs(url)
        async with jobs.app, jobs.app.worker(concurrency=CONCURRENCY):
            others = await _enqueue_now_and_then(jobs, count, beside)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while len(jobs.lateness) < count:  # noqa: ASYNC110 - at most once
                    await asyncio.sleep(0.01)
        return jobs.lateness, others

    return asyncio.run(main())


def across(bench: Bench) -> Iterator[Result]:
    """The worker idles in another process."""
    count = bench.scale.latencies
    url = bench.store()

    async def main(commit: Callable[[], float]) -> tuple[list[float], list[float]]:
        jobs = Jobs(url)
        async with jobs.app, Child(url) as child:
            others = await _enqueue_now_and_then(jobs, count, commit)
            return await _lateness(child, count), others

    with bare.single_commits(bench.file()) as commit:
        late, commits = asyncio.run(main(commit))
    yield _row("latency idle, two processes, p50 / p99", late, commits, (3, 8))


def _row(
    what: str, late: list[float], commits: list[float], ceiling: tuple[float, float]
) -> Result:
    return Result(
        what=what,
        ours=p50_p99(late),
        unit="ms",
        yardstick="one-row commit",
        theirs=p50_p99(commits)[0] if commits else None,
        ceiling=ceiling,
    )


async def _lateness(child: Child, count: int) -> list[float]:
    late: list[float] = []
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while len(late) < count:
            await asyncio.sleep(0.05)
            late += (await child.report()).lateness
    return late


async def _enqueue_evenly(jobs: Jobs, rate: float, seconds: float) -> int:
    """Return how many jobs were enqueued."""
    sent, began = 0, perf_counter()
    while (passed := perf_counter() - began) < seconds:
        behind = int(passed * rate) - sent
        if behind > 0:
            await jobs.app.enqueue_many([jobs.late.prepare(perf_counter()) for _ in range(behind)])
            sent += behind
        await asyncio.sleep(_TICK_SECONDS)
    return sent


def busy(bench: Bench) -> Iterator[Result]:
    """Jobs come evenly, half as many as one worker process can drain; it is another process."""
    rate = drain(bench.store(), bench.scale.drain) / 2
    url = bench.store()

    async def main() -> tuple[list[float], float]:
        jobs = Jobs(url)
        async with jobs.app, Child(url) as child:
            sent = await _enqueue_evenly(jobs, rate, _WARM_UP_SECONDS)
            await _lateness(child, sent)
            began = perf_counter()
            sent = await _enqueue_evenly(jobs, rate, bench.scale.busy_seconds)
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
