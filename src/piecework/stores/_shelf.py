"""What a memory store keeps: rows, the orders they stand in, queues with their lanes, workers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

from piecework.core import lifecycle
from piecework.core.attempts import decode_error
from piecework.core.job import LIVE, Claimed, Job, State
from piecework.ports import Node, QueueInfo
from piecework.stores._admission import QueueCap, refill

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from piecework.core.job import Attempt, JobId, LogLine, Moment, NewJob, Scope, WorkerId
    from piecework.core.lifecycle import Transition
    from piecework.ports import Beat, Filter

__all__ = [
    "Board",
    "Entry",
    "Lane",
    "Order",
    "Place",
    "Queue",
    "Row",
    "Walk",
    "Watch",
    "Worker",
    "at",
]

_KEEP_ATTEMPTS: Final = 100

Entry: TypeAlias = "tuple[int, datetime, int, T]"
"""(-priority or 0, instant, id, what): unique by id, so a comparison never reaches `what`."""


class _Listed(Protocol):
    """What can stand in an order: it knows its one valid entry; all others are skipped."""

    entry: Any


T = TypeVar("T", bound=_Listed)


class Order(Generic[T]):
    """Entries in order: those that come in order in a list, the others in a heap.

    Whoever leaves only forgets its entry, which is skipped later: O(1) for first in, first out,
    however many there are.
    """

    __slots__ = ("_at", "_dead", "_heap", "_run")

    def __init__(self) -> None:
        self._run: list[Entry[T]] = []
        self._heap: list[Entry[T]] = []
        self._at = 0
        self._dead = 0

    def push(self, entry: Entry[T]) -> None:
        """The entry has its place, and is its item's valid one."""
        entry[3].entry = entry
        run = self._run
        if not run or entry > run[-1]:
            run.append(entry)
        else:
            heappush(self._heap, entry)

    def head(self) -> Entry[T] | None:
        """The first valid entry."""
        run, heap, at = self._run, self._heap, self._at
        size = len(run)
        while at < size and run[at][3].entry is not run[at]:
            at += 1
        while heap and heap[0][3].entry is not heap[0]:
            heappop(heap)
        if at == size:
            run.clear()
            self._at = 0
            return heap[0] if heap else None
        if at > 1_000 and at * 2 > size:
            del run[:at]
            at = 0
        self._at = at
        return run[at] if not heap or run[at] < heap[0] else heap[0]

    def take(self, head: Entry[T]) -> None:
        """The head, which was just returned, has left."""
        head[3].entry = None
        run, heap = self._run, self._heap
        if heap and heap[0] is head:
            heappop(heap)
        elif self._at + 1 < len(run):
            self._at += 1
        else:
            run.clear()
            self._at = 0

    def left(self) -> None:
        """One more entry in the midst is no longer valid; half of them, and they are swept out."""
        self._dead += 1
        if self._dead > 100 and self._dead * 2 > len(self._run) - self._at + len(self._heap):
            valid = sorted(self)
            self.clear()
            self._run = valid

    def clear(self) -> None:
        """Nothing stands here."""
        self._run.clear()
        self._heap.clear()
        self._at = self._dead = 0

    def __iter__(self) -> Iterator[Entry[T]]:
        """Every valid entry, in no order."""
        for part in (self._run[self._at :], self._heap):
            yield from (entry for entry in part if entry[3].entry is entry)


class Lane(Order["Row"]):
    """The available jobs of one queue that are bound to one node, or to none.

    `listed` is the entry under which the board has it: its head, or one that was before it.
    """

    __slots__ = ("listed", "queue")

    def __init__(self, queue: str) -> None:
        super().__init__()
        self.queue = queue
        self.listed: Entry[Row] | None = None


Place: TypeAlias = "tuple[Entry[Row], Lane]"
"""A lane in a heap of lanes, under its head."""


