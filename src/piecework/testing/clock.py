"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["FakeClock"]

_TURNS = 20


class _Turns:
    """Awaited, it lets the tasks that were woken go on for a few turns of the loop."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        for _ in range(_TURNS):
            yield


class FakeClock:
    """A Clock for tests: time passes only in `advance`. Safe in any thread and on any loop.

    Begins on Monday, 5 January 2026, 09:00 UTC, unless told otherwise.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 5, 9, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError(f"{start!r} has no time zone: pass an aware datetime")
        self._lock = Lock()
        self._now = start.astimezone(UTC)
        self._seconds = 0.0
        self._order = count()
        self._sleepers: list[
            tuple[float, int, asyncio.AbstractEventLoop, asyncio.Future[None]]
        ] = []

    def __repr__(self) -> str:
        """Return the time it shows."""
        return f"<FakeClock {self._now:%Y-%m-%d %H:%M:%S.%f}>"

    @property
    def sleepers(self) -> int:
        """How many tasks sleep on this clock."""
        with self._lock:
            return sum(not sleeper.done() for *_, sleeper in self._sleepers)

    def now(self) -> datetime:
        """Return the instant it shows, aware, in UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds that have passed; a step back does not show here."""
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was advanced that far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        with self._lock:
            heappush(self._sleepers, (self._seconds + seconds, next(self._order), loop, woken))
        await woken

    def advance(self, seconds: float | timedelta) -> _Turns:
        """That much time has passed at once, and whoever slept no longer than that wakes up.

        Await it to let them go on before the next line. A negative step sets `now` back, as a
        corrected wall clock does; `monotonic` never goes back.
        """
        step = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        with self._lock:
            self._now += step
            # In whole microseconds, as `now` counts: 0.1 s ten times is a second.
            self._seconds = round(self._seconds + max(0.0, step.total_seconds()), 6)
            while self._sleepers and self._sleepers[0][0] <= self._seconds:
                *_, loop, sleeper = heappop(self._sleepers)
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_wake, sleeper)
        return _Turns()

    def set(self, now: datetime) -> _Turns:
        """The clock shows `now`: as `advance` by the difference."""
        return self.advance(now - self._now)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
