"""What an enqueue may say beside the args, checked at the door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict
from uuid import UUID

from piecework.core.errors import NaiveTime
from piecework.core.job import NOW, JobId, Moment, OnDuplicate, Scope
from piecework.handlers.names import check_key, check_metadata, check_name
from piecework.handlers.options import as_seconds

__all__ = [
    "EnqueueOptions",
    "Resolved",
    "Unique",
    "as_due",
    "as_id",
    "as_instant",
    "as_wait",
    "resolve",
]

Unique: TypeAlias = Literal["live", "forever"] | timedelta
_LONGEST: Final = timedelta(days=36_525)
_LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)
_INT32: Final = 2**31 - 1


class EnqueueOptions(TypedDict, total=False):
    """The options of one enqueue; what is left out comes from the kind."""

    delay: float | timedelta
    at: datetime
    expires_in: float | timedelta
    expires_at: datetime
    queue: str
    name: str | None
    priority: int
    max_attempts: int
    timeout: float | timedelta | None
    unique_key: str | None
    unique: Unique
    on_duplicate: OnDuplicate
    serial_key: str | None
    serial: bool
    metadata: Mapping[str, str] | None
    node: str | None
    id: UUID | str


@dataclass(frozen=True, slots=True)
class Resolved:
    """Checked options: `given` are fields of NewJob to be set, the rest needs the kind's say."""

    given: Mapping[str, Any]
    serial: bool | None = None


NOTHING: Final = Resolved({})


def as_instant(at: datetime) -> datetime:
    """Return the instant; NaiveTime without a zone, TypeError for anything but a datetime."""
    if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
        raise TypeError(f"an instant must be an aware datetime, not {type(at).__name__}")
    if at.tzinfo is None or at.utcoffset() is None:
        raise NaiveTime(at)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{at} is beyond what a datetime in UTC can hold") from None


def as_due(at: datetime) -> datetime:
    """As `as_instant`; ValueError for an instant so late that nothing could come after it."""
    instant = as_instant(at)
    if instant > _LATEST:
        raise ValueError(f"{at} is too late: it must be before the year {_LATEST.year}")
    return instant


def as_wait(what: str, value: float | timedelta) -> timedelta:
    """Return the duration; ValueError if it is negative, not a number, or over a century."""
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{what} must be a finite number of seconds of at least 0, not {value}")
    if seconds > _LONGEST.total_seconds():
        raise ValueError(f"{what} of {value} is longer than 100 years")
    return timedelta(seconds=seconds)


def as_id(value: UUID | str) -> JobId:
    """Return the id; ValueError for a text that is none."""
    if isinstance(value, UUID):
        return JobId(value)
    try:
        return JobId(UUID(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{value!r} is no job id: pass a UUID") from error


def resolve(options: EnqueueOptions, now: datetime) -> Resolved:
    """Return the checked options. ValueError, TypeError or NaiveTime for what cannot be meant."""
    if not options:
        return NOTHING
    unknown = options.keys() - EnqueueOptions.__optional_keys__
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r} of enqueue")
    given: dict[str, Any] = {}
    due = _due(options)
    if due is not None:
        given["due"] = due
    expires = _expires(options, due or NOW, now)
    if expires is not None:
        given["expires"] = expires
    if "queue" in options:
        given["queue"] = check_name("queue", options["queue"])
    for what in ("name", "node"):
        text: object = options.get(what)
        if text is not None:
            given[what] = check_name(what, text)
    if "priority" in options:
        given["priority"] = _int("priority", options["priority"], -_INT32)
    if "max_attempts" in options:
        given["max_attempts"] = _int("max_attempts", options["max_attempts"], 1)
    if "timeout" in options:
        given["timeout"] = as_seconds("timeout", options["timeout"])
    _unique(options, given)
    if "serial_key" in options:
        given["serial_key"] = check_key("serial_key", options["serial_key"])
    serial = options.get("serial")
    if serial is not None and not isinstance(serial, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
        raise TypeError(f"serial must be True or False, not {type(serial).__name__}")
    if serial and given.get("serial_key") is not None:
        raise ValueError('give serial_key="…" or serial=True (the queue\'s name), not both')
    if "metadata" in options:
        given["metadata"] = check_metadata(options["metadata"])
    if "id" in options:
        given["id"] = as_id(options["id"])
    return Resolved(given, serial)


def _int(what: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not least <= value <= _INT32:
        raise ValueError(f"{what} must be between {least:,} and {_INT32:,}, not {value:,}")
    return value


def _due(options: EnqueueOptions) -> Moment | None:
    if "delay" in options and "at" in options:
        raise ValueError("give delay= or at=, not both")
    if "delay" in options:
        return as_wait("delay", options["delay"])
    return as_due(options["at"]) if "at" in options else None


def _expires(options: EnqueueOptions, due: Moment, now: datetime) -> Moment | None:
    if "expires_in" in options and "expires_at" in options:
        raise ValueError("give expires_in= or expires_at=, not both")
    expires: Moment
    if "expires_in" in options:
        expires = as_wait("expires_in", options["expires_in"])
    elif "expires_at" in options:
        expires = as_due(options["expires_at"])
    else:
        return None
    # Between an instant and a duration this process's clock judges; the store judges again.
    start = now + due if isinstance(due, timedelta) else max(due, now)
    end = now + expires if isinstance(expires, timedelta) else expires
    if end <= start:
        raise ValueError(f"the job would expire ({end}) before it may start ({start})")
    return expires


def _unique(options: EnqueueOptions, given: dict[str, Any]) -> None:
    if "unique_key" in options:
        given["unique_key"] = check_key("unique_key", options["unique_key"])
    policy = options.get("on_duplicate")
    if policy is not None:
        if policy not in ("existing", "raise", "replace"):
            raise ValueError(f'on_duplicate={policy!r}: give "existing", "raise" or "replace"')
        given["on_duplicate"] = policy
    if "unique" in options:
        unique = options["unique"]
        scope: Scope
        if isinstance(unique, timedelta):
            if not as_wait("unique", unique):
                raise ValueError(f"unique={unique} must be longer than nothing")
            scope, given["unique_window"] = "until", unique
        elif unique in ("live", "forever"):
            scope = unique
        else:
            raise ValueError(f'unique={unique!r}: give "live", "forever" or a timedelta')
        given["unique_scope"] = scope
