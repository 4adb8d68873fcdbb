"""What a job is: the frozen record, its eight states, and its id."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NewType, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FINAL",
    "LIVE",
    "NOW",
    "WAITING",
    "Attempt",
    "Claimed",
    "Job",
    "JobId",
    "LogLine",
    "Moment",
    "NewJob",
    "OnDuplicate",
    "Retention",
    "Scope",
    "State",
    "WorkerId",
]

JobId = NewType("JobId", UUID)
WorkerId = NewType("WorkerId", UUID)

Moment: TypeAlias = datetime | timedelta
"""An aware instant, or a duration from the store's now."""

NOW: Final = timedelta(0)
"""The store's now."""

Scope: TypeAlias = Literal["live", "forever", "until"]
OnDuplicate: TypeAlias = Literal["existing", "raise", "replace"]


class State(StrEnum):
    """Where a job is in its life. Four states are live, four are final."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    AVAILABLE = "available"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


WAITING: Final = frozenset({State.SCHEDULED, State.BLOCKED, State.AVAILABLE})
LIVE: Final = WAITING | {State.RUNNING}
FINAL: Final = frozenset(State) - LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """One job to be stored. `due` and `expires` are instants, or durations from the store's now.

    The unique key's scope and policy ride along: `unique_window` is set for scope "until".
    `kind_expires` counts from the start instead of the enqueue.
    """

    id: JobId
    kind: str
    args: str
    queue: str = "default"
    name: str | None = None
    priority: int = 0
    due: Moment = NOW
    expires: Moment | None = None
    kind_expires: timedelta | None = None
    max_attempts: int = 5
    max_crashes: int = 3
    timeout: float | None = None
    unique_key: str | None = None
    unique_scope: Scope = "live"
    unique_window: timedelta | None = None
    on_duplicate: OnDuplicate = "existing"
    serial_key: str | None = None
    metadata: Mapping[str, str] | None = None
    node: str | None = None
    parent: JobId | None = None
    schedule: str | None = None
    tick: datetime | None = None
    count: int | None = None
    result_ttl: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One stored unit of work, as it was when it was read. Times are aware UTC.

    `args`, `result`, `progress`, `partial` and `error` are JSON texts. `node` is the node the
    job is bound to, `ran_on` the node of the worker that has, or last had, it.
    """

    id: JobId
    kind: str
    args: str
    state: State
    queue: str
    enqueued_at: datetime
    due_at: datetime
    name: str | None = None
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 5
    crashes: int = 0
    max_crashes: int = 3
    generation: int = 1
    fence: int = 0
    timeout: float | None = None
    node: str | None = None
    ran_on: str | None = None
    worker: WorkerId | None = None
    result: str | None = None
    progress: str | None = None
    partial: str | None = None
    error: str | None = None
    reason: str | None = None
    parked: int = 0
    unique_key: str | None = None
    unique_scope: Scope | None = None
    unique_until: datetime | None = None
    serial_key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    parent: JobId | None = None
    schedule: str | None = None
    tick: datetime | None = None
    count: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    cancel_requested: datetime | None = None
    result_ttl: timedelta | None = None


class Claimed(NamedTuple):
    """A claimed job as its worker needs it: plain slots, quick to build."""

    id: JobId
    fence: int
    kind: str
    args: str
    attempt: int
    max_attempts: int
    crashes: int
    max_crashes: int
    generation: int
    queue: str
    name: str | None
    timeout: float | None
    metadata: Mapping[str, str] | None
    schedule: str | None
    tick: datetime | None
    count: int | None  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride] - nobody counts in it
    parked: int
    result_ttl: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line a run logged. `at` is the worker's clock: lines are ordered, not compared."""

    at: datetime
    level: str
    message: str
    logger: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of a job: when, where and how it ended. `outcome` is None while it runs.

    `number` counts the charged starts of its generation; `traceback` is text, if there was one.
    """

    number: int
    generation: int
    fence: int
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None = None
    traceback: str | None = None
    worker: WorkerId | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long a finished job is kept, by its final state; None keeps it for ever."""

    completed: timedelta | None = timedelta(days=7)
    failed: timedelta | None = timedelta(days=30)
    cancelled: timedelta | None = timedelta(days=30)
    expired: timedelta | None = timedelta(days=30)

    def __post_init__(self) -> None:
        for state in FINAL:
            keep = self.of(state)
            if keep is not None and keep < timedelta(0):
                raise ValueError(f"retention of {state} jobs cannot be negative: {keep}")

    def of(self, state: State) -> timedelta | None:
        """Return how long a job of this final state is kept."""
        keep: timedelta | None = getattr(self, state.value)
        return keep
