"""Attempts and errors as data: what is kept of how a run ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from piecework.core.job import FINAL, Attempt, Job, State

__all__ = ["ErrorInfo", "attempt_of", "decode_error", "encode_error", "storable"]

MAX_ERROR_CHARS: Final = 20_000
MAX_REASON_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as data: its type's name, its message, and the traceback as text.

    Whatever it is made of, it is bounded, and every store can hold it.
    """

    type: str
    message: str
    traceback: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", storable(self.type, MAX_REASON_CHARS))
        object.__setattr__(self, "message", storable(self.message, MAX_ERROR_CHARS))
        if self.traceback is not None:
            object.__setattr__(self, "traceback", storable(self.traceback, MAX_ERROR_CHARS))

    def __str__(self) -> str:
        """Return one line, such as `ValueError: no such page`."""
        return f"{self.type}: {self.message}" if self.message else self.type


def attempt_of(
    job: Job, *, outcome: str | None = None, error: ErrorInfo | None = None
) -> Attempt | None:
    """Return the attempt that the job's own row tells of, or None if it tells of none.

    A row that names no worker tells of none: its last attempt has a row of its own by then.
    """
    if job.started_at is None or job.worker is None:
        return None
    info = error or (decode_error(job.error) if job.state is not State.RUNNING else None)
    return Attempt(
        number=job.attempt,
        generation=job.generation,
        fence=job.fence,
        started_at=job.started_at,
        ended_at=job.finished_at,
        outcome=outcome or (job.state.value if job.state in FINAL else None),
        error=str(info) if info else None,
        traceback=info.traceback if info else None,
        worker=job.worker,
        node=job.ran_on,
    )


def encode_error(error: ErrorInfo) -> str:
    """Return the error as JSON."""
    data = {"type": error.type, "message": error.message, "traceback": error.traceback}
    return json.dumps(data, ensure_ascii=False)


def decode_error(text: str | None) -> ErrorInfo | None:
    """Return what encode_error was given; a text it did not write becomes the message."""
    if text is None:
        return None
    try:
        data = json.loads(text)
        return ErrorInfo(str(data["type"]), str(data["message"]), data.get("traceback"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ErrorInfo("Error", text)


def storable(text: str, limit: int = MAX_REASON_CHARS) -> str:
    """Return the text as every store can hold it: bounded, no NUL, no lone surrogate."""
    if len(text) > limit:
        # The end of a traceback tells most, the beginning of a message too: keep both ends.
        half = (limit - 60) // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
