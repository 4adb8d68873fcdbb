"""What a job looks like from outside: plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from piecework.core.attempts import decode_error
from piecework.core.job import Job, JobId, State
from piecework.handlers.run import Progress

__all__ = ["JobEvent", "JobView", "Report", "progress_of", "read_progress", "view_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """All fields of a job as it was when it was read. Times are aware UTC.

    `args` and `result` are plain JSON data. `error` is one line such as "ValueError: no page";
    tracebacks are with the attempts. `node` is the node the job is bound to, else the one it ran
    on. `reason` says why it was cancelled, buried, parked or snoozed.
    """

    id: JobId
    name: str | None
    kind: str
    queue: str
    state: State
    priority: int
    attempt: int
    max_attempts: int
    crashes: int
    generation: int
    args: Any
    result: Any
    progress: Progress | None
    error: str | None
    reason: str | None
    metadata: Mapping[str, str]
    node: str | None
    worker: UUID | None
    unique_key: str | None
    serial_key: str | None
    schedule: str | None
    tick: datetime | None
    parent: JobId | None
    enqueued_at: datetime
    due_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    cancel_requested: datetime | None
    parked: bool
    timeout: float | None
    max_crashes: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something about a job changed: this is how it is now."""

    id: JobId
    state: State
    attempt: int
    generation: int
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one job of a bulk operation. `reason` says why nothing was done."""

    id: JobId
    done: bool
    reason: str | None = None


def _json(text: str | None) -> Any:
    """Return the data, or the text itself where somebody wrote what is no JSON by hand."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_progress(text: str | None, partial: str | None) -> Progress | None:
    """Return the stored report, or None where somebody wrote what is none by hand."""
    try:
        return Progress.decode(text, partial)
    except (ValueError, TypeError, RecursionError):
        return None


def progress_of(job: Job) -> Progress | None:
    """Return the last report of a run of the job, with its partial result, or None."""
    return read_progress(job.progress, job.partial)


def view_of(job: Job) -> JobView:
    """Return the job as others see it."""
    error = decode_error(job.error)
    return JobView(
        id=job.id,
        name=job.name,
        kind=job.kind,
        queue=job.queue,
        state=job.state,
        priority=job.priority,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        crashes=job.crashes,
        generation=job.generation,
        args=_json(job.args),
        result=_json(job.result),
        progress=progress_of(job),
        error=None if error is None else str(error),
        reason=job.reason,
        metadata=dict(job.metadata),
        node=job.node or job.ran_on,
        worker=job.worker,
        unique_key=job.unique_key,
        serial_key=job.serial_key,
        schedule=job.schedule,
        tick=job.tick,
        parent=job.parent,
        enqueued_at=job.enqueued_at,
        due_at=job.due_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        cancel_requested=job.cancel_requested,
        parked=job.parked > 0 and job.state is State.SCHEDULED,
        timeout=job.timeout,
        max_crashes=job.max_crashes,
        fence=job.fence,
    )
