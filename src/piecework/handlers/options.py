"""What a handler may be registered with, checked and normalised at the door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, cast, get_args

from piecework.core.retry import Retry
from piecework.handlers.names import check_key, check_kind, check_metadata, check_name

if TYPE_CHECKING:
    from piecework.handlers.run import Run

__all__ = [
    "HandlerOptions",
    "Isolate",
    "Key",
    "KeyFunction",
    "Options",
    "RetryFunction",
    "as_duration",
    "as_seconds",
]

Isolate: TypeAlias = Literal["process"]
KeyFunction: TypeAlias = (
    Callable[[Any], str | None]
    | Callable[[Any, Any], str | None]
    | Callable[[Any, Any, Any], str | None]
    | Callable[[Any, Any, Any, Any], str | None]
    | Callable[[Any, Any, Any, Any, Any], str | None]
)
"""A function of the args. With `...` pyright would not know the parameters of a lambda."""

Key: TypeAlias = str | KeyFunction | None
RetryFunction: TypeAlias = "Callable[[Run, BaseException], float | None]"

_LONGEST: Final = 36_525 * 86_400.0
_INT32: Final = 2**31 - 1


def as_seconds(what: str, value: object) -> float | None:
    """Return the duration in seconds, or None. ValueError unless it is > 0 and at most a century.

    Takes a number of seconds or a timedelta; TypeError for anything else.
    """
    if value is None:
        return None
    seconds = _seconds(what, value)
    if seconds == 0:
        raise ValueError(f"{what} must be more than 0 seconds; leave it out for none")
    return seconds


def as_duration(what: str, value: object) -> timedelta | None:
    """Return the duration as a timedelta, or None. ValueError if negative or over a century."""
    return None if value is None else timedelta(seconds=_seconds(what, value))


def _seconds(what: str, value: object) -> float:
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    else:
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    if not 0 <= seconds <= _LONGEST:  # false for NaN, too
        raise ValueError(f"{what} must be between 0 seconds and 100 years, not {value}")
    return float(seconds)


class HandlerOptions(TypedDict, total=False):
    """The keywords of `app.handler`, as one may write them; Options says what they mean."""

    kind: str | None
    aliases: Sequence[str]
    queue: str
    priority: int
    max_attempts: int
    max_crashes: int
    retry: Retry | RetryFunction
    timeout: float | timedelta | None
    expires_in: float | timedelta | None
    unique_key: Key
    serial_key: Key
    concurrency: int | None
    isolate: Isolate | None
    metadata: Mapping[str, str] | None
    result_ttl: float | timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one kind. ValueError or TypeError for one that cannot be meant.

    Durations may be given as seconds or as timedeltas; `timeout` is kept in seconds, the others
    as timedeltas. `kind` None means the handler's own name. `unique_key` and `serial_key` are
    text, or a function of the args.
    """

    kind: str | None = None
    aliases: Sequence[str] = ()
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 5
    max_crashes: int = 3
    retry: Retry | RetryFunction = field(default_factory=Retry)
    timeout: float | None = None
    expires_in: timedelta | None = None
    unique_key: Key = None
    serial_key: Key = None
    concurrency: int | None = None
    isolate: Isolate | None = None
    metadata: Mapping[str, str] | None = None
    result_ttl: timedelta | None = None

    def __post_init__(self) -> None:
        if self.kind is not None:
            check_kind(self.kind)
        self._set("aliases", _aliases(self.aliases, self.kind))
        check_name("queue", self.queue)
        _check_int("priority", self.priority, least=-_INT32)
        _check_int("max_attempts", self.max_attempts, least=1)
        _check_int("max_crashes", self.max_crashes, least=1)
        if self.concurrency is not None:
            _check_int("concurrency", self.concurrency, least=1)
        _check_retry(self.retry)
        _check_isolate(self.isolate)
        self._set("timeout", as_seconds("timeout", self.timeout))
        self._set("expires_in", _positive("expires_in", self.expires_in))
        self._set("result_ttl", as_duration("result_ttl", self.result_ttl))
        self._set("unique_key", _key("unique_key", self.unique_key))
        self._set("serial_key", _key("serial_key", self.serial_key))
        self._set("metadata", check_metadata(self.metadata))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _aliases(aliases: object, kind: str | None) -> tuple[str, ...]:
    if isinstance(aliases, str):
        raise TypeError(f"aliases must be a list of kinds: write aliases=[{aliases!r}]")
    if not isinstance(aliases, Sequence):
        raise TypeError(f"aliases must be a list of kinds, not {type(aliases).__name__}")
    names = tuple(check_kind(alias) for alias in cast("Sequence[object]", aliases))
    if len(set(names)) < len(names) or kind in names:
        raise ValueError(f"aliases {names!r} repeat a kind: name each other kind once")
    return names


def _check_int(what: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not least <= value <= _INT32:
        raise ValueError(f"{what} must be between {least:,} and {_INT32:,}, not {value:,}")


def _check_retry(retry: object) -> None:
    if not isinstance(retry, Retry) and not callable(retry):
        raise TypeError(
            "retry must be a Retry or a function (run, error) -> seconds or None, "
            f"not {type(retry).__name__}; max_attempts=1 means no retry"
        )


def _check_isolate(isolate: object) -> None:
    if isolate is not None and isolate not in get_args(Isolate):
        raise ValueError(f'isolate={isolate!r} is unknown: give "process", or leave it out')


def _positive(what: str, value: object) -> timedelta | None:
    seconds = as_seconds(what, value)
    return None if seconds is None else timedelta(seconds=seconds)


def _key(what: str, key: Key) -> Key:
    return key if callable(key) else check_key(what, key)
