"""The only place that reads the wall clock and throws dice: the system clock and fresh ids."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import UTC, datetime
from uuid import UUID

from piecework.core.job import JobId

__all__ = ["SystemClock", "new_id"]


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean something."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        await asyncio.sleep(seconds)


class _Ids:
    """UUIDv7 ids that grow within a process, also inside a millisecond (RFC 9562, 6.2)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> JobId:
        # 48 bits of milliseconds, then 74 of chance whose top three stay free for counting up.
        value = (time.time_ns() // 1_000_000 << 74) | (int.from_bytes(os.urandom(9), "big") >> 1)
        with self._lock:
            if value <= self._last:
                value = self._last + 1 + os.urandom(1)[0]
            self._last = value
        high, low = value >> 62, value & ((1 << 62) - 1)
        return JobId(
            UUID(int=(high >> 12 << 80) | (7 << 76) | ((high & 0xFFF) << 64) | (2 << 62) | low)
        )


# The one piece of process-wide state: ids of two apps in one process must grow together.
_ids = _Ids()


def new_id() -> JobId:
    """Return a fresh id, larger than any this process made before."""
    return _ids.next()
