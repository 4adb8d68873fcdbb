"""Every legal move of a job, as pure functions: job and what happened -> Transition.

    enqueue ──► scheduled ──due──► available ──claim──► running ──► completed
       │            │                 ▲   ▲                ├──────► failed
       ├─ due now ──│─────────────────┘   │                ├──────► cancelled
       │            └─ due, key busy ─┐   │                ├──────► scheduled   retry, snooze, park
       └─ key busy ───────► blocked ◄─┘   │                ├──────► available   released
                               └─ turn ───┘                └──────► available | scheduled | failed
                                                                    worker lost: rescued, charged
    scheduled, blocked, available ──► cancelled | expired
    scheduled, blocked, available ── reschedule, replace ──► scheduled | available | blocked
    completed, failed, cancelled, expired ── operator's retry ──► available | blocked

A Transition is guarded by (state, fence): a store applies it only where both still hold, and
whole. Four things only a store can decide inside its transaction: who holds a unique key, whose
turn a serial key is (a move to `available` lands in `blocked` while another holds the key), what
limits and pauses allow, and what is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Required, TypeAlias, TypedDict, assert_never

from piecework.core.attempts import ErrorInfo, attempt_of, encode_error, storable
from piecework.core.job import FINAL, NOW, WAITING, Attempt, Claimed, Job, JobId, LogLine, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.core.job import Moment, NewJob, WorkerId

__all__ = [
    "EDGES",
    "RUNNING",
    "Changes",
    "Completed",
    "Crashed",
    "ErrorInfo",
    "Failed",
    "GivenBack",
    "Outcome",
    "Parked",
    "Released",
    "Snoozed",
    "Stopped",
    "Transition",
    "cancel",
    "expiry",
    "give_back",
    "progress",
    "replace",
    "reschedule",
    "rescue",
    "retry",
    "settle",
]

RUNNING: Final = frozenset({State.RUNNING})

EDGES: Final[frozenset[tuple[State, State]]] = frozenset(
    {(a, b) for a in WAITING for b in (State.CANCELLED, State.EXPIRED)}
    | {(a, b) for a in WAITING for b in WAITING}
    | {(State.AVAILABLE, State.RUNNING)}
    | {
        (State.RUNNING, b)
        for b in (
            State.COMPLETED,
            State.FAILED,
            State.CANCELLED,
            State.SCHEDULED,
            State.AVAILABLE,
        )
    }
    | {(a, b) for a in FINAL for b in (State.AVAILABLE, State.BLOCKED)}
)
"""Every edge of the life of a job (I6)."""

FIRST_PARK: Final = timedelta(minutes=1)
LONGEST_PARK: Final = timedelta(hours=1)
LONGEST_SNOOZE: Final = timedelta(days=36_525)


class Changes(TypedDict, total=False):
    """The columns a Transition sets. A Moment that is a duration counts from the store's now."""

    state: Required[State]
    due_at: Moment
    finished_at: Moment | None
    started_at: Moment | None
    cancel_requested: Moment | None
    expires_at: Moment | None
    prune_at: Moment | None
    attempt: int
    crashes: int
    generation: int
    fence: int
    parked: int
    priority: int
    node: str | None
    worker: WorkerId | None
    ran_on: str | None
    args: str
    result: str | None
    progress: str | None
    partial: str | None
    error: str | None
    reason: str | None
    metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Transition:
    """One guarded write: takes effect, whole, only where the job is in `states` at `fence`.

    With `unless_cancelled` it also needs that nobody asked for a cancel. `ended` becomes a row of
    the job's attempts, its end stamped by the store; `logs` become lines of the attempt. With
    `take_unique` the job's unique key is taken anew: refused while another job holds it.
    """

    id: JobId
    states: frozenset[State]
    fence: int
    changes: Changes
    unless_cancelled: bool = False
    ended: Attempt | None = None
    logs: tuple[LogLine, ...] = ()
    take_unique: bool = False


# ── how a run can end ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; `result` is JSON."""

    result: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or ran out of time. `retry_in` None means no further attempt."""

    error: ErrorInfo
    retry_in: timedelta | None


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process that ran the handler died."""

    reason: str
    retry_in: timedelta = NOW


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The handler asked to be called again later; not charged."""

    delay: timedelta
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """This worker cannot run the job (unknown kind, undecodable args); not charged."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The handler stopped because of a cancel, or raised Cancelled itself."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The worker stops before the handler could end; not charged."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The handler was never started: the claim is undone; not charged."""


Outcome: TypeAlias = (
    Completed | Failed | Crashed | Snoozed | Parked | Stopped | Released | GivenBack
)


