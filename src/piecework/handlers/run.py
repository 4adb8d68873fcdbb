"""The handle a handler has on its own run: who it is, progress, partial results, logs, stopping."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from piecework.core.attempts import storable
from piecework.core.errors import Cancelled
from piecework.observe import RunLogger, RunLogs

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Generator, Mapping
    from datetime import datetime

    from piecework.core.job import Claimed, JobId

__all__ = ["DONE", "Cause", "Channel", "Progress", "Run"]

Cause: TypeAlias = Literal["cancel", "timeout", "shutdown", "lost"]


class _Done:
    """An awaitable that is finished already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


DONE = _Done()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `percent` is 0 to 100, or None without a total; `partial` is plain JSON."""

    done: float
    total: float | None = None
    message: str | None = None
    partial: Any = None

    @property
    def percent(self) -> float | None:
        """Return 100 · done / total, within 0 and 100."""
        if not self.total:
            return None
        return max(0.0, min(100.0, 100.0 * self.done / self.total))

    def encode(self) -> str:
        """Return the stored form."""
        return json.dumps([self.done, self.total, self.message])

    @classmethod
    def decode(cls, text: str | None, partial: str | None) -> Progress | None:
        """Return what was stored, or None if nothing was, or nothing of ours."""
        if text is None and partial is None:
            return None
        try:
            done, total, message = json.loads(text) if text is not None else (0, None, None)
            value = json.loads(partial) if partial is not None else None
        except (ValueError, TypeError, RecursionError):
            return None
        return cls(done=done, total=total, message=message, partial=value)


class Channel(Protocol):
    """Where a run's reports go: to the store, to a parent process, or into a test's hands."""

    def progress(self, run: Run, progress: Progress) -> Awaitable[None]:
        """The report is written soon; at most twice a second."""
        ...

    def save(self, run: Run, partial: Any) -> Awaitable[None]:
        """The partial result is stored when the awaitable is done (in sync code: on return)."""
        ...


class Run:
    """One run of one job, as its handler sees it.

    `stopping` is None, or why the run must stop: "cancel", "timeout", "shutdown" or "lost".
    At a shutdown it is set at once, while the run may go on until the worker's deadline; `halted`
    is set when it may not go on any longer, `ended` when the handler has. `threaded` runs are
    sync code in a thread, and `interrupted` once `check` has raised.
    """

    __slots__ = (
        "_channel",
        "_claimed",
        "_log",
        "deadline",
        "ended",
        "halted",
        "interrupted",
        "logs",
        "stopping",
        "threaded",
    )

    def __init__(
        self,
        claimed: Claimed,
        channel: Channel,
        *,
        deadline: datetime | None = None,
        logs: RunLogs | None = None,
    ) -> None:
        self._claimed = claimed
        self._channel = channel
        self._log: logging.Logger | None = None
        self.deadline = deadline
        self.stopping: Cause | None = None
        self.halted = False
        self.ended = False
        self.threaded = False
        self.interrupted = False
        self.logs = logs if logs is not None else RunLogs()

    @property
    def claimed(self) -> Claimed:
        """The claim this run stands on."""
        return self._claimed

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self._claimed.id

    @property
    def kind(self) -> str:
        """The job's kind."""
        return self._claimed.kind

    @property
    def name(self) -> str | None:
        """The name shown for the job, if it was given one."""
        return self._claimed.name

    @property
    def queue(self) -> str:
        """The job's queue."""
        return self._claimed.queue

    @property
    def attempt(self) -> int:
        """Which charged start of this generation this is, from 1."""
        return self._claimed.attempt

    @property
    def max_attempts(self) -> int:
        """How many charged starts a generation has."""
        return self._claimed.max_attempts

    @property
    def generation(self) -> int:
        """1, and one more for each retry by an operator: with the id, a key for deduplication."""
        return self._claimed.generation

    @property
    def fence(self) -> int:
        """A number that grows with each claim of the job: what a receiver may compare."""
        return self._claimed.fence

    @property
    def metadata(self) -> Mapping[str, str]:
        """The job's metadata."""
        return self._claimed.metadata or {}

    @property
    def time_limit(self) -> float | None:
        """How many seconds the run may take, if it is limited."""
        return self._claimed.timeout

    @property
    def schedule(self) -> str | None:
        """The schedule that fired the job, if one did."""
        return self._claimed.schedule

    @property
    def tick(self) -> datetime | None:
        """The instant the schedule meant, not the one it fired at."""
        return self._claimed.tick

    @property
    def count(self) -> int | None:
        """How many times the schedule has fired so far, this one included."""
        return self._claimed.count

    @property
    def log(self) -> logging.Logger:
        """A logger whose lines are kept with the job, INFO and above."""
        if self._log is None:
            self._log = RunLogger(self.logs)
        return self._log

    def progress(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> Awaitable[None]:
        """The report is on its way; it shows within half a second. Await it in async code.

        ValueError for a negative or infinite number.
        """
        for value in (done, total):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"progress must be a finite number of at least 0, not {value}")
        text = None if message is None else storable(message)
        return self._channel.progress(self, Progress(done=done, total=total, message=text))

    def save(self, partial: Any) -> Awaitable[None]:
        """The partial result is stored, and kept if the run fails.

        In sync code it is stored on return, in async code once awaited. Raises LeaseLost if the
        run no longer owns its job, TypeError or ValueError for what JSON cannot hold.
        """
        return self._channel.save(self, partial)

    def check(self) -> None:
        """Raise Cancelled once the run must stop; for sync code, which nobody can interrupt."""
        if self.halted:
            self.interrupted = True
            raise Cancelled(self.stopping)

    def __repr__(self) -> str:
        """Return kind, id and attempt."""
        return f"<Run {self.kind} {self.id} attempt {self.attempt}/{self.max_attempts}>"
