"""The one place where the parts meet: the app."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack, overload
from uuid import UUID

import svcs

from piecework.app.sync import SyncApp
from piecework.app.url import AnyStore, open_url
from piecework.client.client import Client, Draft, make_filter
from piecework.client.handle import Handle
from piecework.client.handler import HandlerDecorator, Prepared
from piecework.client.options import EnqueueOptions, as_id
from piecework.client.queues import Queues
from piecework.client.views import JobView, Report
from piecework.core.errors import UnknownKind
from piecework.core.job import Retention, State
from piecework.engine.worker import Settings, Worker
from piecework.handlers.calls import CALL_KIND
from piecework.handlers.codec import encode_plain
from piecework.handlers.names import check_name
from piecework.handlers.registry import DEFAULT_LIMIT, Registry
from piecework.ports import Finding, Node, Scheduler

if TYPE_CHECKING:
    from types import TracebackType

    from piecework.core.job import JobId

__all__ = ["Piecework"]

R = TypeVar("R")
MANY: Final = 10_000


class Piecework:
    """An app: its handlers, its jobs, its workers, on one store.

    `url_or_store` is "memory://", "sqlite:///file", "sqlite:////absolute/file", or a Store of
    one's own that is a Reader, too. `calls` names the packages whose functions may be called by
    name; `max_args_bytes` bounds args and results. Nothing is opened before the first use.
    """

    def __init__(
        self,
        url_or_store: str | AnyStore | None = None,
        *,
        store: AnyStore | None = None,
        scheduler: Scheduler | None = None,
        namespace: str = "piecework",
        calls: Sequence[str] = (),
        retention: Retention | None = None,
        max_args_bytes: int = DEFAULT_LIMIT,
    ) -> None:
        if scheduler is not None:
            raise TypeError("scheduler= is for schedules, which this release does not have yet")
        given = url_or_store if url_or_store is not None else store
        if given is None or (url_or_store is not None and store is not None):
            raise ValueError('give a store URL, such as Piecework("sqlite:///jobs.db"), or store=')
        if not isinstance(given, str) and not (hasattr(given, "insert") and hasattr(given, "find")):
            what = type(given).__name__
            raise TypeError(
                f'give a store URL, such as "sqlite:///jobs.db", or a Store, not {what}'
            )
        if isinstance(max_args_bytes, bool) or not isinstance(max_args_bytes, int):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
            what = type(max_args_bytes).__name__
            raise TypeError(f"max_args_bytes must be a number of bytes, not {what}")
        if max_args_bytes < 1:
            raise ValueError(f"max_args_bytes={max_args_bytes}: allow at least 1 byte")
        self._store: AnyStore = open_url(given, namespace) if isinstance(given, str) else given
        self._registry = Registry(
            max_args_bytes=max_args_bytes, calls=calls, durable=self._store.shared
        )
        self._client = Client(self._store, self._store, self._registry)
        self._retention = retention or Retention()
        self._workers: list[Worker] = []
        self.services: svcs.Registry = self._registry.services
        self.queues = Queues(self._client)
        self.sync = SyncApp(self)

    def __repr__(self) -> str:
        """Return the store."""
        return f"<Piecework {self._store!r}>"

    async def __aenter__(self) -> Self:
        """Open the store: what is wrong with it is said here."""
        await self._store.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Connections are closed, the sync twin's thread is gone; the next use opens them again."""
        await self.aclose_connections()
        self.sync.stop()

    async def aclose_connections(self) -> None:
        """As `close`, but the sync twin lives on."""
        await self._client.close()
        await self._store.close()

    # ── handlers ─────────────────────────────────────────────────────────────────────────

    @property
    def handler(self) -> HandlerDecorator:
        """The decorator that makes a function or class the handler of a kind."""
        return HandlerDecorator(self._client)

    def kind(self, kind: str) -> KindRef:
        """Return a kind by name, to enqueue plain data for, registered here or not."""
        return KindRef(self._client, check_name("kind", kind), {})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds registered here, in the order of registration."""
        return self._registry.kinds()

    # ── enqueue ──────────────────────────────────────────────────────────────────────────

    @overload
    async def enqueue(
        self, job: Prepared[R], /, **options: Unpack[EnqueueOptions]
    ) -> Handle[R]: ...
    @overload
    async def enqueue(self, job: object, /, **options: Unpack[EnqueueOptions]) -> Handle[Any]: ...
    async def enqueue(self, job: Any, /, **options: Unpack[EnqueueOptions]) -> Handle[Any]:
        """The job is stored; return its handle.

        `job` is an args object, whose type says which handler, or handler.prepare(...).
        UnknownKind or AmbiguousArgs where that does not say it; ArgsInvalid, PayloadTooLarge,
        NaiveTime or ValueError for what cannot be meant; DuplicateJob if asked for.
        """
        draft = self.draft(job, options)
        ((job_id, created),) = await self._client.insert([draft])
        return Handle(self._client, job_id, draft.definition, created=created)

    async def enqueue_many(self, jobs: Sequence[Any]) -> list[Handle[Any]]:
        """All jobs are stored, or none is; return their handles, in order."""
        drafts = [self.draft(job, {}) for job in jobs]
        return _handles(self._client, drafts, await self._client.insert(drafts))

    def draft(self, job: Any, options: EnqueueOptions) -> Draft:
        """Return what `enqueue` would store: checked, but without an id."""
        prepared = _draft_of(job)
        if prepared is not None:
            return self._client.redraft(prepared, options)
        return self._client.draft(self._registry.for_args(job), job, options)

    def using(self, **options: Unpack[EnqueueOptions]) -> AppUsing:
        """Return the app with these options for what is enqueued or called through it."""
        return AppUsing(self, self._client, options)

    def within(self, connection: Any) -> Within:
        """Return an enqueuer that writes inside the caller's own open transaction.

        `connection` is an sqlite3 connection, or a SQLAlchemy (Async)Connection or (Async)Session
        on the same database. The jobs commit or roll back with it.
        """
        return Within(self, self._client, connection)

    # ── look and act ─────────────────────────────────────────────────────────────────────

    def job(self, job_id: UUID | str) -> Handle[Any]:
        """Return a handle for an id from elsewhere; its results are plain JSON."""
        return Handle(self._client, as_id(job_id))

    async def find(
        self,
        *,
        after: JobView | Handle[Any] | UUID | str | None = None,
        limit: int = 50,
        **what: Any,
    ) -> list[JobView]:
        """Return at most `limit` jobs, newest first, older than `after` (the last one seen).

        Filters: state, kind, queue (one or a list of them), schedule, parent, metadata, text,
        since, until (of the enqueue), parked, ids.
        """
        last = None if after is None else as_id(_id_of(after))
        return await self._client.find(make_filter(**what), last, limit)

    async def count(self) -> dict[tuple[str, State], int]:
        """Return the exact number of jobs by (queue, state)."""
        return await self._store.count()

    async def cancel_many(self, *, reason: str | None = None, **what: Any) -> list[Report]:
        """Cancel the jobs of these ids, or of the filters of `find`; one report each."""
        return await self._client.cancel_many(await self._ids(what), reason)

    async def retry_many(self, **what: Any) -> list[Report]:
        """Retry the jobs of these ids, or of the filters of `find`; one report each."""
        return await self._client.retry_many(await self._ids(what))

    async def delete_many(self, **what: Any) -> list[Report]:
        """Delete the jobs of these ids, or of the filters of `find`; one report each."""
        return await self._client.delete_many(await self._ids(what))

    async def _ids(self, what: dict[str, Any]) -> list[JobId]:
        if not what:
            raise ValueError("say which jobs: ids=[…] or the filters of find()")
        chosen = make_filter(**what)
        if chosen == replace(make_filter(), ids=chosen.ids) and chosen.ids is not None:
            return [*chosen.ids]
        ids: list[JobId] = []
        while True:
            after = ids[-1] if ids else None
            found = await self._store.find(chosen, after=after, limit=MANY)
            ids += [job.id for job in found]
            if len(found) < MANY or chosen.text is not None:  # a text has a window of its own
                return ids

    async def nodes(self) -> list[Node]:
        """Return the live workers, oldest first."""
        return await self._store.nodes()

    async def check(self) -> list[Finding]:
        """Return what an operator should know about the store. StoreUnavailable if it is not."""
        return await self._store.check()

    async def migrate(self) -> None:
        """The store has the schema of this release."""
        await self._store.open()

    # ── run ──────────────────────────────────────────────────────────────────────────────

    def make_worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 50,
        node: str | None = None,
        lease: float | timedelta = 30,
        beat: float | timedelta | None = None,
        poll: float | timedelta = 1,
        shutdown_timeout: float | timedelta = 25,
    ) -> Worker:
        """Return a worker that is not started; see `worker`."""
        lease = _duration(lease)
        settings = Settings(
            node=check_name("node", socket.gethostname() if node is None else node),
            queues=None if queues is None else tuple(check_name("queue", q) for q in queues),
            concurrency=concurrency,
            lease=lease,
            beat=min(timedelta(seconds=5), lease / 6) if beat is None else _duration(beat),
            poll=_duration(poll),
            shutdown_timeout=_duration(shutdown_timeout),
            retention=self._retention,
            max_result_bytes=self._registry.max_args_bytes,
        )
        return Worker(self._store, self._store, self._registry, settings)

    @asynccontextmanager
    async def worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 50,
        node: str | None = None,
        lease: float | timedelta = 30,
        beat: float | timedelta | None = None,
        poll: float | timedelta = 1,
        shutdown_timeout: float | timedelta = 25,
    ) -> AsyncGenerator[Worker, None]:
        """Run jobs on this event loop while the block is open; at its end, drain.

        `queues` None means every queue. `concurrency` is the number of jobs at once; `lease` how
        long others wait before they take the worker for dead, `beat` how often it says it lives
        (default 5 s, at most a sixth of the lease), `poll` how often it looks without a hint.
        Numbers are seconds. No signal handlers are installed.
        """
        worker = self.make_worker(
            queues=queues,
            concurrency=concurrency,
            node=node,
            lease=lease,
            beat=beat,
            poll=poll,
            shutdown_timeout=shutdown_timeout,
        )
        await worker.start()
        self._workers.append(worker)
        self.sync.forbid_here()
        try:
            yield worker
        finally:
            try:
                await worker.stop()
            finally:
                self._workers.remove(worker)
                self.sync.allow_here()

    async def run_until_idle(self, *, concurrency: int = 50) -> None:
        """Run everything that is due, and what it enqueues; return when nothing is.

        Retries and snoozes that are due later are left for later.
        """
        async with self.worker(concurrency=concurrency) as worker:
            await worker.run_until_idle()


class AppUsing:
    """The app with options."""

    def __init__(self, app: Piecework, client: Client, options: EnqueueOptions) -> None:
        self._app = app
        self._client = client
        self._options = options

    async def enqueue(self, job: Any) -> Handle[Any]:
        """As `Piecework.enqueue`, with the options."""
        return await self._app.enqueue(job, **self._options)

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """A job is stored that calls `fn`; with a queue= it is serial unless serial=False.

        An unbound method of a class is called on the injected service of that class. NotImportable
        where the store is durable and fn is not below a package of Piecework(calls=...).
        """
        text = self._client.registry.calls.encode(fn, args, kwargs)
        options = self._options
        if "queue" in options and "serial" not in options and "serial_key" not in options:
            options = options.copy()
            options["serial"] = True
        draft = self._client.draft_plain(CALL_KIND, text, options)
        ((job_id, created),) = await self._client.insert([draft])
        return Handle(self._client, job_id, created=created)


class Within:
    """Enqueues inside the caller's transaction."""

    def __init__(self, app: Piecework, client: Client, connection: Any) -> None:
        self._app = app
        self._client = client
        self._connection = connection

    async def enqueue(self, job: Any, /, **options: Unpack[EnqueueOptions]) -> Handle[Any]:
        """As `Piecework.enqueue`; the job is there once the caller commits."""
        draft = self._app.draft(job, options)
        (handle,) = await self._insert([draft])
        return handle

    async def enqueue_many(self, jobs: Sequence[Any]) -> list[Handle[Any]]:
        """As `Piecework.enqueue_many`; the jobs are there once the caller commits."""
        return await self._insert([self._app.draft(job, {}) for job in jobs])

    async def _insert(self, drafts: list[Draft]) -> list[Handle[Any]]:
        bound = await self._client.store.bind(self._connection)
        stored = await self._client.insert(drafts, bound)
        return _handles(self._client, drafts, stored)