def settle(
    job: Claimed,
    outcome: Outcome,
    *,
    ended: Attempt | None,
    progress: str | None = None,
    logs: tuple[LogLine, ...] = (),
) -> Transition:
    """Return the move that records how this claim of the job ended.

    `ended` describes the attempt; it is kept as a row only where the job goes on, for the job's
    own row tells of its last attempt. `progress` is a report not yet written.
    """
    changes: Changes
    match outcome:
        case Completed(result):
            changes = {
                "state": State.COMPLETED,
                "finished_at": NOW,
                "result": result,
                "error": None,
                "reason": None,
            }
            if job.result_ttl is not None:
                changes["prune_at"] = job.result_ttl
            return _owned(job, changes, progress, logs)
        case Failed(error, None):
            return _end(job, State.FAILED, None, progress, logs, error=encode_error(error))
        case Failed(error, retry_in):
            text = encode_error(error)
            if job.attempt >= job.max_attempts:
                return _end(job, State.FAILED, None, progress, logs, error=text)
            changes = {"state": State.SCHEDULED, "due_at": retry_in or NOW, "error": text}
            return _back(job, changes, ended, progress, logs)
        case Crashed(reason, retry_in):
            crashes = job.crashes + 1
            verdict = _buried(crashes, job.max_crashes, job.attempt, job.max_attempts, reason)
            text = encode_error(ErrorInfo("WorkerCrashed", reason))
            if verdict is not None:
                move = _end(job, State.FAILED, verdict, progress, logs, error=text)
                move.changes["crashes"] = crashes
                return move
            changes = {
                "state": State.SCHEDULED,
                "due_at": retry_in,
                "error": text,
                "reason": reason,
                "crashes": crashes,
            }
            return _back(job, changes, ended, progress, logs)
        case Snoozed(delay, why):
            changes = {
                "state": State.SCHEDULED,
                "due_at": min(delay, LONGEST_SNOOZE),
                "attempt": job.attempt - 1,
                "reason": _reason(why),
            }
            return _back(job, changes, ended, progress, logs)
        case Parked(reason):
            changes = {
                "state": State.SCHEDULED,
                "due_at": min(LONGEST_PARK, FIRST_PARK * 2 ** min(job.parked, 10)),
                "attempt": job.attempt - 1,
                "started_at": None,
                "parked": job.parked + 1,
                "reason": _reason(reason),
            }
            return _back(job, changes, None, None, logs)
        case Stopped(reason):
            return _end(job, State.CANCELLED, reason, progress, logs, unless_cancelled=False)
        case Released():
            changes = {"state": State.AVAILABLE, "attempt": job.attempt - 1}
            return _back(job, changes, ended, progress, logs)
        case GivenBack():
            changes = {
                "state": State.AVAILABLE,
                "attempt": job.attempt - 1,
                "started_at": None,
            }
            return _back(job, changes, None, None, logs)
        case _:
            assert_never(outcome)


def _owned(
    job: Claimed,
    changes: Changes,
    progress: str | None,
    logs: tuple[LogLine, ...],
    *,
    ended: Attempt | None = None,
    unless_cancelled: bool = False,
) -> Transition:
    if progress is not None:
        changes["progress"] = progress
    if job.parked and "parked" not in changes:
        changes["parked"] = 0
    return Transition(job.id, RUNNING, job.fence, changes, unless_cancelled, ended, logs)


def _end(
    job: Claimed,
    state: State,
    reason: str | None,
    progress: str | None,
    logs: tuple[LogLine, ...],
    *,
    error: str | None = None,
    unless_cancelled: bool = True,
) -> Transition:
    changes: Changes = {"state": state, "finished_at": NOW}
    if error is not None:
        changes["error"] = error
    if state is State.FAILED or reason is not None:
        # A cancel wish already wrote its reason; the end of the run does not wipe it out.
        changes["reason"] = _reason(reason)
    return _owned(job, changes, progress, logs, unless_cancelled=unless_cancelled)


def _back(
    job: Claimed,
    changes: Changes,
    ended: Attempt | None,
    progress: str | None,
    logs: tuple[LogLine, ...],
) -> Transition:
    # The fence grows at each taking-back, so that nothing of this claim can be written any more.
    changes["fence"] = job.fence + 1
    changes["worker"] = changes["ran_on"] = None
    if ended is not None:
        changes["expires_at"] = None  # it has started: a retry does not expire
    return _owned(job, changes, progress, logs, ended=ended, unless_cancelled=True)


def _buried(
    crashes: int, max_crashes: int, attempt: int, max_attempts: int, reason: str
) -> str | None:
    """Why a crashed job gets no further attempt, or None if it does."""
    if crashes >= max_crashes:
        return f"crashed its worker {crashes} times: {reason}"
    if attempt >= max_attempts:
        return f"{reason}; no attempts left"
    return None


def progress(
    job: Claimed, *, progress: str | None, partial: str | None, logs: tuple[LogLine, ...] = ()
) -> Transition:
    """Return the owner's write of what a run reports while it goes on."""
    changes: Changes = {"state": State.RUNNING}
    if progress is not None:
        changes["progress"] = progress
    if partial is not None:
        changes["partial"] = partial
    return Transition(job.id, RUNNING, job.fence, changes, logs=logs)


# ── what others may do to a job ──────────────────────────────────────────────────────────────


