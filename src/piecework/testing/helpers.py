"""For tests of handlers: a run to call one by hand with, and a look at what was enqueued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic_core import to_jsonable_python

from piecework.engine.reports import encode_partial
from piecework.handlers.registry import DEFAULT_LIMIT
from piecework.handlers.run import DONE, Channel, Progress, Run
from piecework.testing.factories import claimed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from datetime import datetime

    from piecework.app import Piecework
    from piecework.client.views import JobView
    from piecework.handlers.run import Cause

__all__ = ["FakeRun", "assert_enqueued", "assert_enqueued_sync", "make_run"]

_LOOKED_AT: Final = 10_000
_SHOWN: Final = 20


class _Notes(Channel):
    """Notes what a run reports."""

    def __init__(self) -> None:
        self.progress_reports: list[Progress] = []
        self.saved: list[Any] = []

    def progress(self, run: Run, progress: Progress) -> Awaitable[None]:  # noqa: ARG002 - as the port
        """As `Channel.progress`."""
        self.progress_reports.append(progress)
        return DONE

    def save(self, run: Run, partial: Any) -> Awaitable[None]:
        """As `Channel.save`."""
        self.saved.append(json.loads(encode_partial(run.kind, partial, DEFAULT_LIMIT)))
        return DONE


class FakeRun(Run):
    """A run that belongs to no job and only notes what its handler reports."""

    __slots__ = ("_notes",)

    def __init__(self, notes: _Notes, deadline: datetime | None, fields: dict[str, Any]) -> None:
        super().__init__(claimed(**{"kind": "test", **fields}), notes, deadline=deadline)
        self._notes = notes

    @property
    def progress_reports(self) -> list[Progress]:
        """Return every report, in order."""
        return self._notes.progress_reports

    @property
    def saved(self) -> list[Any]:
        """Return every saved partial result as plain JSON, in order."""
        return self._notes.saved

    def lines(self) -> list[str]:
        """Return what `run.log` was told since the last call."""
        return [line.message for line in self.logs.take()]

    def stop(self, cause: Cause = "cancel") -> None:
        """From now on `check()` raises Cancelled, as it does once a cancel was asked for."""
        self.stopping = cause
        self.halted = True


def make_run(*, deadline: datetime | None = None, **fields: Any) -> FakeRun:
    """Return a run to call a handler by hand with, as in `await ship(order, run)`.

    `fields` are those of a claim: kind, attempt, max_attempts, metadata, name, queue and so on.
    """
    return FakeRun(_Notes(), deadline, fields)


async def assert_enqueued(
    app: Piecework, handler: Any, /, *, count: int | None = None, **args: Any
) -> list[JobView]:
    """Jobs of the handler with these args were enqueued: `count` of them, or at least one.

    `handler` is a handler, a handler class, or the name of a kind; args that are not named may be
    anything. Returns the jobs, newest first; AssertionError tells what there is instead.
    """
    return _matching(await app.find(limit=_LOOKED_AT), handler, count, args)


def assert_enqueued_sync(
    app: Piecework, handler: Any, /, *, count: int | None = None, **args: Any
) -> list[JobView]:
    """As `assert_enqueued`, for tests without an event loop."""
    return _matching(app.sync.find(limit=_LOOKED_AT), handler, count, args)


def _matching(
    jobs: Sequence[JobView], handler: Any, count: int | None, args: dict[str, Any]
) -> list[JobView]:
    kind = _kind_of(handler)
    wanted: dict[str, Any] = to_jsonable_python(args)
    found = [job for job in jobs if job.kind == kind and _has(job.args, wanted)]
    if len(found) == count or (count is None and found):
        return found
    number = "at least one job" if count is None else f"{count} of them"
    instead = "\n".join(f"  {job.kind} {json.dumps(job.args)} {job.state}" for job in jobs[:_SHOWN])
    raise AssertionError(
        f"wanted {number} of kind {kind!r} with {json.dumps(wanted)}, found {len(found)}; "
        + (f"there are:\n{instead}" if jobs else "there is no job at all")
    )


def _kind_of(handler: Any) -> str:
    if isinstance(handler, str):
        return handler
    link = getattr(handler, "__piecework__", None)
    if link is None:
        raise TypeError(f"{handler!r} is no handler: pass one, or the name of a kind")
    kind: str = link.definition.kind
    return kind


def _has(args: Any, wanted: dict[str, Any]) -> bool:
    if not isinstance(args, dict):
        return not wanted
    there = cast("dict[str, Any]", args)
    return all(key in there and there[key] == value for key, value in wanted.items())
