"""Every error Piecework raises, in one tree.

    PieceworkError
    ├── ArgsInvalid (ValueError)          the args do not fit the handler
    │   └── PayloadTooLarge               args or result beyond the limit
    ├── ResultInvalid (ValueError)        a stored result does not fit the handler's return type
    ├── NaiveTime (ValueError)            a datetime without a zone
    ├── ScheduleInvalid (ValueError)      a schedule that cannot be understood
    ├── UnknownKind (LookupError)         no handler of that kind or for that args type
    ├── DuplicateKind                     two handlers claim one kind
    ├── AmbiguousArgs                     two handlers take one args type
    ├── NotImportable                     a function other processes cannot import
    ├── DuplicateJob                      the unique key is held by another job
    ├── JobNotFound (LookupError)         no such job, or pruned
    ├── JobUnfinished                     the job did not end as it was asked for
    │   ├── JobFailed
    │   ├── JobCancelled
    │   └── JobExpired
    ├── Cancelled                         raised in a handler: stop, somebody asked for it
    ├── GiveUp                            raised by a handler: fail, no more attempts
    ├── Snooze                            raised by a handler: come back later, uncharged
    ├── LeaseLost                         the run no longer owns its job
    └── StoreUnavailable                  the store cannot be reached or refuses the write
        └── SchemaOutdated                its tables are older or newer than this release

Data is in attributes; the message says what to do.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

__all__ = [
    "AmbiguousArgs",
    "ArgsInvalid",
    "Cancelled",
    "DuplicateJob",
    "DuplicateKind",
    "GiveUp",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobUnfinished",
    "LeaseLost",
    "NaiveTime",
    "NotImportable",
    "PayloadTooLarge",
    "PieceworkError",
    "ResultInvalid",
    "ScheduleInvalid",
    "SchemaOutdated",
    "Snooze",
    "StoreUnavailable",
    "UnknownKind",
]


class PieceworkError(Exception):
    """The root of every error of this package."""


class ArgsInvalid(PieceworkError, ValueError):
    """The args do not fit the handler; nothing was stored."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(f"args for {kind!r} are invalid: {detail}")


class PayloadTooLarge(ArgsInvalid):
    """Args or a result are larger than the limit; nothing was stored."""

    def __init__(self, kind: str, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            kind,
            f"{size_bytes:,} bytes of JSON, the limit is {limit_bytes:,}: store the data elsewhere "
            "and pass a reference, or raise max_args_bytes",
        )


class ResultInvalid(PieceworkError, ValueError):
    """A stored result does not fit the type that the handler says it returns."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(
            f"the result of {kind!r} does not fit its return type: {detail}; "
            "app.job(id) gives it as plain JSON"
        )


class NaiveTime(PieceworkError, ValueError):
    """A datetime without a time zone was given; nothing was stored."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        super().__init__(
            f"{at!r} has no time zone: pass an aware datetime, such as datetime.now(UTC), "
            "or a delay in seconds"
        )


class ScheduleInvalid(PieceworkError, ValueError):
    """A schedule, limit or rate could not be understood; nothing was stored."""


class UnknownKind(PieceworkError, LookupError):
    """No handler is registered for this kind or for args of this type."""

    def __init__(self, kind: str, *, args_type: bool = False) -> None:
        self.kind = kind
        super().__init__(
            f"no handler takes args of type {kind}: register one with @app.handler, "
            "or pass handler.prepare(...)"
            if args_type
            else f"no handler for kind {kind!r}: register it with @app.handler before using it"
        )


class DuplicateKind(PieceworkError):
    """Two different functions or classes were registered under one kind."""

    def __init__(self, kind: str, first: str, second: str) -> None:
        self.kind = kind
        super().__init__(
            f"kind {kind!r} is taken by {first}: give {second} another one, "
            '@app.handler(kind="...")'
        )


class AmbiguousArgs(PieceworkError):
    """More than one handler takes args of this type."""

    def __init__(self, args_type: str, kinds: Sequence[str]) -> None:
        self.args_type = args_type
        self.kinds = tuple(kinds)
        super().__init__(
            f"{args_type} is taken by {' and '.join(kinds)}: say which one, "
            "as in handler.enqueue(args)"
        )


class NotImportable(PieceworkError):
    """A function cannot be named so that another process finds it."""

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        super().__init__(f"{what} cannot run elsewhere: {why}")


class DuplicateJob(PieceworkError):
    """The unique key is held; nothing of the call was stored. `job_id` is the holder."""

    def __init__(self, kind: str, unique_key: str, job_id: UUID) -> None:
        self.kind = kind
        self.unique_key = unique_key
        self.job_id = job_id
        super().__init__(
            f"unique key {unique_key!r} of {kind!r} is held by job {job_id}: "
            'wait for it, or enqueue with on_duplicate="existing" or "replace"'
        )


class JobNotFound(PieceworkError, LookupError):
    """There is no job with this id: it never was, or retention removed it."""

    def __init__(self, job_id: UUID | str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id}: the id is wrong, or retention removed the job")


class JobUnfinished(PieceworkError):
    """The job ended without a result."""

    def __init__(self, job_id: UUID, message: str) -> None:
        self.job_id = job_id
        super().__init__(message)


class JobFailed(JobUnfinished):
    """The job failed for good: `error` says why, after `attempts` attempts."""

    def __init__(self, job_id: UUID, error: str, attempts: int) -> None:
        self.error = error
        self.attempts = attempts
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(job_id, f"job {job_id} failed after {times}: {error}")


class JobCancelled(JobUnfinished):
    """The job was cancelled; `reason` is what the canceller said, if anything."""

    def __init__(self, job_id: UUID, reason: str | None) -> None:
        self.reason = reason
        super().__init__(job_id, f"job {job_id} was cancelled" + (f": {reason}" if reason else ""))


class JobExpired(JobUnfinished):
    """The job had not started by its expiry and never will."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(job_id, f"job {job_id} expired before it could start")


class Cancelled(PieceworkError):
    """Raised by `run.check()` once the run must stop; a handler may raise it itself.

    Raised without anybody having asked, it makes the job cancelled, with `reason`.
    """

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason or "cancelled")


class GiveUp(PieceworkError):
    """Raised by a handler: the job fails now, whatever attempts are left."""

    def __init__(self, why: str = "given up") -> None:
        self.why = why
        super().__init__(why)


class Snooze(PieceworkError):
    """Raised by a handler: run the job again after `seconds`; the attempt is not charged."""

    def __init__(self, seconds: float | timedelta, why: str | None = None) -> None:
        delay = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        if delay < timedelta(0):
            raise ValueError(f"a snooze cannot be negative: {seconds}")
        self.delay = delay
        self.why = why
        super().__init__(why or f"snoozed for {delay}")


class LeaseLost(PieceworkError):
    """The run no longer owns its job: nothing it writes can take effect."""

    def __init__(self, job_id: UUID) -> None:
        self.job_id = job_id
        super().__init__(f"this run has lost job {job_id}: another worker may run it now; stop")


class StoreUnavailable(PieceworkError):
    """The store could not be reached, or refused the write; nothing was acknowledged."""


class SchemaOutdated(StoreUnavailable):
    """The store's tables belong to another release, or are missing and may not be made."""
