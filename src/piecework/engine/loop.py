"""The only loop: a tick does its work and returns the seconds until the next one."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from piecework.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["FOREVER", "Loop", "backoff"]

_log: Final = logging.getLogger("piecework.engine")

FOREVER: Final = math.inf
"""The delay of a tick that has nothing to do until it is woken."""


def backoff(failures: int) -> float:
    """Return the seconds before the next try: 50 ms doubling to 5 s."""
    return min(5.0, 0.05 * 2.0 ** min(failures - 1, 10))


class Loop:
    """Calls `tick` again and again; whatever it raises is logged, and it goes on.

    `last_success` is the event loop's time of the last tick that did not raise, so that a loop
    that stopped working is seen from outside.
    """

    def __init__(self, name: str, tick: Callable[[], Awaitable[float]]) -> None:
        self.name = name
        self.last_success: float | None = None
        self.failures = 0
        self._tick = tick
        self._woken = False
        self._sleeper: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """The next tick comes at once. Only from the loop's own thread."""
        self._woken = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def run(self) -> None:
        """Tick until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken = False
            try:
                delay = await self._tick()
            except Exception as error:  # noqa: BLE001 - the loop logs and goes on
                self._failed(error)
                delay = backoff(self.failures)
                self._woken = False
            else:
                if self.failures:
                    _log.info("%s works again after %d failures", self.name, self.failures)
                self.failures = 0
                self.last_success = loop.time()
            await self._pause(delay)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures > 1:
            return  # said once, not a thousand times
        if isinstance(error, StoreUnavailable):
            _log.warning("%s: %s; trying again", self.name, error)
        else:
            _log.error("%s failed; trying again", self.name, exc_info=error)

    async def _pause(self, delay: float) -> None:
        if self._woken or delay <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        sleeper = self._sleeper = loop.create_future()
        timer = None if delay == FOREVER else loop.call_later(delay, _finish, sleeper)
        try:
            await sleeper
        finally:
            self._sleeper = None
            if timer is not None:
                timer.cancel()


def _finish(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
