"""Jobs for tests: name what matters, and the rest is filled in as the state implies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from piecework.core.attempts import encode_error
from piecework.core.job import Claimed, Job, NewJob, State, WorkerId
from piecework.core.lifecycle import ErrorInfo
from piecework.system import new_id

__all__ = ["NOON", "WORKER", "claimed", "job", "new_job"]

NOON: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""When the jobs of `job()` were enqueued."""

WORKER: Final = WorkerId(UUID("00000000-0000-7000-8000-00000000beef"))
"""Who runs, or ran, the jobs of `job()`."""

_MINUTE: Final = timedelta(minutes=1)


def new_job(**fields: Any) -> NewJob:
    """Return a NewJob with a fresh id, of kind "work", with empty args."""
    given: dict[str, Any] = {"id": new_id(), "kind": "work", "args": "{}"}
    return NewJob(**{**given, **fields})


def job(state: State = State.AVAILABLE, **fields: Any) -> Job:
    """Return a Job in this state: a completed one has started, finished and has a result."""
    given: dict[str, Any] = {
        "id": new_id(),
        "kind": "work",
        "args": "{}",
        "queue": "default",
        "state": state,
        "enqueued_at": NOON,
        "due_at": NOON,
    }
    return Job(**{**given, **_implied(state), **fields})


def _implied(state: State) -> dict[str, Any]:
    started: dict[str, Any] = {
        "attempt": 1,
        "fence": 1,
        "worker": WORKER,
        "ran_on": "node-1",
        "started_at": NOON,
    }
    finished: dict[str, Any] = {"finished_at": NOON + _MINUTE}
    match state:
        case State.AVAILABLE:
            return {}
        case State.SCHEDULED:
            return {"due_at": NOON + _MINUTE}
        case State.BLOCKED:
            return {"serial_key": "key"}
        case State.RUNNING:
            return started
        case State.COMPLETED:
            return {**started, **finished, "result": "null"}
        case State.FAILED:
            error = encode_error(ErrorInfo("ValueError", "no such page"))
            return {**started, **finished, "attempt": 5, "fence": 9, "error": error}
        case State.CANCELLED:
            return {**finished, "cancel_requested": NOON + _MINUTE}
        case State.EXPIRED:
            return {**finished, "expires_at": NOON + _MINUTE}


def claimed(**fields: Any) -> Claimed:
    """Return a Claimed: the first attempt of a job of kind "work"."""
    given: dict[str, Any] = {
        "id": new_id(),
        "fence": 1,
        "kind": "work",
        "args": "{}",
        "attempt": 1,
        "max_attempts": 5,
        "crashes": 0,
        "max_crashes": 3,
        "generation": 1,
        "queue": "default",
        "name": None,
        "timeout": None,
        "metadata": None,
        "schedule": None,
        "tick": None,
        "count": None,
        "parked": 0,
        "result_ttl": None,
    }
    return Claimed(**{**given, **fields})
