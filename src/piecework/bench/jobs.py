"""The jobs that are measured: one does nothing, one returns a result, one tells how late it is."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from piecework.app import Piecework
from piecework.core.job import State

if TYPE_CHECKING:
    from piecework.app.url import AnyStore

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

        @app.handler(kind="bench.keyed", queue=QUEUE, serial_key=str)
        async def keyed(number: int) -> int:
            self.ran += 1
            return number

        @app.handler(kind="bench.late", queue=QUEUE)
        async def late(sent: float) -> None:
            # One clock for all processes of a machine, on Linux, macOS and Windows.
            self.lateness.append(perf_counter() - sent)

        self.nothing, self.echo, self.keyed, self.late = nothing, echo, keyed, late

    async def expect(self, completed: int) -> None:
        """So many are completed. WentWrong if not."""
        counts = await self.app.count()
        if counts.get((QUEUE, State.COMPLETED)) != completed:
            raise WentWrong(f"{completed:,} jobs should be completed, but there are {counts}")
