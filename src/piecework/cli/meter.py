"""How far the demo is, while it runs: a live bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from piecework.cli.show import console, say, seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Meter", "Tally", "make_meter"]

WINDOW_SECONDS: Final = 5.0
LINE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of the files are done, failed, given up otherwise, and still to come."""

    done: int
    failed: int
    dropped: int
    live: int

    @property
    def ended(self) -> int:
        """Return how many are not to come any more."""
        return self.done + self.failed + self.dropped


class Speed:
    """Jobs per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, ended: int) -> None:
        """So many have ended by now."""
        now = time.monotonic()
        self._seen.append((now, ended))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        """Return the speed; 0 while it cannot be known."""
        if len(self._seen) < 2:
            return 0.0
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def left(self, live: int) -> str:
        """Return how long the rest will take."""
        return f"{seconds(live / self.per_second)} left" if self.per_second > 0 else "? left"


class Meter(Protocol):
    """Shows how far it is. Nothing is shown any more after `close`."""

    def found(self, files: int) -> None:
        """So many files were found so far."""
        ...

    def show(self, tally: Tally) -> None:
        """So far is it."""
        ...

    def tell(self, line: str) -> None:
        """Say something in between."""
        ...

    def close(self) -> None:
        """The display is gone, or left as it is."""
        ...


def make_meter() -> Meter:
    """Return what suits stderr."""
    return Bar() if console(stderr=True).is_terminal else Lines()


class Lines:
    """A plain line now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_SECONDS
        self._speed = Speed()

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LINE_SECONDS
        return True

    def found(self, files: int) -> None:
        """As `Meter.found`."""
        if self._is_time():
            say(f"{files:,} files found so far")

    def show(self, tally: Tally) -> None:
        """As `Meter.show`."""
        self._speed.add(tally.ended)
        if self._is_time():
            total = tally.ended + tally.live
            say(
                f"{tally.done:,} of {total:,} done, {tally.failed:,} failed, "
                f"{self._speed.per_second:,.0f} jobs/s, {self._speed.left(tally.live)}"
            )

    def tell(self, line: str) -> None:
        """As `Meter.tell`."""
        say(line)

    def close(self) -> None:
        """As `Meter.close`."""


class Bar:
    """A live bar on stderr."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._progress = _progress()
        self._task: TaskID = self._progress.add_task("finding files", total=None, said="")
        self._running = False
        self._progress.start()

    def found(self, files: int) -> None:
        """As `Meter.found`."""
        self._progress.update(self._task, said=f"{files:,} found")

    def show(self, tally: Tally) -> None:
        """As `Meter.show`."""
        self._speed.add(tally.ended)
        total = tally.ended + tally.live
        said = f"{tally.done:,}/{total:,} done  {tally.failed:,} failed"
        if tally.live:
            said += f"  {self._speed.per_second:,.0f} jobs/s  {self._speed.left(tally.live)}"
        if not self._running:
            self._running = True
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("files", total=total, said=said)
        self._progress.update(self._task, total=total, completed=tally.ended, said=said)

    def tell(self, line: str) -> None:
        """As `Meter.tell`."""
        self._progress.console.print(line)

    def close(self) -> None:
        """As `Meter.close`."""
        self._progress.stop()


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}", markup=False),
        console=console(stderr=True),
        refresh_per_second=8,
    )
