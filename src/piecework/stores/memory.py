"""Jobs in this process's memory: the shortest store, and the measure of the boundary's width."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta
from heapq import heapify, heappush, merge
from itertools import chain, islice
from operator import attrgetter, itemgetter
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import FINAL, Attempt, Claimed, Job, Retention, State
from piecework.ports import (
    Beaten,
    Fate,
    Finding,
    Hint,
    Inserted,
    JobStatus,
    Node,
    QueueInfo,
    Refused,
    Staged,
)
from piecework.stores._admission import take
from piecework.stores._hints import Hub
from piecework.stores._shelf import Board, Lane, Order, Queue, Row, Walk, Watch, Worker, at
from piecework.system import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from piecework.core.job import JobId, LogLine, NewJob, WorkerId
    from piecework.core.lifecycle import Transition
    from piecework.ports import Ask, Beat, Bound, Clock, Filter, QueueChange
    from piecework.stores._shelf import Entry, Place

__all__ = ["MemoryStore"]

L = TypeVar("L", Row, Watch)

_TEXT_WINDOW: Final = 10_000
_AVAILABLE, _RUNNING, _SCHEDULED = State.AVAILABLE, State.RUNNING, State.SCHEDULED


class MemoryStore:
    """A Store and Reader in this process's memory, safe in any thread and on any event loop.

    One lock guards everything, and nothing is awaited while it is held.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = Lock()
        self._hub = Hub()
        self._told: set[str] = set()
        self._rows: dict[JobId, Row] = {}
        self._history: list[Row] = []
        self._history_sorted = True
        self._history_gone = 0
        self._queues: dict[str, Queue] = {}
        self._controlled: dict[str, Queue] = {}
        self._boards: dict[str | None, Board] = {}
        self._scheduled: Order[Row] = Order()
        self._expiring: Order[Watch] = Order()
        # Final jobs by state; under None those that were given a time of their own to go.
        self._final: dict[State | None, Order[Row]] = {s: Order() for s in (*FINAL, None)}
        self._blocked: dict[str, Order[Row]] = {}
        self._holders: dict[str, Row] = {}
        self._uniques: dict[tuple[str, str], Row] = {}
        self._running: dict[WorkerId, dict[Row, None]] = {}
        self._workers: dict[WorkerId, Worker] = {}

    def __repr__(self) -> str:
        """Return how many jobs it has."""
        return f"<MemoryStore of {len(self._rows)} jobs>"

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def shared(self) -> bool:
        return False

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self) -> list[Finding]:
        count = len(self._rows)
        return [Finding("ok", "memory", f"{count:,} jobs, which end with this process")]

    async def bind(self, connection: Any) -> Bound:
        what = type(connection).__qualname__
        raise TypeError(
            f"the memory store cannot write inside the transaction of a {what}: "
            "use the store of the same database"
        )

    def hints(self) -> AsyncIterator[Hint]:
        return self._hub.listen()

    def _tell(self) -> None:
        """Pass on what the call noted."""
        if self._told:
            told, self._told = self._told, set()
            self._hub.tell(Hint(frozenset(cast("set[Any]", told))))

    # ── insert ───────────────────────────────────────────────────────────────────────────

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        with self._lock:
            now = self._clock.now()
            # First everything that may raise, then everything that changes something.
            plan = self._plan(jobs, now)
            freed: dict[str, None] = {}
            answers = [self._insert(new, stands, now, freed) for new, stands in plan]
            self._promote(freed)
            self._tell()
            return answers

    def _plan(self, jobs: Sequence[NewJob], now: datetime) -> list[tuple[NewJob, JobId]]:
        """Each job with the id of the one that will stand for it."""
        plan: list[tuple[NewJob, JobId]] = []
        fresh: set[JobId] = set()
        taken: dict[tuple[str, str], JobId] = {}
        for new in jobs:
            stands = new.id
            if new.id not in self._rows and new.id not in fresh:
                if (expires := lifecycle.expiry(new, now)) and expires <= max(
                    now, at(new.due, now)
                ):
                    raise ValueError(f"expiry {expires} is not later than the start of the job")
                if new.unique_key:
                    key = (new.kind, new.unique_key)
                    holder = self._unique_holder(key, now)
                    stands = taken.setdefault(key, holder.id if holder else new.id)
                    if stands != new.id and new.on_duplicate == "raise":
                        raise DuplicateJob(new.kind, new.unique_key, stands)
                fresh.add(stands)
            plan.append((new, stands))
        return plan

    def _insert(
        self, new: NewJob, stands: JobId, now: datetime, freed: dict[str, None]
    ) -> Inserted:
        row = self._rows.get(stands)
        if row is None:
            self._add(new, now)
            return Inserted(stands, created=True)
        if stands != new.id and new.on_duplicate == "replace":
            move = lifecycle.replace(row.job(), new, now=now)
            if move is not None:
                self._move(row, move, now, freed)
                self._promote(freed)
        return Inserted(stands, created=False, args_differ=row.args != new.args)

    def _add(self, new: NewJob, now: datetime) -> None:
        home = self._queues.get(new.queue)
        if home is None:
            home = self._queues[new.queue] = Queue(new.queue, now)
        row = self._rows[new.id] = Row.of(new, now, home)
        if row.unique_key is not None:
            self._uniques[row.kind, row.unique_key] = row
        history = self._history
        if history and history[-1].number > row.number:
            self._history_sorted = False
        history.append(row)
        self._enter(row)

    # ── the two things each change of state does to the indexes ──────────────────────────

    def _leave(self, row: Row) -> None:
        """The row is in no index of its state any more."""
        row.home.counts[row.state] -= 1
        if row.state is _RUNNING:
            worker = cast("WorkerId", row.worker)
            mine = self._running[worker]
            del mine[row]
            if not mine:
                del self._running[worker]
            return
        row.entry = None
        if (order := row.order) is not None:
            row.order = None
            order.left()
        if row.watch is not None:
            self._unwatch(row.watch)

    def _enter(self, row: Row) -> None:
        """The row is in the indexes of its state; `available` may turn into `blocked` here."""
        key, state = row.serial_key, row.state
        if key is not None and state is _AVAILABLE and self._holders.get(key) is not row:
            if key in self._holders or key in self._blocked:
                state = row.state = State.BLOCKED
            else:
                self._holders[key] = row
        counts = row.home.counts
        counts[state] = counts.get(state, 0) + 1
        if state in FINAL:
            self._told.add("done")
            self._enter_final(row)
            return
        if state is _AVAILABLE:
            self._told.add("work")
            self._push_lane(row, self._lane(row), (-row.priority, row.due_at, row.number, row))
        elif state is _SCHEDULED:
            self._told.add("due")
            row.order = self._scheduled
            self._scheduled.push((0, row.due_at, row.number, row))
        else:
            order = self._blocked.setdefault(cast("str", key), Order())
            row.order = order
            order.push((-row.priority, row.due_at, row.number, row))
        if row.expires_at is not None:
            if row.watch is None:
                row.watch = Watch(row)
            self._expiring.push((0, row.expires_at, row.number, row.watch))

    def _unwatch(self, watch: Watch) -> None:
        if watch.entry is not None:
            watch.entry = None
            self._expiring.left()

    def _enter_final(self, row: Row) -> None:
        own = row.prune_at is not None
        order = row.order = self._final[None if own else row.state]
        order.push((0, row.prune_at or row.finished_at or row.due_at, row.number, row))
        if row.unique_key is not None and row.unique_scope == "live":
            self._free_unique(row)

    def _lane(self, row: Row) -> Lane:
        lane = row.home.lanes.get(row.node)
        if lane is None:
            lane = row.home.lanes[row.node] = Lane(row.queue)
            self._boards.setdefault(row.node, Board())
        return lane

    def _push_lane(self, row: Row, lane: Lane, entry: Entry[Row]) -> None:
        row.order = lane
        lane.push(entry)
        self._boards[row.node].offer(entry, lane)

    # ── keys ─────────────────────────────────────────────────────────────────────────────

    def _unique_holder(self, key: tuple[str, str], now: datetime) -> Row | None:
        row = self._uniques.get(key)
        if row is None or (row.unique_until is not None and row.unique_until <= now):
            return None
        return row

    def _free_unique(self, row: Row) -> None:
        key = (row.kind, cast("str", row.unique_key))
        if self._uniques.get(key) is row:
            del self._uniques[key]

    def _free_serial(self, row: Row, freed: dict[str, None]) -> None:
        key = cast("str", row.serial_key)
        if self._holders.get(key) is row:
            del self._holders[key]
            freed[key] = None

    def _promote(self, freed: dict[str, None]) -> int:
        """Each freed key has gone to its next blocked job, if there is one."""
        count = 0
        for key in freed:
            order = self._blocked.get(key)
            if order is None or key in self._holders:
                continue
            head = order.head()
            if head is not None:
                row = head[3]
                self._leave(row)
                row.state = _AVAILABLE
                self._holders[key] = row
                self._enter(row)
                count += 1
            if order.head() is None:
                del self._blocked[key]
        return count

    # ── claim ────────────────────────────────────────────────────────────────────────────

    async def claim(self, ask: Ask) -> list[Claimed]:
        with self._lock:
            worker = self._workers.get(ask.worker)
            if worker is not None and worker.lost:
                return []
            now = self._clock.now()
            caps = ((name, queue.cap(now).room) for name, queue in self._controlled.items())
            left = {name: room for name, room in caps if room is not None}
            walk = Walk(left, now)
            rows = take(self._in_order(ask, walk), ask, left)
            claimed = [self._claim(row, ask, now) for row in rows]
            for entry, lane in walk.seen:
                if entry[3].state is _AVAILABLE:
                    self._push_lane(entry[3], lane, entry)
            for heap, place in walk.aside:
                heappush(heap, place)
            for queue in self._controlled.values():
                if queue.rate is not None:
                    queue.tokens -= sum(row.home is queue for row in rows)
            return claimed

    def _in_order(self, ask: Ask, walk: Walk) -> Iterator[Row]:
        """The available jobs that this worker may have, in order of priority, due time, id."""
        if ask.queues is None:
            boards = [b for node in (None, ask.node) if (b := self._boards.get(node))]
            walks = [walk.along(board.heap, listed=True) for board in boards]
        else:
            heap: list[Place] = []
            for name in dict.fromkeys(ask.queues):
                lanes = queue.lanes if (queue := self._queues.get(name)) else {}
                found = (lane for node in (None, ask.node) if (lane := lanes.get(node)))
                heap += ((head, lane) for lane in found if (head := lane.head()))
            heapify(heap)
            walks = [walk.along(heap, listed=False)]
        return map(itemgetter(3), walks[0] if len(walks) == 1 else merge(*walks))

    def _claim(self, row: Row, ask: Ask, now: datetime) -> Claimed:
        counts = row.home.counts
        counts[_AVAILABLE] -= 1
        counts[_RUNNING] = counts.get(_RUNNING, 0) + 1
        row.state = _RUNNING
        row.order = None
        if row.watch is not None:
            self._unwatch(row.watch)
        row.fence += 1
        row.attempt += 1
        row.worker = ask.worker
        row.ran_on = ask.node
        row.started_at = now
        mine = self._running.get(ask.worker)
        if mine is None:
            mine = self._running[ask.worker] = {}
        mine[row] = None
        return row.claimed()

    # ── apply ────────────────────────────────────────────────────────────────────────────

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        with self._lock:
            now = self._clock.now()
            freed: dict[str, None] = {}
            refused: list[tuple[Transition, Row | None]] = []
            for move in transitions:
                refusal = self._apply(move, now, freed)
                if refusal is not None:
                    refused.append((move, refusal[0]))
            self._promote(freed)
            self._tell()
            return [
                Refused(move, row.job() if row else None, holder.id if holder else None)
                for move, holder in refused
                for row in (self._rows.get(move.id),)
            ]

    def _apply(
        self, move: Transition, now: datetime, freed: dict[str, None]
    ) -> tuple[Row | None] | None:
        """Return None where it took effect, else (who holds the unique key it wanted or None,)."""
        row = self._rows.get(move.id)
        if (
            row is None
            or row.state not in move.states
            or row.fence != move.fence
            or (move.unless_cancelled and row.cancel_requested is not None)
        ):
            return (None,)
        if move.take_unique and row.unique_key is not None:
            key = (row.kind, row.unique_key)
            holder = self._unique_holder(key, now)
            if holder is not None and holder is not row:
                return (holder,)
            if row.unique_until is None or row.unique_until > now:
                self._uniques[key] = row
        self._move(row, move, now, freed)
        return None

    def _move(self, row: Row, move: Transition, now: datetime, freed: dict[str, None]) -> None:
        before, after = row.state, move.changes["state"]
        if after is not _RUNNING:
            self._leave(row)
        for name, value in move.changes.items():
            setattr(row, name, now + value if isinstance(value, timedelta) else value)
        if move.ended is not None or move.logs:
            row.record(move, now)
        if "metadata" in move.changes:
            row.metadata = dict(move.changes["metadata"] or {})
        if after is _RUNNING:
            if "cancel_requested" in move.changes:
                self._told.add("control")
            return
        if after is _AVAILABLE and row.due_at > now and "due_at" in move.changes:
            after = row.state = _SCHEDULED  # decided by a clock ahead of ours: not due yet
        if row.serial_key is not None and (
            after in FINAL or (after is _SCHEDULED and before is not _RUNNING)
        ):
            self._free_serial(row, freed)
        self._enter(row)
        if row.state is State.BLOCKED:
            freed[cast("str", row.serial_key)] = None

    # ── what time brings ─────────────────────────────────────────────────────────────────

    async def stage(self, *, limit: int) -> Staged:
        with self._lock:
            now = self._clock.now()
            freed: dict[str, None] = {}
            expired = [watch.row for watch in self._reached(self._expiring, now, limit)]
            for row in expired:
                row.state = State.EXPIRED
                row.finished_at = now
                if row.serial_key is not None:
                    self._free_serial(row, freed)
                self._enter(row)
            promoted = self._promote(freed)
            due = list(self._reached(self._scheduled, now, limit))
            for row in sorted(due, key=attrgetter("rank")):
                row.state = _AVAILABLE
                self._enter(row)
            self._tell()
            heads = (self._expiring.head(), self._scheduled.head())
            next_due = min((head[1] for head in heads if head), default=None)
            seconds = None if next_due is None else max(0.0, (next_due - now).total_seconds())
            return Staged(len(due), len(expired), promoted, seconds, more=seconds == 0.0)

    def _reached(self, order: Order[L], now: datetime, limit: int) -> Iterator[L]:
        """Take what has reached its time out of all indexes, at most so many."""
        for _ in range(limit):
            head = order.head()
            if head is None or head[1] > now:
                return
            self._leave(head[3].row)
            yield head[3]

    # ── workers ──────────────────────────────────────────────────────────────────────────

    async def beat(self, beat: Beat) -> Beaten:
        with self._lock:
            now = self._clock.now()
            worker = self._workers.get(beat.worker)
            if worker is None:
                worker = self._workers[beat.worker] = Worker(beat, now, now)
            elif not worker.lost:
                worker.beat = beat
                worker.beat_at = max(now, worker.beat_at)
            mine = self._running.get(beat.worker, {})
            running = {row.id: (row.fence, row.cancel_requested is not None) for row in mine}
            return Beaten(Fate.LOST if worker.lost else Fate.ALIVE, running)

    async def retire(self, worker: WorkerId) -> None:
        with self._lock:
            if (known := self._workers.get(worker)) is not None:
                known.lost = True

    async def orphans(self, *, limit: int) -> list[Job]:
        with self._lock:
            now = self._clock.now()
            for worker in self._workers.values():
                worker.lost = worker.lapsed(now)
            alive = {worker_id for worker_id, worker in self._workers.items() if not worker.lost}
            gone = (mine for worker_id, mine in self._running.items() if worker_id not in alive)
            return [row.job() for row in islice(chain.from_iterable(gone), limit)]

    async def nodes(self) -> list[Node]:
        with self._lock:
            now = self._clock.now()
            alive = [worker for worker in self._workers.values() if not worker.lapsed(now)]
            return [worker.seen() for worker in sorted(alive, key=attrgetter("started_at"))]

    # ── retention ────────────────────────────────────────────────────────────────────────

    async def prune(self, what: Retention | Sequence[JobId], *, limit: int) -> list[JobId]:
        with self._lock:
            if isinstance(what, Retention):
                rows = self._outlived(what, self._clock.now())
            else:
                rows = (row for job_id in what if (row := self._rows.get(job_id)))
                rows = (row for row in rows if row.state in FINAL)
            gone = [self._forget(row) for row in islice(rows, limit)]
            if self._history_gone * 2 > len(self._history):
                self._history = [row for row in self._history if not row.gone]
                self._history_gone = 0
            return gone

    def _outlived(self, retention: Retention, now: datetime) -> Iterator[Row]:
        for state, order in self._final.items():
            keep = timedelta(0) if state is None else retention.of(state)
            while keep is not None and (head := order.head()) and head[1] + keep <= now:
                yield head[3]

    def _forget(self, row: Row) -> JobId:
        self._leave(row)
        del self._rows[row.id]
        row.gone = True
        self._history_gone += 1
        if row.unique_key is not None:
            self._free_unique(row)
        queue = row.home
        if not queue.controlled and not any(queue.counts.values()):
            self._drop(queue)
        return row.id

    def _drop(self, queue: Queue) -> None:
        del self._queues[queue.name]
        for node, lane in queue.lanes.items():
            self._boards[node].withdraw(lane)
            lane.clear()

    # ── controls ─────────────────────────────────────────────────────────────────────────

    async def configure(self, changes: Sequence[QueueChange]) -> None:
        with self._lock:
            now = self._clock.now()
            for change in changes:
                queue = self._queues.setdefault(change.name, Queue(change.name, now))
                if change.paused != "unset":
                    queue.paused = change.paused
                if change.running != "unset":
                    queue.limit = change.running
                if change.rate != "unset" and change.rate != queue.rate:  # noqa: PLR1714 - narrows the type
                    # A new rate begins with a full bucket; the same one keeps its level.
                    queue.rate = change.rate
                    queue.tokens = float(change.rate[0]) if change.rate else 0.0
                    queue.refilled_at = now
                if queue.controlled:
                    self._controlled[queue.name] = queue
                else:
                    self._controlled.pop(queue.name, None)
                    if not any(queue.counts.values()):
                        self._drop(queue)
            self._told |= {"control", "work"}
            self._tell()

    # ── Reader ───────────────────────────────────────────────────────────────────────────

    async def get(self, ids: Sequence[JobId]) -> list[Job]:
        with self._lock:
            return [row.job() for job_id in ids if (row := self._rows.get(job_id))]

    async def statuses(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        with self._lock:
            rows = [row for job_id in ids if (row := self._rows.get(job_id))]
            return {
                row.id: JobStatus(row.state, row.generation, row.attempt, row.progress)
                for row in rows
            }

    async def attempts(self, job_id: JobId) -> list[Attempt]:
        with self._lock:
            row = self._rows.get(job_id)
            return list(row.attempts or ()) if row else []

    async def logs(self, job_id: JobId) -> list[tuple[int, LogLine]]:
        with self._lock:
            row = self._rows.get(job_id)
            return list(row.logs or ()) if row else []

    async def count(self) -> dict[tuple[str, State], int]:
        with self._lock:
            return {
                (queue.name, state): n
                for queue in self._queues.values()
                for state, n in queue.counts.items()
                if n
            }

    async def queues(self) -> list[QueueInfo]:
        with self._lock:
            found = (self._queues[name].info() for name in sorted(self._queues))
            return [info for info in found if info.jobs or info.name in self._controlled]

    async def find(self, what: Filter, *, after: JobId | None, limit: int) -> list[Job]:
        with self._lock:
            history = self._history
            if not self._history_sorted:
                history.sort(key=attrgetter("number"))
                self._history_sorted = True
            end = len(history)
            if after is not None:
                end = bisect_left(history, after.int, key=attrgetter("number"))
            newest = (history[index] for index in range(end - 1, -1, -1))
            rows = (row for row in newest if not row.gone and row.passes(what))
            if what.text is not None:
                needle = what.text.casefold()
                rows = (row for row in islice(rows, _TEXT_WINDOW) if row.mentions(needle))
            return [row.job() for row in islice(rows, limit)]
