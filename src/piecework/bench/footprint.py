"""What a worker costs that does nothing, and how much memory one has that did a lot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from piecework.bench.child import Child
from piecework.bench.drains import echoes
from piecework.bench.jobs import Jobs
from piecework.bench.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.bench.bench import Bench
    from piecework.bench.child import Report

__all__ = ["idle", "memory"]

_SETTLING_SECONDS: Final = 1.0
_CHUNK: Final = 50_000


def idle(bench: Bench) -> Iterator[Result]:
    """A worker process without a job."""
    url = bench.store()

    async def main() -> tuple[Report, Report]:
        async with Child(url, count=True) as child:
            await asyncio.sleep(min(_SETTLING_SECONDS, bench.scale.idle_seconds))
            before = await child.report()
            await asyncio.sleep(bench.scale.idle_seconds)
            return before, await child.report()

    before, after = asyncio.run(main())
    seconds = after.at - before.at
    yield Result(
        what=f"idle worker, transactions over {seconds:.0f} s",
        ours=((after.transactions - before.transactions) / seconds,),
        unit="/s",
        ceiling=(2,),
    )
    yield Result(
        what=f"idle worker, CPU over {seconds:.0f} s",
        ours=(100 * (after.cpu_seconds - before.cpu_seconds) / seconds,),
        unit="%",
        ceiling=(1,),
    )


def memory(bench: Bench) -> Iterator[Result]:
    """A worker process at its start, a tenth of the way, and at the end."""
    url, count = bench.store(), bench.scale.soak

    async def main() -> tuple[Report, Report, Report]:
        jobs = Jobs(url)
        async with jobs.app, Child(url) as child:
            start = await child.report()
            await _run(jobs, child, count // 10)
            early = await child.report()
            await _run(jobs, child, count)
            return start, early, await child.report()

    async def _run(jobs: Jobs, child: Child, until: int) -> None:
        done = (await child.report()).ran
        while done < until:
            part = min(_CHUNK, until - done)
            await echoes(jobs, part)
            while (await child.report()).ran < done + part:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
            done += part

    start, early, late = asyncio.run(main())
    yield Result(
        what="worker RSS at its start",
        ours=(start.resident_mib,),
        unit="MiB",
        ceiling=(60,),
    )
    yield Result(
        what=f"worker RSS after {late.ran:,} jobs",
        ours=(late.resident_mib,),
        unit="MiB",
        yardstick=f"after {early.ran:,}",
        theirs=early.resident_mib,
        most=1.1,
    )