class KindRef:
    """A kind by name: for a service that does not have the handler's code."""

    def __init__(self, client: Client, kind: str, options: EnqueueOptions) -> None:
        self._client = client
        self._kind = kind
        self._options = options

    async def enqueue(self, data: Any = None, /) -> Handle[Any]:
        """The job is stored: validated where the kind is registered here, else as it stands."""
        draft = self._draft({} if data is None else data)
        ((job_id, created),) = await self._client.insert([draft])
        return Handle(self._client, job_id, draft.definition, created=created)

    def prepare(self, data: Any = None, /) -> Prepared[Any]:
        """Return the checked job, not yet stored."""
        return Prepared(self._draft({} if data is None else data))

    def using(self, **options: Unpack[EnqueueOptions]) -> KindRef:
        """Return the same with these options on top."""
        return KindRef(self._client, self._kind, {**self._options, **options})

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of its args. UnknownKind where it is not registered here."""
        definition = self._client.registry.get(self._kind)
        if definition is None:
            raise UnknownKind(self._kind)
        return definition.schema()

    def _draft(self, data: Any) -> Draft:
        definition = self._client.registry.get(self._kind)
        if definition is None:
            limit = self._client.registry.max_args_bytes
            text = encode_plain(self._kind, data, limit_bytes=limit)
            return self._client.draft_plain(self._kind, text, self._options)
        return self._client.draft_json(definition, data, self._options)


def _draft_of(job: Prepared[Any] | object) -> Draft | None:
    return job.draft if isinstance(job, Prepared) else None


def _handles(
    client: Client, drafts: Sequence[Draft], stored: Sequence[tuple[JobId, bool]]
) -> list[Handle[Any]]:
    return [
        Handle(client, job_id, draft.definition, created=created)
        for draft, (job_id, created) in zip(drafts, stored, strict=True)
    ]


def _id_of(what: JobView | Handle[Any] | UUID | str) -> UUID | str:
    return what if isinstance(what, (UUID, str)) else what.id


def _duration(value: float | timedelta) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)
