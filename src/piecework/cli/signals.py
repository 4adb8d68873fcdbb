"""SIGINT and SIGTERM: the first asks to drain, the second to release at once."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

__all__ = ["Stopper", "leftover_threads", "stopper"]

_THREADS: Final = "piecework-handler"
_JOIN_SECONDS: Final = 0.5


class Stopper:
    """`asked` is set by the first signal, `now` by the second; `signal` is the first one."""

    def __init__(self, told: Callable[[signal.Signals, int], None]) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        self.signal: signal.Signals | None = None
        self._told = told
        self._count = 0

    @property
    def exit_code(self) -> int:
        """Return 128 and the signal's number, as shells do."""
        return 128 + (self.signal or signal.SIGINT)

    def hear(self, received: signal.Signals) -> None:
        """One more signal has come."""
        self._count += 1
        self.signal = self.signal or received
        if self._count > 1:
            self.now.set()
        self.asked.set()
        self._told(received, self._count)


@contextmanager
def stopper(told: Callable[[signal.Signals, int], None]) -> Generator[Stopper]:
    """Signals are heard on the running loop inside the block; `told` gets each and its number."""
    heard = Stopper(told)
    loop = asyncio.get_running_loop()
    former: list[tuple[signal.Signals, Any]] = []
    for each in (signal.SIGINT, signal.SIGTERM):
        former.append((each, signal.getsignal(each)))
        try:
            loop.add_signal_handler(each, heard.hear, each)
        except NotImplementedError:  # Windows

            def handle(number: int, _: FrameType | None) -> None:
                loop.call_soon_threadsafe(heard.hear, signal.Signals(number))

            signal.signal(each, handle)
    try:
        yield heard
    finally:
        for each, before in former:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(each)
            signal.signal(each, before)


def leftover_threads() -> bool:
    """Whether a handler still runs in a thread, although its worker has stopped."""
    threads = [each for each in threading.enumerate() if each.name.startswith(_THREADS)]
    for each in threads:
        each.join(_JOIN_SECONDS / len(threads))
    return any(each.is_alive() for each in threads)