class Board:
    """The lanes of every queue that are bound to one node, or to none, by their heads.

    A lane is listed once; where its head came before, the older listing is skipped later.
    """

    __slots__ = ("_old", "heap")

    def __init__(self) -> None:
        self.heap: list[Place] = []
        self._old = 0

    def offer(self, entry: Entry[Row], lane: Lane) -> None:
        """The lane, which has this entry now, is listed no later than under it."""
        if lane.listed is None or entry < lane.listed:
            self.withdraw(lane)
            lane.listed = entry
            heappush(self.heap, (entry, lane))

    def withdraw(self, lane: Lane) -> None:
        """The lane is not listed; old listings are at most half of all."""
        if lane.listed is None:
            return
        lane.listed = None
        self._old += 1
        if self._old > 100 and self._old * 2 > len(self.heap):
            # One by lane: a lane may be listed twice under the same entry.
            valid = {id(lane): (entry, lane) for entry, lane in self.heap if lane.listed is entry}
            self.heap[:] = valid.values()
            heapify(self.heap)
            self._old = 0


class Queue:
    """A queue: its controls, its lanes, and how many of its jobs are in each state."""

    __slots__ = (
        "counts", "lanes", "limit", "name", "paused", "rate", "refilled_at", "tokens"
    )  # fmt: skip

    def __init__(self, name: str, now: datetime) -> None:
        self.name = name
        self.paused = False
        self.limit: int | None = None
        self.rate: tuple[int, float] | None = None
        self.tokens = 0.0
        self.refilled_at = now
        self.counts: dict[State, int] = {}
        self.lanes: dict[str | None, Lane] = {}

    @property
    def controlled(self) -> bool:
        return self.paused or self.limit is not None or self.rate is not None

    def cap(self, now: datetime) -> QueueCap:
        """What it still allows, its bucket filled up to now."""
        if self.rate is not None:
            self.tokens = refill(self.tokens, self.refilled_at, now, *self.rate)
            self.refilled_at = max(now, self.refilled_at)
        running = None if self.limit is None else self.limit - self.counts.get(State.RUNNING, 0)
        return QueueCap(0 if self.paused else running, self.tokens if self.rate else None)

    def info(self) -> QueueInfo:
        dues = (entry[1] for lane in self.lanes.values() for entry in lane)
        return QueueInfo(
            name=self.name,
            paused=self.paused,
            limit=self.limit,
            rate=self.rate,
            jobs={state: n for state, n in self.counts.items() if n and state in LIVE},
            oldest=min(dues, default=None),
        )


