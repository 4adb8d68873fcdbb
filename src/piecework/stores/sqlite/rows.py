"""Rows to records and back: the one place that knows how SQLite keeps our types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from piecework.core.job import Attempt, Claimed, Job, JobId, LogLine, State, WorkerId

if TYPE_CHECKING:
    from piecework.core.job import Moment

__all__ = [
    "JOB_COLUMNS",
    "attempt",
    "claimed",
    "from_micros",
    "job",
    "log_line",
    "micros",
    "sql_value",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)

JOB_COLUMNS: Final = """id, kind, args, state, queue, enqueued_at, due_at, name, priority, attempt,
    max_attempts, crashes, max_crashes, generation, fence, timeout, node, ran_on, worker, result,
    progress, partial, error, reason, parked, unique_key, unique_scope, unique_until, serial_key,
    metadata, parent, schedule, tick, count, started_at, finished_at, expires_at,
    cancel_requested, result_ttl"""


def micros(at: datetime) -> int:
    """Return microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(value: int | None) -> datetime | None:
    """Return the instant, aware, in UTC."""
    return None if value is None else _at(value)


def _at(value: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:  # put in by hand; it must not hold up everybody else's rows
        return _LATEST if value > 0 else _EARLIEST


def duration(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(microseconds=value)


def _uuid(value: bytes | None) -> UUID | None:
    return UUID(bytes=value) if value is not None and len(value) == 16 else None


def _metadata(text: str | None) -> dict[str, str]:
    try:
        found: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # as above
        return {}
    return cast("dict[str, str]", found) if isinstance(found, dict) else {}


def moment(value: Moment | None, now: int) -> int | None:
    """Return the instant in microseconds; a duration counts from `now`."""
    if value is None:
        return None
    return now + value // _MICROSECOND if isinstance(value, timedelta) else micros(value)


def sql_value(value: Any, now: int) -> Any:
    """Return a column's value as SQLite keeps it."""
    if value is None or isinstance(value, (str, int, float)):
        return value  # a State is a str
    if isinstance(value, (timedelta, datetime)):
        return moment(value, now)
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False)  # pyright: ignore[reportUnknownArgumentType]
    raise TypeError(f"no column holds a {type(value).__name__}")


def job(row: Any) -> Job:
    """Return the Job of a row of JOB_COLUMNS."""
    (
        id_,
        kind,
        args,
        state,
        queue,
        enqueued_at,
        due_at,
        name,
        priority,
        attempt_,
        max_attempts,
        crashes,
        max_crashes,
        generation,
        fence,
        timeout,
        node,
        ran_on,
        worker,
        result,
        progress,
        partial,
        error,
        reason,
        parked,
        unique_key,
        unique_scope,
        unique_until,
        serial_key,
        metadata,
        parent,
        schedule,
        tick,
        count,
        started_at,
        finished_at,
        expires_at,
        cancel_requested,
        result_ttl,
    ) = row
    worker_id, parent_id = _uuid(worker), _uuid(parent)
    return Job(
        id=JobId(UUID(bytes=id_)),
        kind=kind,
        args=args,
        state=State(state),
        queue=queue,
        enqueued_at=_at(enqueued_at),
        due_at=_at(due_at),
        name=name,
        priority=priority,
        attempt=attempt_,
        max_attempts=max_attempts,
        crashes=crashes,
        max_crashes=max_crashes,
        generation=generation,
        fence=fence,
        timeout=timeout,
        node=node,
        ran_on=ran_on,
        worker=None if worker_id is None else WorkerId(worker_id),
        result=result,
        progress=progress,
        partial=partial,
        error=error,
        reason=reason,
        parked=parked,
        unique_key=unique_key,
        unique_scope=unique_scope,
        unique_until=from_micros(unique_until),
        serial_key=serial_key,
        metadata=_metadata(metadata),
        parent=None if parent_id is None else JobId(parent_id),
        schedule=schedule,
        tick=from_micros(tick),
        count=count,
        started_at=from_micros(started_at),
        finished_at=from_micros(finished_at),
        expires_at=from_micros(expires_at),
        cancel_requested=from_micros(cancel_requested),
        result_ttl=duration(result_ttl),
    )


def claimed(row: Any) -> Claimed:
    """Return the Claimed of a candidate's row, as the claim leaves it."""
    metadata, tick, ttl = row[14], row[16], row[19]
    return Claimed(
        JobId(UUID(row[4])),
        row[5] + 1,
        row[2],
        row[6],
        row[7] + 1,
        row[8],
        row[9],
        row[10],
        row[11],
        row[3],
        row[12],
        row[13],
        None if metadata is None else _metadata(metadata),
        row[15],
        None if tick is None else _at(tick),
        row[17],
        row[18],
        None if ttl is None else timedelta(microseconds=ttl),
    )


def attempt(row: Any) -> Attempt:
    """Return the Attempt of a row."""
    worker = _uuid(row[8])
    return Attempt(
        fence=row[0],
        number=row[1],
        generation=row[2],
        started_at=_at(row[3]),
        ended_at=from_micros(row[4]),
        outcome=row[5],
        error=row[6],
        traceback=row[7],
        worker=None if worker is None else WorkerId(worker),
        node=row[9],
    )


def log_line(row: Any) -> tuple[int, LogLine]:
    """Return (fence, line) of a row."""
    return row[0], LogLine(at=_at(row[1]), level=row[2], logger=row[3], message=row[4])
