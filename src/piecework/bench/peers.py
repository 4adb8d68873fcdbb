"""Huey, the peer on SQLite, as its users run it: one thread, its own settings, results off."""

from __future__ import annotations

import signal
import threading
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from piecework.bench.rounds import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["has_huey", "huey_drain", "huey_enqueue"]


def has_huey() -> bool:
    """Whether Huey is installed."""
    return find_spec("huey") is not None


def _make(file: Path) -> Any:
    import huey  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs] - it may be missing

    return huey.SqliteHuey("bench", filename=str(file), results=False)


def huey_enqueue(file: Path, count: int) -> float:
    """Return how many tasks a second are enqueued one by one."""
    huey = _make(file)

    @huey.task()  # type: ignore[untyped-decorator]
    def echo(number: int) -> int:
        return number

    with closing(huey.storage), Stopwatch() as watch:
        for number in range(count):
            echo(number)
    return watch.rate(count)


def huey_drain(file: Path, count: int) -> float:
    """Return how many tasks a second one worker thread runs."""
    huey = _make(file)
    done = threading.Event()
    ran = 0

    @huey.task()  # type: ignore[untyped-decorator]
    def echo(number: int) -> int:
        nonlocal ran
        ran += 1
        if ran == count:
            done.set()
        return number

    with closing(huey.storage):
        for number in range(count):
            echo(number)
        consumer = huey.create_consumer(workers=1, periodic=False)
        with _signals_kept():
            with Stopwatch() as watch:
                consumer.start()
                done.wait()
            consumer.stop(graceful=True)
    return watch.rate(count)


@contextmanager
def _signals_kept() -> Generator[None]:
    """Huey's consumer takes the process's signals; afterwards they are as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
