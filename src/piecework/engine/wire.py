"""What a worker and its child processes say to each other: one JSON object a line, no pickle."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, assert_never
from uuid import UUID

from piecework.core.job import Claimed, JobId
from piecework.core.lifecycle import (
    Completed,
    Crashed,
    ErrorInfo,
    Failed,
    GivenBack,
    Outcome,
    Parked,
    Released,
    Snoozed,
    Stopped,
)

__all__ = ["decode", "decode_claim", "decode_outcome", "encode", "encode_claim", "encode_outcome"]


def encode(message: dict[str, Any]) -> bytes:
    """Return one line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message of a line."""
    message: dict[str, Any] = json.loads(line)
    return message


def encode_claim(job: Claimed) -> dict[str, Any]:
    """Return the claim as JSON can hold it."""
    fields = job._asdict()
    fields["id"] = str(job.id)
    fields["metadata"] = None if job.metadata is None else dict(job.metadata)
    fields["tick"] = None if job.tick is None else job.tick.isoformat()
    fields["result_ttl"] = None
    return fields


def decode_claim(fields: dict[str, Any]) -> Claimed:
    """Return what encode_claim was given."""
    fields["id"] = JobId(UUID(fields["id"]))
    fields["tick"] = None if fields["tick"] is None else datetime.fromisoformat(fields["tick"])
    return Claimed(**fields)


def encode_outcome(outcome: Outcome | None) -> dict[str, Any]:
    """Return the outcome as JSON can hold it; only those a handler can bring about."""
    match outcome:
        case None:
            return {"ended": "lost"}
        case Completed(result):
            return {"ended": "completed", "result": result}
        case Failed(error, retry_in):
            seconds = None if retry_in is None else retry_in.total_seconds()
            told = [error.type, error.message[:100_000], error.traceback]
            return {"ended": "failed", "error": told, "retry_in": seconds}
        case Snoozed(delay, why):
            return {"ended": "snoozed", "delay": delay.total_seconds(), "why": why}
        case Parked(reason):
            return {"ended": "parked", "reason": reason}
        case Stopped(reason):
            return {"ended": "stopped", "reason": reason}
        case Released() | GivenBack() | Crashed():
            raise ValueError(f"a child cannot say {outcome}")
        case _:
            assert_never(outcome)


def decode_outcome(message: dict[str, Any]) -> Outcome | None:
    """Return what encode_outcome was given; ValueError for anything else."""
    match message:
        case {"ended": "lost"}:
            return None
        case {"ended": "completed", "result": result}:
            return Completed(result)
        case {"ended": "failed", "error": [type_, text, traceback], "retry_in": seconds}:
            retry_in = None if seconds is None else timedelta(seconds=seconds)
            return Failed(ErrorInfo(type_, text, traceback), retry_in)
        case {"ended": "snoozed", "delay": delay, "why": why}:
            return Snoozed(timedelta(seconds=delay), why)
        case {"ended": "parked", "reason": reason}:
            return Parked(reason)
        case {"ended": "stopped", "reason": reason}:
            return Stopped(reason)
        case _:
            raise ValueError(f"not an outcome: {message}")
