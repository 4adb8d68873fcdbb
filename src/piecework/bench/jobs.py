"""The jobs that are measured: one does nothing, one returns a result, one tells how late it is."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from piecework.app import Piecework
from piecework.core.job import State

if TYPE_CHECKING:
    from piecework.app.url import AnyStore
    from piecework.client.handler import Prepared

__all__ = ["CONCURRENCY", "QUEUE", "Jobs", "WentWrong"]

CONCURRENCY: Final = 50
QUEUE: Final = "bench"


class WentWrong(Exception):
    """The measured code did not do what it was measured for."""


class Jobs:
    """An app with the measured handlers; `lateness` is in seconds, from enqueue to start."""

    def __init__(self, store: str | AnyStore) -> None:
        app = self.app = Piecework(store)
        self.ran = 0
        self.lateness: list[float] = []

        @app.handler(kind="bench.nothing", queue=QUEUE)
        async def nothing() -> None:
            self.ran += 1

        @app.handler(kind="bench.echo", queue=QUEUE)
        async def echo(number: int) -> int:
            self.ran += 1
            return number

        @app.handler(kind="bench.keyed", queue=QUEUE, serial_key="{number}")
        async def keyed(number: int) -> int:
            self.ran += 1
            return number

        @app.handler(kind="bench.late", queue=QUEUE)
        async def late(sent: float) -> None:
            # One clock for all processes of a machine, on Linux, macOS and Windows.
            self.lateness.append(perf_counter() - sent)

        self.nothing, self.echo, self.keyed, self.late = nothing, echo, keyed, late

    async def enqueue_echoes(self, count: int) -> None:
        """So many jobs that return a result are stored."""
        for start in range(0, count, 10_000):
            end = min(count, start + 10_000)
            await self.app.enqueue_many([self.echo.prepare(n) for n in range(start, end)])

    async def drain(self, expected: int) -> None:
        """Everything has run, and so many are completed. WentWrong if not."""
        await self.app.run_until_idle(concurrency=CONCURRENCY)
        counts = await self.app.count()
        if counts.get((QUEUE, State.COMPLETED)) != expected:
            raise WentWrong(f"of {expected:,} jobs these came out: {counts}")


def echoes(jobs: Jobs, count: int) -> list[Prepared[int]]:
    """Return so many jobs, checked and not yet stored."""
    return [jobs.echo.prepare(number) for number in range(count)]
