"""Which event loop's connections are whose, in this process and after a fork."""

from __future__ import annotations

import asyncio
import os
from threading import Lock
from typing import TYPE_CHECKING

from piecework.stores.postgres.batching import Batcher
from piecework.stores.postgres.hints import Ears, Voice
from piecework.stores.postgres.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from piecework.core.job import NewJob
    from piecework.ports import Inserted
    from piecework.stores._hints import Hub
    from piecework.stores.postgres.settings import Settings

__all__ = ["Lanes", "Office"]


class Office:
    """What one event loop has: its connections, its voice and ears, its shared insertions."""

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        sender: str,
        at: Callable[[], datetime | None],
        insert: Callable[[Sequence[NewJob]], Awaitable[list[Inserted]]],
    ) -> None:
        self.lane = Lane(settings, at)
        self.voice = Voice(settings, hub, sender, self.lane)
        self.ears = Ears(settings, hub, sender)
        self.batcher = Batcher(insert)
        self.opening = asyncio.Lock()

    async def close(self) -> None:
        """Every connection of this loop is closed; its last hint is told."""
        await self.ears.close()
        await self.voice.flush()
        await self.lane.close()


class Lanes:
    """The offices of this process, one for each event loop."""

    def __init__(self, make: Callable[[], Office]) -> None:
        self._make = make
        self._lock = Lock()
        self._pid = os.getpid()
        self._offices: dict[asyncio.AbstractEventLoop, Office] = {}
        self._forgotten: list[dict[asyncio.AbstractEventLoop, Office]] = []

    def here(self) -> Office:
        """Return the office of the running event loop."""
        loop = asyncio.get_running_loop()
        office = self._offices.get(loop)
        if office is not None and self._pid == os.getpid():
            return office
        with self._lock:
            if self._pid != os.getpid():
                # Forked: the parent's connections are kept from being closed here, because a
                # close would end them for the parent, too.
                self._forgotten.append(self._offices)
                self._offices, self._pid = {}, os.getpid()
            for gone in [loop for loop in self._offices if loop.is_closed()]:
                self._offices.pop(gone).lane.terminate()
            office = self._offices[loop] = self._make()
            return office

    async def close(self) -> None:
        """The connections of every event loop are closed, or about to be."""
        if self._pid != os.getpid():
            return
        here = asyncio.get_running_loop()
        with self._lock:
            offices, self._offices = self._offices, {}
        for loop, office in offices.items():
            if loop is here:
                await office.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(office.close(), loop)
            else:
                office.lane.terminate()
