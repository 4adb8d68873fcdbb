"""What Piecework needs from the outside: a Store to write, a Reader to look, a Scheduler, a Clock.

Rules live in `core.lifecycle`; a store compares and sets. Who writes a store of their own runs
`piecework.testing.StoreConformance` against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime, timedelta

    from piecework.core.job import (
        Attempt,
        Claimed,
        Job,
        JobId,
        LogLine,
        NewJob,
        Retention,
        State,
        WorkerId,
    )
    from piecework.core.lifecycle import Transition

__all__ = [
    "Ask",
    "Beat",
    "Beaten",
    "Bound",
    "Clock",
    "Fate",
    "Filter",
    "Finding",
    "Hint",
    "Inserted",
    "JobStatus",
    "Node",
    "QueueChange",
    "QueueInfo",
    "Reader",
    "Refused",
    "Ring",
    "Scheduler",
    "Staged",
    "Store",
]


# ── what goes in and comes out ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Inserted:
    """The job that now stands for a NewJob. `created` is False for a duplicate's holder.

    `args_differ` tells that the holder was enqueued with other args, and still has them.
    """

    id: JobId
    created: bool
    args_differ: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A worker's wish for jobs: at most `free` + `ahead`, in order of priority, due time, id.

    `ahead` go into the local buffer: they must afford a crash (an attempt left, none so far).
    `queues` None means every queue. `rooms` maps each kind that is limited in this worker to how
    many more of it fit; a kind without room is passed over, for at most 10 × (free + ahead) rows.
    """

    worker: WorkerId
    node: str
    free: int
    ahead: int = 0
    queues: tuple[str, ...] | None = None
    rooms: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Refused:
    """A Transition that was not applied, with the job as it is now (None: there is none).

    `holder` is the job that holds the unique key which the transition wanted to take.
    """

    transition: Transition
    job: Job | None
    holder: JobId | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """What `stage` moved, and the seconds until the next job is due (None: no job waits).

    `more` tells that the limit cut the work short; `available` that a job may wait to be claimed,
    so that an idle worker need not ask twice.
    """

    due: int = 0
    expired: int = 0
    promoted: int = 0
    next_due: float | None = None
    more: bool = False
    available: bool = True