def cancel(job: Job, reason: str | None) -> Transition | None:
    """Cancel a waiting job, or record the wish on a running one; None if there is nothing to do.

    Nothing is to do for a final job, and for a running one whose cancel was asked for before.
    """
    changes: Changes
    if job.state in WAITING:
        changes = {
            "state": State.CANCELLED,
            "finished_at": NOW,
            "cancel_requested": NOW,
            "reason": _reason(reason),
        }
        return _others(job, changes)
    if job.state is State.RUNNING and job.cancel_requested is None:
        changes = {"state": State.RUNNING, "cancel_requested": NOW, "reason": _reason(reason)}
        return _others(job, changes)
    return None


def retry(job: Job) -> Transition | None:
    """Begin a new generation of a final job; None if the job is live.

    Attempts, crashes, expiry, error, result and progress are cleared, the fence grows, and the
    unique key is taken anew: the store refuses it while another job holds the key.
    """
    if job.state not in FINAL:
        return None
    changes: Changes = {
        "state": State.AVAILABLE,
        "generation": job.generation + 1,
        "fence": job.fence + 1,
        "attempt": 0,
        "crashes": 0,
        "parked": 0,
        "due_at": NOW,
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "cancel_requested": None,
        "prune_at": None,
        "worker": None,
        "ran_on": None,
        "result": None,
        "progress": None,
        "partial": None,
        "error": None,
        "reason": None,
    }
    return Transition(
        job.id,
        frozenset({job.state}),
        job.fence,
        changes,
        ended=attempt_of(job),
        take_unique=job.unique_key is not None,
    )


def reschedule(job: Job, due: Moment, *, now: datetime) -> Transition | None:
    """Move a waiting job to another instant, now included; None if it does not wait."""
    if job.state not in WAITING:
        return None
    return _others(job, _due(due, now))


def replace(job: Job, new: NewJob, *, now: datetime) -> Transition | None:
    """Give a job that has not started the args, metadata, priority, due time and expiry of `new`.

    None if it has started: then the existing job stands.
    """
    # A claim given back clears started_at, also that of an attempt before it.
    if job.state not in WAITING or job.started_at is not None or job.attempt > 0:
        return None
    changes = _due(new.due, now)
    changes["args"] = new.args
    changes["metadata"] = new.metadata
    changes["priority"] = new.priority
    changes["expires_at"] = expiry(new, now)
    return _others(job, changes)


def expiry(new: NewJob, now: datetime) -> datetime | None:
    """The instant by which the job must have started; a kind's default counts from the start."""
    if new.expires is not None:
        return _instant(new.expires, now)
    if new.kind_expires is not None:
        return max(_instant(new.due, now), now) + new.kind_expires
    return None


def give_back(job: Job) -> Transition:
    """Undo a claim whose answer never reached its worker; not charged."""
    changes: Changes = {
        "state": State.AVAILABLE,
        "attempt": job.attempt - 1,
        "started_at": None,
        "fence": job.fence + 1,
        "worker": None,
        "ran_on": None,
    }
    return Transition(job.id, RUNNING, job.fence, changes, unless_cancelled=True)


def rescue(job: Job, *, retry_in: timedelta) -> Transition:
    """Take a running job away from a worker that was declared lost; the attempt stays charged.

    The first crash goes back to `available` at once; later ones wait `retry_in`. At max_crashes,
    or with no attempt left, the job fails with that reason; after a cancel wish it is cancelled.
    """
    reason = f"worker {job.worker} on {job.ran_on} was lost"
    crashes = job.crashes + 1
    changes: Changes
    ended = attempt_of(job, outcome="crashed", error=ErrorInfo("WorkerCrashed", reason))
    if job.cancel_requested is not None:
        changes = {"state": State.CANCELLED, "finished_at": NOW}
        ended = None
    elif verdict := _buried(crashes, job.max_crashes, job.attempt, job.max_attempts, reason):
        changes = {"state": State.FAILED, "finished_at": NOW, "reason": verdict}
        ended = None
    elif crashes == 1:
        changes = {"state": State.AVAILABLE, "due_at": NOW, "reason": reason}
    else:
        changes = {"state": State.SCHEDULED, "due_at": retry_in, "reason": reason}
    if changes["state"] not in FINAL:
        changes["worker"] = changes["ran_on"] = changes["expires_at"] = None
    changes["crashes"] = crashes
    changes["fence"] = job.fence + 1
    changes["error"] = encode_error(ErrorInfo("WorkerCrashed", reason))
    return Transition(
        job.id,
        RUNNING,
        job.fence,
        changes,
        unless_cancelled=job.cancel_requested is None,
        ended=ended,
    )


def _reason(text: str | None) -> str | None:
    return None if text is None else storable(text)


def _others(job: Job, changes: Changes) -> Transition:
    return Transition(job.id, frozenset({job.state}), job.fence, changes)


def _instant(moment: Moment, now: datetime) -> datetime:
    return now + moment if isinstance(moment, timedelta) else moment


def _due(due: Moment, now: datetime) -> Changes:
    state = State.AVAILABLE if _instant(due, now) <= now else State.SCHEDULED
    return {"state": state, "due_at": due}