@dataclass(slots=True, eq=False)
class Watch:
    """Stands for a row among those that can expire."""

    row: Row
    entry: Entry[Watch] | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """A stored job: the fields of Job, what only the store knows, and its place in the indexes."""

    id: JobId
    kind: str
    args: str
    state: State
    queue: str
    enqueued_at: datetime
    due_at: datetime
    name: str | None
    priority: int
    max_attempts: int
    max_crashes: int
    timeout: float | None
    node: str | None
    unique_key: str | None
    unique_scope: Scope | None
    unique_until: datetime | None
    serial_key: str | None
    metadata: Mapping[str, str]
    parent: JobId | None
    schedule: str | None
    tick: datetime | None
    count: int | None
    expires_at: datetime | None
    result_ttl: timedelta | None
    number: int
    home: Queue
    attempt: int = 0
    crashes: int = 0
    generation: int = 1
    fence: int = 0
    ran_on: str | None = None
    worker: WorkerId | None = None
    result: str | None = None
    progress: str | None = None
    partial: str | None = None
    error: str | None = None
    reason: str | None = None
    parked: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested: datetime | None = None
    prune_at: datetime | None = None
    gone: bool = False
    entry: Entry[Row] | None = None
    order: Order[Row] | None = None
    watch: Watch | None = None
    attempts: deque[Attempt] | None = None
    logs: list[tuple[int, LogLine]] | None = None

    @property
    def row(self) -> Row:
        return self

    @property
    def rank(self) -> tuple[int, datetime, int]:
        return (-self.priority, self.due_at, self.number)

    @property
    def affordable(self) -> bool:
        return self.crashes == 0 and self.max_attempts - self.attempt > 1

    @classmethod
    def of(cls, new: NewJob, now: datetime, home: Queue) -> Row:
        due = at(new.due, now)
        until = new.unique_scope == "until"
        return cls(
            id=new.id,
            kind=new.kind,
            args=new.args,
            state=State.SCHEDULED if due > now else State.AVAILABLE,
            queue=new.queue,
            enqueued_at=now,
            due_at=due,
            name=new.name,
            priority=new.priority,
            max_attempts=new.max_attempts,
            max_crashes=new.max_crashes,
            timeout=new.timeout,
            node=new.node,
            unique_key=new.unique_key or None,
            unique_scope=new.unique_scope if new.unique_key else None,
            unique_until=now + (new.unique_window or timedelta(0)) if until else None,
            serial_key=new.serial_key or None,
            metadata=dict(new.metadata) if new.metadata else {},
            parent=new.parent,
            schedule=new.schedule,
            tick=new.tick,
            count=new.count,
            expires_at=lifecycle.expiry(new, now),
            result_ttl=new.result_ttl,
            number=new.id.int,
            home=home,
        )

    def passes(self, what: Filter) -> bool:
        parked = self.parked > 0 and self.state is State.SCHEDULED
        return (
            (not what.states or self.state in what.states)
            and (not what.kinds or self.kind in what.kinds)
            and (not what.queues or self.queue in what.queues)
            and (what.ids is None or self.id in what.ids)
            and (what.schedule is None or self.schedule == what.schedule)
            and (what.parent is None or self.parent == what.parent)
            and (what.since is None or self.enqueued_at >= what.since)
            and (what.until is None or self.enqueued_at < what.until)
            and (what.parked is None or parked == what.parked)
            and all(self.metadata.get(key) == value for key, value in what.metadata.items())
        )

    def mentions(self, needle: str) -> bool:
        error = decode_error(self.error)
        said = (self.reason, str(error) if error else None)
        texts = (str(self.id), self.name, self.kind, self.unique_key, self.serial_key, *said)
        return any(needle in text.casefold() for text in texts if text)

    def record(self, move: Transition, now: datetime) -> None:
        if (ended := move.ended) is not None:
            if self.attempts is None:
                self.attempts = deque(maxlen=_KEEP_ATTEMPTS)
            self.attempts.append(replace(ended, ended_at=ended.ended_at or now))
        if move.logs:
            self.logs = [*(self.logs or ()), *((move.fence, line) for line in move.logs)]

    def job(self) -> Job:
        return Job(**{name: getattr(self, name) for name in _JOB_FIELDS})

    def claimed(self) -> Claimed:
        return Claimed(
            self.id,
            self.fence,
            self.kind,
            self.args,
            self.attempt,
            self.max_attempts,
            self.crashes,
            self.max_crashes,
            self.generation,
            self.queue,
            self.name,
            self.timeout,
            self.metadata or None,
            self.schedule,
            self.tick,
            self.count,
            self.parked,
            self.result_ttl,
        )


_JOB_FIELDS: Final = tuple(field.name for field in fields(Job))


@dataclass(slots=True)
class Worker:
    """A worker's last beat; `lost` is final."""

    beat: Beat
    started_at: datetime
    beat_at: datetime
    lost: bool = False

    def seen(self) -> Node:
        beat = self.beat
        return Node(
            worker=beat.worker,
            node=beat.node,
            pid=beat.pid,
            queues=beat.queues,
            slots=beat.slots,
            running=beat.running,
            started_at=self.started_at,
            beat_at=self.beat_at,
            lease=beat.lease,
            stopping=beat.stopping,
        )

    def lapsed(self, now: datetime) -> bool:
        return self.lost or now > self.beat_at + self.beat.lease


@dataclass(slots=True)
class Walk:
    """One claim's way along the lanes.

    What it has `seen` is out of its lane until put back; lanes of closed queues are set `aside`.
    """

    left: dict[str, int]
    now: datetime
    seen: list[Place] = field(default_factory=list[Any])
    aside: list[tuple[list[Place], Place]] = field(default_factory=list[Any])

    def along(self, heap: list[Place], *, listed: bool) -> Iterator[Entry[Row]]:
        """Yield the heads of the heap's lanes in order; `listed` is the store's own board."""
        while heap:
            entry, lane = heap[0]
            if listed and lane.listed is not entry:
                heappop(heap)
                continue
            if self.left and self.left.get(lane.queue, 1) <= 0:
                self.aside.append((heap, heappop(heap)))
                continue
            head = lane.head()
            if head is not entry:
                if head is None:
                    heappop(heap)
                else:
                    heapreplace(heap, (head, lane))
                if listed:
                    lane.listed = head
                continue
            row = entry[3]
            lane.take(entry)
            self.seen.append((entry, lane))
            if row.expires_at is None or row.expires_at > self.now:
                yield entry


def at(moment: Moment, now: datetime) -> datetime:
    return now + moment if isinstance(moment, timedelta) else moment
