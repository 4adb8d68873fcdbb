"""Enqueue, get, find, wait, cancel, retry, reschedule: what a user may do to jobs."""

from __future__ import annotations

import asyncio
import logging
import operator
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from piecework.client.follow import Follower
from piecework.client.options import EnqueueOptions, as_id, as_instant, resolve
from piecework.client.views import JobEvent, JobView, Report, progress_of, read_progress, view_of
from piecework.core import lifecycle
from piecework.core.attempts import attempt_of, decode_error
from piecework.core.errors import DuplicateJob, JobCancelled, JobExpired, JobFailed, JobNotFound
from piecework.core.job import FINAL, NOW, Attempt, Job, JobId, LogLine, NewJob, State
from piecework.handlers.names import check_metadata
from piecework.observe import current_logs
from piecework.ports import Filter
from piecework.system import new_id

if TYPE_CHECKING:
    from piecework.core.job import Moment
    from piecework.core.lifecycle import Transition
    from piecework.handlers.definition import Definition
    from piecework.handlers.registry import Registry
    from piecework.handlers.run import Progress
    from piecework.ports import Bound, Inserted, JobStatus, Reader, Store

__all__ = ["Client", "Draft"]

_log: Final = logging.getLogger("piecework.client")
BULK: Final = 500


@dataclass(frozen=True, slots=True)
class Draft:
    """A job as far as it is decided before its enqueue: the kind, the checked args and options."""

    kind: str
    args: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    definition: Definition | None = None


