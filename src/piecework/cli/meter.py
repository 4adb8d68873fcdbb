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
    """How many of the files are done, how many failed, and how many are still to come.

    `running` are those of the ones to come that some worker has, or had when it was killed.
    """

    done: int
    failed: int
    live: int
    running: int

    @property
    def total(self) -> int:
        """Return how many there are."""
        return self.done + self.failed + self.live

    @property
    def ended(self) -> int:
        """Return how many are not to come any more."""
        return self.done + self.failed


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

    def begin(self, tally: Tally) -> None:
        """All files were found; what earlier runs did of them has ended already."""
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

    def begin(self, tally: Tally) -> None:
        """As `Meter.begin`."""
        say(_beginning(tally))

    def show(self, tally: Tally) -> None:
        """As `Meter.show`."""
        self._speed.add(tally.ended)
        if self._is_time() or not tally.live:
            say(_so_far(tally, self._speed))

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
        self._task: TaskID = self._progress.add_task("", total=None, said="finding files")
        self._progress.start()

    def found(self, files: int) -> None:
        """As `Meter.found`."""
        self._progress.update(self._task, said=f"{files:,} files found")

    def begin(self, tally: Tally) -> None:
        """As `Meter.begin`."""
        self.tell(_beginning(tally))
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=tally.total, said="")
        self.show(tally)

    def show(self, tally: Tally) -> None:
        """As `Meter.show`."""
        self._speed.add(tally.ended)
        said = _so_far(tally, self._speed)
        self._progress.update(self._task, completed=tally.ended, said=said)

    def tell(self, line: str) -> None:
        """As `Meter.tell`."""
        self._progress.console.print(line)

    def close(self) -> None:
        """As `Meter.close`."""
        self._progress.stop()


def _beginning(tally: Tally) -> str:
    text = "1 file" if tally.total == 1 else f"{tally.total:,} files"
    if tally.ended:
        text += f", {tally.ended:,} handled by earlier runs, {tally.live:,} to go"
    if tally.running:
        text += f" ({tally.running:,} of them held by another run: if that was killed, for 5 s)"
    return text


def _so_far(tally: Tally, speed: Speed) -> str:
    text = f"{tally.done:,}/{tally.total:,} done, {tally.failed:,} failed"
    if tally.live:
        rate = speed.per_second
        text += f", {rate:,.{0 if rate >= 10 else 1}f} jobs/s, {speed.left(tally.live)}"
    return text


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[said]}", markup=False),
        console=console(stderr=True),
        refresh_per_second=8,
    )