class Fate(StrEnum):
    """What the store thinks of a worker."""

    ALIVE = "alive"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A worker's sign of life and what it shows of itself."""

    worker: WorkerId
    node: str
    pid: int
    lease: timedelta
    queues: tuple[str, ...] | None
    slots: int
    running: int
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Beaten:
    """The store's answer: the worker's fate, and every job running in its name.

    `running` maps each id to (fence, a cancel was asked for).
    """

    fate: Fate
    running: Mapping[JobId, tuple[int, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A live worker as others see it; times are the store's."""

    worker: WorkerId
    node: str
    pid: int
    queues: tuple[str, ...] | None
    slots: int
    running: int
    started_at: datetime
    beat_at: datetime
    lease: timedelta
    stopping: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue and its controls. `limit` is the most that may run at once over the fleet.

    `rate` is (n, window in seconds): a token bucket of n, refilled evenly over the window.
    `jobs` counts the live jobs by state; `oldest` is when the oldest available one was due.
    """

    name: str
    paused: bool = False
    limit: int | None = None
    rate: tuple[int, float] | None = None
    jobs: Mapping[State, int] = field(default_factory=dict["State", int])
    oldest: datetime | None = None


_Unset: TypeAlias = Literal["unset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueChange:
    """What to change of a queue; "unset" leaves a control as it is, None lifts it."""

    name: str
    paused: bool | _Unset = "unset"
    running: int | _Unset | None = "unset"
    rate: tuple[int, float] | _Unset | None = "unset"


@dataclass(frozen=True, slots=True)
class Hint:
    """Something happened; it may be lost or repeated. Only polling is relied on.

    work: jobs may be available · due: a job was put off to a later time · control: a cancel,
    pause or limit · done: jobs ended.
    """

    what: frozenset[Literal["work", "due", "control", "done"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs: every given field must match.

    `text` is looked for, without case, in id, name, kind, keys, reason and error of the newest
    10,000 that pass the rest.
    """

    states: tuple[State, ...] = ()
    kinds: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    schedule: str | None = None
    parent: JobId | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    parked: bool | None = None
    ids: tuple[JobId, ...] | None = None


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The few fields that followers of a job watch."""

    state: State
    generation: int
    attempt: int
    progress: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` looked at. `level` is ok, warning or error."""

    level: Literal["ok", "warning", "error"]
    topic: str
    text: str


# ── the boundaries ───────────────────────────────────────────────────────────────────────────


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        ...


class Bound(Protocol):
    """Writes inside a transaction of the caller's; nothing shows before they commit.

    On a blocking connection the coroutines never suspend.
    """

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Store.insert`, inside the caller's transaction."""
        ...

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Store.apply`, inside the caller's transaction."""
        ...


class Store(Protocol):
    """Where jobs live. Safe to use from any event loop and any thread of one process.

    Every method raises StoreUnavailable where the store cannot be reached, and then nothing, or
    all, of the call took effect: repeating a call is always safe. The store's clock stamps.
    """

    async def open(self) -> None:
        """The store can be used: it is reachable and its schema fits. May be repeated.

        Raises StoreUnavailable, or SchemaOutdated where the tables are of another release.
        """
        ...

    async def close(self) -> None:
        """Connections are closed; the next use opens them again."""
        ...

    async def check(self) -> list[Finding]:
        """What an operator should know: reachability, versions, settings, integrity."""
        ...

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """All jobs stand, or none does; the answers come in order.

        A known id is the same job again (created False). A unique key that is held gives its
        holder, raises DuplicateJob, or replaces what the holder was to do, if it has not started.
        """
        ...

    async def claim(self, ask: Ask) -> list[Claimed]:
        """Available jobs are running in the worker's name: never more than asked, never early.

        Each has its fence and attempt raised by one. Paused queues, limits, rates, nodes and
        expiries are obeyed inside the one transaction. A worker declared lost gets nothing.
        """
        ...

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """Each transition took effect whole, or is among the refused; all in one transaction.

        A job that ends frees its unique key (scope "live") and its serial key, and the key's next
        job is promoted, in that transaction.
        """
        ...

    async def stage(self, *, limit: int) -> Staged:
        """What is due is available (or blocked), what expired is expired, idle keys' next run."""
        ...

    async def beat(self, beat: Beat) -> Beaten:
        """The worker's lease is renewed, unless it was declared lost; that is final."""
        ...

    async def retire(self, worker: WorkerId) -> None:
        """The worker is gone in good order; jobs still in its name are orphans at once."""
        ...

    async def orphans(self, *, limit: int) -> list[Job]:
        """Workers whose lease has lapsed are declared lost, for good.

        Returns running jobs of lost or unknown workers, to be rescued.
        """
        ...

    async def prune(self, what: Retention | Sequence[JobId], *, limit: int) -> list[JobId]:
        """Final jobs beyond their retention, or of these ids, are gone with all that is theirs.

        At most `limit` at a time; live jobs are never touched. Returns the ids that went.
        """
        ...

    async def configure(self, changes: Sequence[QueueChange]) -> None:
        """The queues' controls are as given; a claim that begins later obeys them."""
        ...

    def hints(self) -> AsyncIterator[Hint]:
        """Yield hints until closed. Hints are coalesced; they may be lost or repeated."""
        ...

    async def bind(self, connection: Any) -> Bound:
        """Return a Bound that writes inside the transaction of the caller's connection.

        Raises TypeError for a connection of another kind of database.
        """
        ...

    @property
    def clock(self) -> Clock:
        """The clock of this process, for waiting; the store's own clock stamps."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes can reach the same jobs."""
        ...


class Reader(Protocol):
    """How to look at jobs; nothing it does changes any."""

    async def get(self, ids: Sequence[JobId]) -> list[Job]:
        """Return the jobs that exist, in any order."""
        ...

    async def find(self, what: Filter, *, after: JobId | None, limit: int) -> list[Job]:
        """Return at most `limit` jobs older than `after`, newest first."""
        ...

    async def count(self) -> dict[tuple[str, State], int]:
        """Return the exact number of jobs by (queue, state)."""
        ...

    async def statuses(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """Return the state and progress of the jobs that exist."""
        ...

    async def attempts(self, job_id: JobId) -> list[Attempt]:
        """Return the attempts that have a row of their own, oldest first."""
        ...

    async def logs(self, job_id: JobId) -> list[tuple[int, LogLine]]:
        """Return (fence of the attempt, line) in the order of writing."""
        ...

    async def queues(self) -> list[QueueInfo]:
        """Return every queue that has live jobs or a control, by name."""
        ...

    async def nodes(self) -> list[Node]:
        """Return the workers whose lease has not lapsed, oldest first."""
        ...


Ring: TypeAlias = "Callable[[str], Awaitable[None]]"


class Scheduler(Protocol):
    """An alarm clock that knows ids and durations only: at least once, never early.

    A lost alarm costs one poll interval, never a job or a tick.
    """

    async def arm(self, alarm: str, after: timedelta) -> None:
        """The alarm rings `after` from now; armed again, it only rings at the new time."""
        ...

    async def disarm(self, alarm: str) -> None:
        """The alarm does not ring, unless it is ringing already."""
        ...

    async def serve(self, ring: Ring) -> None:
        """Await `ring(alarm)` for each alarm until cancelled; only then is it acknowledged."""
        ...

    async def health(self) -> str | None:
        """Return what is wrong, or None."""
        ...
