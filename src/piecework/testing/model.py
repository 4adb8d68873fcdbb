"""What a store must do, said as simply as can be: a dict of Jobs, and loops over all of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import FINAL, WAITING, Job, JobId, NewJob, Retention, State, WorkerId
from piecework.ports import Inserted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from piecework.core.lifecycle import Transition
    from piecework.ports import Ask
    from piecework.testing.clock import FakeClock

__all__ = ["Controls", "Model"]

_SAME = {field.name for field in fields(NewJob)} & {field.name for field in fields(Job)}


def _order(job: Job) -> tuple[int, datetime, JobId]:
    return (-job.priority, job.due_at, job.id)


def _affordable(job: Job) -> bool:
    return job.crashes == 0 and job.max_attempts - job.attempt > 1


@dataclass
class Controls:
    """What an operator set for a queue."""

    paused: bool = False
    limit: int | None = None
    rate: tuple[int, float] | None = None
    tokens: float = 0.0
    filled_at: datetime | None = None


@dataclass
class Model:
    """The jobs as they should be, and who holds which key."""

    clock: FakeClock
    jobs: dict[JobId, Job] = field(default_factory=dict[JobId, Job])
    uniques: dict[tuple[str, str], JobId] = field(default_factory=dict[tuple[str, str], JobId])
    turns: dict[str, JobId] = field(default_factory=dict[str, JobId])
    goes_at: dict[JobId, datetime] = field(default_factory=dict[JobId, datetime])
    queues: dict[str, Controls] = field(default_factory=dict[str, Controls])
    beats: dict[WorkerId, datetime] = field(default_factory=dict[WorkerId, datetime])
    attempts: dict[JobId, int] = field(default_factory=dict[JobId, int])

    # ── keys ─────────────────────────────────────────────────────────────────────────────

    def holder(self, kind: str, key: str) -> Job | None:
        """Return who holds the unique key now."""
        holder = self.uniques.get((kind, key))
        job = None if holder is None else self.jobs.get(holder)
        if job is None or (job.unique_scope == "live" and job.state in FINAL):
            return None
        return job if job.unique_until is None or job.unique_until > self.clock.now() else None

    def enter(self, job: Job) -> None:
        """The job is stored; a move to available takes its turn, or waits for it."""
        key, before = job.serial_key, self.jobs.get(job.id)
        if key is not None and self.turns.get(key) == job.id:
            retries = before is not None and before.state is State.RUNNING
            if job.state in FINAL or (job.state is State.SCHEDULED and not retries):
                del self.turns[key]
        elif key is not None and job.state is State.AVAILABLE:
            if key in self.turns or self._queued(key):
                job = replace(job, state=State.BLOCKED)
            else:
                self.turns[key] = job.id
        self.jobs[job.id] = job

    def _queued(self, key: str) -> bool:
        jobs = self.jobs.values()
        return any(job.state is State.BLOCKED and job.serial_key == key for job in jobs)

    def promote(self) -> None:
        """Each idle key goes to its next blocked job."""
        blocked = [job for job in self.jobs.values() if job.state is State.BLOCKED]
        for job in sorted(blocked, key=_order):
            key = str(job.serial_key)
            if key not in self.turns:
                self.turns[key] = job.id
                self.jobs[job.id] = replace(job, state=State.AVAILABLE)

    # ── writes ───────────────────────────────────────────────────────────────────────────

    def insert(self, news: Sequence[NewJob]) -> list[Inserted]:
        """As the store, or raise DuplicateJob and leave everything as it was."""
        before = (dict(self.jobs), dict(self.uniques), dict(self.turns))
        try:
            return [self._insert(new) for new in news]
        except DuplicateJob:
            self.jobs, self.uniques, self.turns = before
            raise

    def _insert(self, new: NewJob) -> Inserted:
        now = self.clock.now()
        known = self.jobs.get(new.id)
        if known is None and new.unique_key is not None:
            known = self.holder(new.kind, new.unique_key)
            if known is not None and new.on_duplicate == "raise":
                raise DuplicateJob(new.kind, new.unique_key, known.id)
            if known is not None and new.on_duplicate == "replace":
                move = lifecycle.replace(known, new, now=now)
                if move is not None:
                    assert self.apply(move)
                    known = self.jobs[known.id]
        if known is not None:
            return Inserted(known.id, created=False, args_differ=known.args != new.args)
        assert isinstance(new.due, timedelta)
        given: dict[str, Any] = {name: getattr(new, name) for name in _SAME}
        given["metadata"] = new.metadata or {}
        given["unique_scope"] = new.unique_scope if new.unique_key else None
        given["unique_until"] = now + new.unique_window if new.unique_window else None
        given["expires_at"] = lifecycle.expiry(new, now)
        given["state"] = State.AVAILABLE if new.due <= timedelta(0) else State.SCHEDULED
        job = Job(**given, enqueued_at=now, due_at=now + new.due)
        if new.unique_key is not None:
            self.uniques[new.kind, new.unique_key] = new.id
        self.enter(job)
        self.promote()
        return Inserted(new.id, created=True)

    def apply(self, move: Transition, *, last: bool = True) -> bool:
        """Return whether the move takes effect."""
        job, now = self.jobs.get(move.id), self.clock.now()
        if job is None or job.state not in move.states or job.fence != move.fence:
            return False
        if move.unless_cancelled and job.cancel_requested is not None:
            return False
        if move.take_unique and job.unique_key is not None:
            holder = self.holder(job.kind, job.unique_key)
            if holder is not None and holder.id != job.id:
                return False
            if job.unique_until is None or job.unique_until > now:
                self.uniques[job.kind, job.unique_key] = job.id
        changes: dict[str, Any] = {
            name: now + value if isinstance(value, timedelta) else value
            for name, value in move.changes.items()
        }
        if "prune_at" in changes:
            goes_at = changes.pop("prune_at")
            self.goes_at.pop(job.id, None)
            if goes_at is not None:
                self.goes_at[job.id] = goes_at
        if changes.get("metadata", {}) is None:
            changes["metadata"] = {}
        self.enter(replace(job, **changes))
        self.attempts[job.id] = self.attempts.get(job.id, 0) + (move.ended is not None)
        if last:
            self.promote()
        return True

    def stage(self) -> None:
        """What expired is expired, what is due is available or blocked."""
        now = self.clock.now()
        for job in list(self.jobs.values()):
            if job.state in WAITING and job.expires_at is not None and job.expires_at <= now:
                self.enter(replace(job, state=State.EXPIRED, finished_at=now))
        self.promote()
        for job in sorted(self.jobs.values(), key=_order):
            if job.state is State.SCHEDULED and job.due_at <= now:
                self.enter(replace(job, state=State.AVAILABLE))
        self.promote()

    def start(self, job_id: JobId, ask: Ask) -> Job:
        """The job runs in the worker's name."""
        job = self.jobs[job_id]
        job = self.jobs[job_id] = replace(
            job,
            state=State.RUNNING,
            fence=job.fence + 1,
            attempt=job.attempt + 1,
            worker=ask.worker,
            ran_on=ask.node,
            started_at=self.clock.now(),
        )
        if job.queue in self.queues:
            self.queues[job.queue].tokens -= 1
        return job

    def forget(self, ids: Iterable[JobId]) -> None:
        """The jobs are gone."""
        for job_id in ids:
            del self.jobs[job_id]
            self.goes_at.pop(job_id, None)

    # ── what may happen ──────────────────────────────────────────────────────────────────

    def claimable(self, ask: Ask) -> list[Job]:
        """Return what this worker is to have, in order."""
        now, rooms = self.clock.now(), dict(ask.rooms)
        left = {name: self._left(name) for name in self.queues}
        found: list[Job] = []
        for job in sorted(self.jobs.values(), key=_order):
            if (
                job.state is State.AVAILABLE
                and (ask.queues is None or job.queue in ask.queues)
                and job.node in {None, ask.node}
                and (job.expires_at is None or job.expires_at > now)
                and rooms.get(job.kind, 1) > 0
                and left.get(job.queue, 1) > 0
                and (len(found) < ask.free or _affordable(job))
                and len(found) < ask.free + ask.ahead
            ):
                found.append(job)
                if job.kind in rooms:
                    rooms[job.kind] -= 1
                if job.queue in left:
                    left[job.queue] -= 1
        return found

    def _left(self, name: str) -> int:
        queue, now = self.queues[name], self.clock.now()
        if queue.paused:
            return 0
        left = 10**9
        if queue.limit is not None:
            running = sum(
                job.state is State.RUNNING and job.queue == name for job in self.jobs.values()
            )
            left = queue.limit - running
        if queue.rate is not None and queue.filled_at is not None:
            n, window = queue.rate
            if now > queue.filled_at:
                passed = (now - queue.filled_at).total_seconds()
                queue.tokens = min(float(n), queue.tokens + passed * n / window)
                queue.filled_at = now
            left = min(left, int(queue.tokens + 1e-9))
        return left

    def outlived(self, retention: Retention) -> set[JobId]:
        """Return the ids of the jobs whose time to be kept is over."""
        now, gone = self.clock.now(), set[JobId]()
        for job in self.jobs.values():
            if job.state not in FINAL or job.finished_at is None:
                continue
            keep = retention.of(job.state)
            goes_at = self.goes_at.get(job.id)
            if goes_at is None and keep is not None:
                goes_at = job.finished_at + keep
            if goes_at is not None and goes_at <= now:
                gone.add(job.id)
        return gone
