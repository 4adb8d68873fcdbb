"""Hints inside one process: told from any thread, heard on any event loop, coalesced."""

from __future__ import annotations

import asyncio
from threading import Lock
from typing import TYPE_CHECKING, Any

from piecework.ports import Hint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Hub"]


class _Listener:
    __slots__ = ("event", "loop", "told")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self.told: set[Any] = set()


class Hub:
    """Tells every listener what happened; what comes before they look is told once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._listeners: list[_Listener] = []

    def tell(self, hint: Hint) -> None:
        """Every listener wakes up soon with this hint among others."""
        if not self._listeners:
            return
        with self._lock:
            for listener in self._listeners:
                if hint.what <= listener.told:
                    continue
                listener.told |= hint.what
                try:
                    listener.loop.call_soon_threadsafe(listener.event.set)
                except RuntimeError:
                    listener.told.clear()  # its loop is closed; it will be dropped with it

    async def listen(self) -> AsyncIterator[Hint]:
        """Yield hints, coalesced, until the iterator is closed."""
        listener = _Listener()
        with self._lock:
            self._listeners.append(listener)
        try:
            while True:
                await listener.event.wait()
                listener.event.clear()
                with self._lock:
                    what, listener.told = frozenset(listener.told), set()
                if what:
                    yield Hint(what)
        finally:
            with self._lock:
                self._listeners.remove(listener)