class Client:
    """What may be done to jobs through one store. It runs nothing."""

    def __init__(self, store: Store, reader: Reader, registry: Registry) -> None:
        self.store = store
        self.reader = reader
        self.registry = registry
        self._followers: WeakKeyDictionary[asyncio.AbstractEventLoop, Follower] = (
            WeakKeyDictionary()
        )

    async def close(self) -> None:
        """Nobody waits for jobs on this event loop any more."""
        follower = self._followers.pop(asyncio.get_running_loop(), None)
        if follower is not None:
            await follower.close()

    # ── enqueue ──────────────────────────────────────────────────────────────────────────

    def draft(self, definition: Definition, value: Any, options: EnqueueOptions) -> Draft:
        """Return the checked job. ArgsInvalid, ValueError, TypeError or NaiveTime otherwise."""
        return self._draft(definition, definition.encode_value(value), value, options)

    def draft_json(self, definition: Definition, data: Any, options: EnqueueOptions) -> Draft:
        """Return the checked job of plain data from outside."""
        text = definition.encode_json(data)
        value = definition.decode(text) if definition.has_keys else None
        return self._draft(definition, text, value, options)

    def _draft(
        self, definition: Definition, text: str, value: Any, options: EnqueueOptions
    ) -> Draft:
        fields = dict(self._fields_of(definition))
        if definition.has_keys:
            keys = definition.keys_for(value)
            if definition.options.unique_key is not None:
                fields["unique_key"] = keys.unique
            fields["serial_key"] = keys.serial
        return Draft(definition.kind, text, self._resolve(fields, options), definition)

    def draft_plain(self, kind: str, text: str, options: EnqueueOptions) -> Draft:
        """Return a job of a kind that is not registered here, as it stands."""
        return Draft(kind, text, self._resolve({}, options))

    def redraft(self, draft: Draft, options: EnqueueOptions) -> Draft:
        """Return the draft with these options on top."""
        if not options:
            return draft
        fields = self._resolve(dict(draft.fields), options)
        return Draft(draft.kind, draft.args, fields, draft.definition)

    def _fields_of(self, definition: Definition) -> dict[str, Any]:
        options = definition.options
        return {
            "queue": options.queue,
            "priority": options.priority,
            "max_attempts": options.max_attempts,
            "max_crashes": options.max_crashes,
            "timeout": options.timeout,
            "kind_expires": options.expires_in,
            "metadata": options.metadata,
            "result_ttl": options.result_ttl,
        }

    def _resolve(self, fields: dict[str, Any], options: EnqueueOptions) -> dict[str, Any]:
        if not options:
            return fields
        resolved = resolve(options, self.store.clock.now())
        fields.update(resolved.given)
        if resolved.serial:
            fields["serial_key"] = fields.get("queue", "default")
        elif resolved.serial is False:
            fields.pop("serial_key", None)
        if "unique_scope" in fields and "unique_key" not in fields:  # a blank one means none
            raise ValueError("unique= says how long a unique_key is held: give unique_key, too")
        return fields

    def new_job(self, draft: Draft) -> NewJob:
        """Return the job to be stored, with an id and, inside a run, its parent."""
        fields = dict(draft.fields)
        job_id = fields.pop("id", None) or new_id()
        logs = current_logs.get()
        parent = None if logs is None else logs.job_id
        return NewJob(id=job_id, kind=draft.kind, args=draft.args, parent=parent, **fields)

    async def insert(
        self, drafts: Sequence[Draft], bound: Bound | None = None
    ) -> list[tuple[JobId, bool]]:
        """All of them stand: (id, whether it was created now). None does if this raises."""
        jobs = [self.new_job(draft) for draft in drafts]
        if not jobs:
            return []
        answers = await (self.store if bound is None else bound).insert(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if answer.args_differ:
                _warn_of_other_args(job, answer)
        return [(answer.id, answer.created) for answer in answers]

    # ── look ─────────────────────────────────────────────────────────────────────────────

    async def read(self, job_id: JobId) -> Job:
        """Return the job. JobNotFound if there is none."""
        found = await self.reader.get([job_id])
        if not found:
            raise JobNotFound(job_id)
        return found[0]

    async def get(self, job_id: JobId) -> JobView:
        """Return the job as others see it. JobNotFound if there is none."""
        return view_of(await self.read(job_id))

    async def find(self, what: Filter, after: JobId | None, limit: int) -> list[JobView]:
        """Return at most `limit` jobs older than `after`, newest first."""
        if limit < 1:
            raise ValueError(f"limit={limit}: ask for at least one job")
        return [view_of(job) for job in await self.reader.find(what, after=after, limit=limit)]

    async def attempts(self, job_id: JobId) -> list[Attempt]:
        """Return every attempt, oldest first, the one the job's own row tells of included."""
        job = await self.read(job_id)
        earlier = await self.reader.attempts(job_id)
        last = attempt_of(job)
        return earlier if last is None else [*earlier, last]

    async def logs(self, job_id: JobId) -> list[LogLine]:
        """Return what the job's runs logged, in order."""
        await self.read(job_id)
        return [line for _, line in await self.reader.logs(job_id)]

    async def progress(self, job_id: JobId) -> Progress | None:
        """Return the last report, or None."""
        job = await self.read(job_id)
        return progress_of(job)

    # ── follow ───────────────────────────────────────────────────────────────────────────

    def _follower(self) -> Follower:
        loop = asyncio.get_running_loop()
        follower = self._followers.get(loop)
        if follower is None:
            for gone in [each for each in self._followers if each.is_closed()]:
                del self._followers[gone]  # its tasks hold the loop, so that no collector would
            follower = self._followers[loop] = Follower(self.store, self.reader)
        return follower

    async def wait(self, job_id: JobId, timeout: float | timedelta | None) -> Job:
        """Return the job once it is final. TimeoutError after `timeout` seconds."""
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        try:
            async with asyncio.timeout(seconds):
                await self._follower().wait(job_id, _is_final)
        except TimeoutError:
            job = await self.read(job_id)  # timeout=0 asks how it is now
            if job.state not in FINAL:
                raise TimeoutError(f"job {job_id} had not ended after {seconds:g} s") from None
            return job
        return await self.read(job_id)

    async def watch(self, job_id: JobId) -> AsyncIterator[JobEvent]:
        """Yield how the job is now, then every change that is seen, until it is final."""
        last: JobStatus | None = None
        while last is None or last.state not in FINAL:
            last = await self._follower().wait(job_id, partial(operator.ne, last))
            job = await self.read(job_id)
            yield JobEvent(
                id=job_id,
                state=last.state,
                attempt=last.attempt,
                generation=last.generation,
                progress=read_progress(last.progress, job.partial),
            )

    # ── act ──────────────────────────────────────────────────────────────────────────────

    async def cancel(self, job_id: JobId, reason: str | None = None) -> bool:
        """Cancel the job: True if it is, or the wish is recorded; False if it ended otherwise."""
        while True:
            job = await self.read(job_id)
            move = lifecycle.cancel(job, reason)
            if move is None:
                return job.state in (State.CANCELLED, State.RUNNING)
            if not await self.store.apply([move]):
                return True

    async def retry(self, job_id: JobId) -> bool:
        """Run the job again: True if it will. False if it is running, or waits its turn anyway.

        A final job begins a new generation; one that waits for a later time is due now. Raises
        DuplicateJob while another job holds its unique key.
        """
        while True:
            job = await self.read(job_id)
            if job.state is State.SCHEDULED:
                return await self.reschedule(job_id, NOW)
            move = lifecycle.retry(job)
            if move is None:
                return False
            refused = await self.store.apply([move])
            if not refused:
                return True
            if refused[0].holder is not None and job.unique_key is not None:
                raise DuplicateJob(job.kind, job.unique_key, refused[0].holder)

    async def reschedule(self, job_id: JobId, due: Moment) -> bool:
        """Let a waiting job be due then: True if it will be; False if it runs or has ended."""
        while True:
            job = await self.read(job_id)
            move = lifecycle.reschedule(job, due, now=self.store.clock.now())
            if move is None:
                return False
            if not await self.store.apply([move]):
                return True

    async def delete(self, job_id: JobId) -> bool:
        """Remove a final job and all that is its own: True if it is gone; False if it is live."""
        if await self.store.prune([job_id], limit=1):
            return True
        await self.read(job_id)
        return False

    # ── act on many ──────────────────────────────────────────────────────────────────────

    async def cancel_many(self, ids: Sequence[JobId], reason: str | None) -> list[Report]:
        """As `cancel`, with one report for each."""
        return await self._each(
            ids,
            lambda job: lifecycle.cancel(job, reason),
            lambda job: (
                None
                if job.state in (State.CANCELLED, State.RUNNING)
                else f"it is {job.state} already"
            ),
        )

    async def retry_many(self, ids: Sequence[JobId]) -> list[Report]:
        """As `retry`, with one report for each."""
        now = self.store.clock.now()
        return await self._each(
            ids,
            lambda job: (
                lifecycle.reschedule(job, NOW, now=now)
                if job.state is State.SCHEDULED
                else lifecycle.retry(job)
            ),
            lambda job: f"it is {job.state}",
        )

    async def delete_many(self, ids: Sequence[JobId]) -> list[Report]:
        """As `delete`, with one report for each."""
        ids = list(dict.fromkeys(ids))
        gone = set(await self.store.prune(ids, limit=len(ids)))
        there = {job.id: job for job in await self.reader.get([i for i in ids if i not in gone])}
        reports: list[Report] = []
        for job_id in ids:
            if job_id in gone:
                reports.append(Report(job_id, done=True))
            else:
                job = there.get(job_id)
                why = "no such job" if job is None else f"it is {job.state}: cancel it first"
                reports.append(Report(job_id, done=False, reason=why))
        return reports

    async def _each(
        self,
        ids: Sequence[JobId],
        decide: _Decide,
        explain: _Explain,
    ) -> list[Report]:
        """Decide and apply in batches; a job that changed meanwhile is asked about again."""
        reports: dict[JobId, Report] = {}
        waiting = list(dict.fromkeys(ids))
        while waiting:
            batch, waiting = waiting[:BULK], waiting[BULK:]
            jobs = {job.id: job for job in await self.reader.get(batch)}
            moves: list[Transition] = []
            for job_id in batch:
                job = jobs.get(job_id)
                move = None if job is None else decide(job)
                if move is not None:
                    moves.append(move)
                    reports[job_id] = Report(job_id, done=True)
                else:
                    why = "no such job" if job is None else explain(job)
                    reports[job_id] = Report(job_id, done=why is None, reason=why)
            for answer in await self.store.apply(moves) if moves else ():
                job_id = answer.transition.id
                if answer.holder is not None:
                    why = f"its unique key is held by job {answer.holder}"
                    reports[job_id] = Report(job_id, done=False, reason=why)
                else:
                    waiting.append(job_id)
        return [reports[job_id] for job_id in dict.fromkeys(ids)]


if TYPE_CHECKING:
    from collections.abc import Callable

    _Decide = Callable[[Job], Transition | None]
    _Explain = Callable[[Job], str | None]


def _is_final(status: JobStatus) -> bool:
    return status.state in FINAL


def ended(job: Job) -> str:
    """Return the result of a job that completed. JobFailed, JobCancelled or JobExpired else."""
    match job.state:
        case State.COMPLETED:
            return "null" if job.result is None else job.result
        case State.CANCELLED:
            raise JobCancelled(job.id, job.reason)
        case State.EXPIRED:
            raise JobExpired(job.id)
        case _:
            error = decode_error(job.error)
            raise JobFailed(job.id, str(error or job.reason or "unknown"), job.attempt)


def make_filter(**given: Any) -> Filter:
    """Return the Filter of the keywords of `find`. ValueError or NaiveTime for a bad one."""
    unknown = given.keys() - _FILTERS
    if unknown:
        names = ", ".join(sorted(_FILTERS))
        raise TypeError(f"unknown filter {min(unknown)!r}: there are {names}")
    ids, parent = given.get("ids"), given.get("parent")
    since, until = given.get("since"), given.get("until")
    return Filter(
        states=tuple(State(state) for state in _listed(given.get("state"))),
        kinds=tuple(_text("kind", _kind_of(kind)) for kind in _listed(given.get("kind"))),
        queues=tuple(_text("queue", queue) for queue in _listed(given.get("queue"))),
        schedule=None if given.get("schedule") is None else _text("schedule", given["schedule"]),
        parent=None if parent is None else as_id(getattr(parent, "id", parent)),
        metadata=check_metadata(given.get("metadata")) or {},
        text=_text("text", given["text"]) if given.get("text") else None,
        since=None if since is None else as_instant(since),
        until=None if until is None else as_instant(until),
        parked=_flag("parked", given.get("parked")),
        ids=None if ids is None else tuple(as_id(getattr(i, "id", i)) for i in _listed(ids)),
    )


_FILTERS: Final = {
    "state",
    "kind",
    "queue",
    "schedule",
    "parent",
    "metadata",
    "text",
    "since",
    "until",
    "parked",
    "ids",
}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return (
        [value]
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset))
        else [*value]
    )


def _kind_of(kind: Any) -> Any:
    """Return the kind of a handler, a class included."""
    registered = getattr(kind, "__piecework__", None)
    return kind if registered is None else registered.definition.kind


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    return value


def _flag(what: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return value


def _warn_of_other_args(job: NewJob, answer: Inserted) -> None:
    message = (
        f"job {answer.id} stands for this enqueue of {job.kind!r}, but was enqueued with other args"
    )
    # The log is for whoever runs the program, the warning for whoever tests it.
    _log.warning("%s", message)
    warnings.warn(message, UserWarning, stacklevel=4)
