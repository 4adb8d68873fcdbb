"""Rows to records and back: the one place that knows how PostgreSQL keeps our types."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from piecework.core.job import Attempt, Claimed, Job, LogLine, State
from piecework.ports import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CLAIMED_COLUMNS",
    "JOB_COLUMNS",
    "attempt",
    "claimed",
    "job",
    "log_line",
    "metadata_text",
    "micros",
    "node",
]

_MICROSECOND: Final = timedelta(microseconds=1)
_JOB: Final = """id kind args state queue enqueued_at due_at name priority attempt max_attempts
    crashes max_crashes generation fence timeout node ran_on worker result progress partial error
    reason parked unique_key unique_scope unique_until serial_key metadata parent schedule tick
    count started_at finished_at expires_at cancel_requested result_ttl"""
_CLAIMED: Final = """id fence kind args attempt max_attempts crashes max_crashes generation queue
    name timeout metadata schedule tick count parked result_ttl"""
_JOB_NAMES: Final = _JOB.split()
_CLAIMED_NAMES: Final = _CLAIMED.split()

JOB_COLUMNS: Final = ", ".join(f"j.{name}" for name in _JOB_NAMES)
CLAIMED_COLUMNS: Final = ", ".join(f"j.{name}" for name in _CLAIMED_NAMES)
_METADATA: Final = _CLAIMED_NAMES.index("metadata")
_TTL: Final = _CLAIMED_NAMES.index("result_ttl")
_WIDTH: Final = len(_CLAIMED_NAMES)


def micros(value: timedelta) -> int:
    """Return the duration as it is stored."""
    return value // _MICROSECOND


def metadata_text(metadata: Mapping[str, str] | None) -> str | None:
    """Return metadata as it is stored."""
    return json.dumps(dict(metadata), ensure_ascii=False) if metadata else None


def job(row: Any) -> Job:
    """Return the Job of a row of JOB_COLUMNS, which comes first in it."""
    fields: dict[str, Any] = dict(zip(_JOB_NAMES, row, strict=False))
    fields["state"] = State(fields["state"])
    fields["metadata"] = json.loads(fields["metadata"]) if fields["metadata"] else {}
    if (ttl := fields["result_ttl"]) is not None:
        fields["result_ttl"] = timedelta(microseconds=ttl)
    return Job(**fields)


def claimed(row: Any) -> Claimed:
    """Return the Claimed of a row of CLAIMED_COLUMNS, which comes first in it."""
    values = row[:_WIDTH]
    if values[_METADATA] is not None or values[_TTL] is not None:
        values = list(values)
        if (text := values[_METADATA]) is not None:
            values[_METADATA] = json.loads(text)
        if (ttl := values[_TTL]) is not None:
            values[_TTL] = timedelta(microseconds=ttl)
    return Claimed._make(values)


def attempt(row: Any) -> Attempt:
    """Return the Attempt of a row."""
    return Attempt(
        fence=row[0],
        number=row[1],
        generation=row[2],
        started_at=row[3],
        ended_at=row[4],
        outcome=row[5],
        error=row[6],
        traceback=row[7],
        worker=row[8],
        node=row[9],
    )


def log_line(row: Any) -> tuple[int, LogLine]:
    """Return (fence, line) of a row."""
    return row[0], LogLine(at=row[1], level=row[2], logger=row[3], message=row[4])


def node(row: Any) -> Node:
    """Return the Node of a row."""
    return Node(
        worker=row[0],
        node=row[1],
        pid=row[2],
        queues=None if row[3] is None else tuple(row[3]),
        slots=row[4],
        running=row[5],
        started_at=row[6],
        beat_at=row[7],
        lease=timedelta(microseconds=row[8]),
        stopping=row[9],
    )
