"""The blocking twin: every method of the app, from any thread, on an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload
from uuid import UUID

from piecework.client.handle import Handle
from piecework.client.options import EnqueueOptions
from piecework.core.job import Attempt, LogLine, State
from piecework.handlers.run import Progress

if TYPE_CHECKING:
    from piecework.app import KindRef, Piecework
    from piecework.client.handler import Prepared
    from piecework.client.views import JobEvent, JobView, Report
    from piecework.core.job import JobId
    from piecework.ports import Finding, Node, QueueInfo

__all__ = ["SyncApp", "SyncHandle"]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Portal:
    """Runs coroutines for threads that wait; its loop's thread starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._forbidden: list[asyncio.AbstractEventLoop] = []

    def forbid(self) -> None:
        """Callers on the running loop are refused: this app's worker needs that loop itself."""
        self._forbidden.append(asyncio.get_running_loop())

    def allow(self) -> None:
        """One `forbid` of the running loop is taken back."""
        self._forbidden.remove(asyncio.get_running_loop())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine returns; the calling thread waits."""
        self.refuse_here(coroutine)
        context = copy_context()
        loop = self._ready()
        begun, ended = threading.Event(), threading.Event()

        async def within() -> T:
            begun.set()
            try:
                return await loop.create_task(coroutine, context=context)
            finally:
                ended.set()

        waiting = asyncio.run_coroutine_threadsafe(within(), loop)
        try:
            return waiting.result()
        except BaseException:
            if waiting.cancel():  # Ctrl-C met this thread: a worker that runs for it drains first
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
                if begun.is_set():
                    ended.wait()
            raise

    def refuse_here(self, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
        """Raise RuntimeError where waiting would wait for itself."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return
        if here in self._forbidden or here is self._loop:
            if coroutine is not None:
                coroutine.close()
            raise RuntimeError(
                "app.sync would block the event loop that this app's worker runs on: "
                "await the same method of the app instead"
            )

    def _ready(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=loop.run_forever, name="piecework-sync", daemon=True
                )
                thread.start()
                self._loop, self._thread, self._pid = loop, thread, os.getpid()
            return self._loop

    def stop(self) -> None:
        """The loop and its thread are gone; a later call starts new ones."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
            same_process = self._pid == os.getpid()
        if loop is None or not same_process or thread is threading.current_thread():
            return
        # On its own thread: the calling one may have a running loop, and could not run a second.
        asyncio.run_coroutine_threadsafe(_cancel_all(loop), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join()
        loop.close()


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class SyncHandle(Generic[R_co]):
    """A Handle whose methods wait."""

    __slots__ = ("_handle", "_portal")

    def __init__(self, portal: Portal, handle: Handle[R_co]) -> None:
        self._portal = portal
        self._handle = handle

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self._handle.id

    @property
    def created(self) -> bool:
        """As `Handle.created`."""
        return self._handle.created

    def __repr__(self) -> str:
        """Return the id."""
        return f"<SyncHandle {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same job."""
        return isinstance(other, SyncHandle) and other.id == self.id

    def __hash__(self) -> int:
        """Return the id's hash."""
        return hash(self.id)

    def get(self) -> JobView:
        """As `Handle.get`."""
        return self._portal.run(self._handle.get())

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """As `Handle.result`."""
        return self._portal.run(self._handle.result(timeout))

    def progress(self) -> Progress | None:
        """As `Handle.progress`."""
        return self._portal.run(self._handle.progress())

    def watch(self) -> Iterator[JobEvent]:
        """As `Handle.watch`."""
        events = self._handle.watch()

        async def following() -> JobEvent | None:
            return await anext(events, None)

        while (event := self._portal.run(following())) is not None:
            yield event

    def attempts(self) -> list[Attempt]:
        """As `Handle.attempts`."""
        return self._portal.run(self._handle.attempts())

    def logs(self) -> list[LogLine]:
        """As `Handle.logs`."""
        return self._portal.run(self._handle.logs())

    def cancel(self, reason: str | None = None) -> bool:
        """As `Handle.cancel`."""
        return self._portal.run(self._handle.cancel(reason))

    def retry(self) -> bool:
        """As `Handle.retry`."""
        return self._portal.run(self._handle.retry())

    def reschedule(
        self, *, at: datetime | None = None, delay: float | timedelta | None = None
    ) -> bool:
        """As `Handle.reschedule`."""
        return self._portal.run(self._handle.reschedule(at=at, delay=delay))

    def delete(self) -> bool:
        """As `Handle.delete`."""
        return self._portal.run(self._handle.delete())


class SyncQueues:
    """`app.queues`, waiting."""

    def __init__(self, app: Piecework, portal: Portal) -> None:
        self._app = app
        self._portal = portal

    def list(self) -> list[QueueInfo]:
        """As `Queues.list`."""
        return self._portal.run(self._app.queues.list())

    def pause(self, name: str) -> None:
        """As `Queues.pause`."""
        self._portal.run(self._app.queues.pause(name))

    def resume(self, name: str) -> None:
        """As `Queues.resume`."""
        self._portal.run(self._app.queues.resume(name))

    def limit(
        self,
        name: str,
        *,
        running: int | Literal["unset"] | None = "unset",
        rate: str | None = "unset",
    ) -> None:
        """As `Queues.limit`."""
        self._portal.run(self._app.queues.limit(name, running=running, rate=rate))

    def clear(self, name: str) -> Sequence[Report]:
        """As `Queues.clear`."""
        return self._portal.run(self._app.queues.clear(name))


class SyncWithin:
    """`app.within`, on a blocking connection of the caller's, in the caller's own thread."""

    def __init__(self, app: Piecework, portal: Portal, connection: Any) -> None:
        self._within = app.within(connection)
        self._portal = portal

    def enqueue(self, job: Any, /, **options: Unpack[EnqueueOptions]) -> SyncHandle[Any]:
        """As `Within.enqueue`."""
        return SyncHandle(self._portal, _finish(self._within.enqueue(job, **options)))

    def enqueue_many(self, jobs: Sequence[Any]) -> Sequence[SyncHandle[Any]]:
        """As `Within.enqueue_many`."""
        return [
            SyncHandle(self._portal, handle) for handle in _finish(self._within.enqueue_many(jobs))
        ]


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine on a blocking connection returns: it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise TypeError(
        "app.sync.within() takes a blocking connection: for an async one, await app.within()"
    )


class SyncUsing:
    """`app.using`, waiting."""

    def __init__(self, app: Piecework, portal: Portal, options: EnqueueOptions) -> None:
        self._using = app.using(**options)
        self._portal = portal

    def enqueue(self, job: Any) -> SyncHandle[Any]:
        """As `AppUsing.enqueue`."""
        return SyncHandle(self._portal, self._portal.run(self._using.enqueue(job)))

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SyncHandle[Any]:
        """As `AppUsing.call`."""
        handle = self._portal.run(self._using.call(fn, *args, **kwargs))
        return SyncHandle(self._portal, handle)


class SyncKind:
    """`app.kind`, waiting."""

    def __init__(self, kind: KindRef, portal: Portal) -> None:
        self._kind = kind
        self._portal = portal

    def enqueue(self, data: Any = None, /) -> SyncHandle[Any]:
        """As `KindRef.enqueue`."""
        return SyncHandle(self._portal, self._portal.run(self._kind.enqueue(data)))

    def prepare(self, data: Any = None, /) -> Prepared[Any]:
        """As `KindRef.prepare`."""
        return self._kind.prepare(data)

    def using(self, **options: Unpack[EnqueueOptions]) -> SyncKind:
        """As `KindRef.using`."""
        return SyncKind(self._kind.using(**options), self._portal)

    def schema(self) -> dict[str, Any]:
        """As `KindRef.schema`."""
        return self._kind.schema()


class SyncApp:
    """`app.sync`: every method of the app, blocking, from any thread.

    Where this app's worker runs on the calling thread's event loop, RuntimeError is raised
    instead of waiting for itself.
    """

    def __init__(self, app: Piecework) -> None:
        self._app = app
        self._portal = Portal()
        self.queues = SyncQueues(app, self._portal)

    def forbid_here(self) -> None:
        """Callers on the running loop are refused while a worker needs it."""
        self._portal.forbid()

    def allow_here(self) -> None:
        """One `forbid_here` is taken back."""
        self._portal.allow()

    def stop(self) -> None:
        """The twin's loop and thread are gone."""
        self._portal.stop()

    def close(self) -> None:
        """As `Piecework.close`."""
        self._portal.run(self._app.aclose_connections())
        self._portal.stop()

    @overload
    def enqueue(self, job: Prepared[R], /, **options: Unpack[EnqueueOptions]) -> SyncHandle[R]: ...
    @overload
    def enqueue(self, job: object, /, **options: Unpack[EnqueueOptions]) -> SyncHandle[Any]: ...
    def enqueue(self, job: Any, /, **options: Unpack[EnqueueOptions]) -> SyncHandle[Any]:
        """As `Piecework.enqueue`: an args object, or handler.prepare(...)."""
        return SyncHandle(self._portal, self._portal.run(self._app.enqueue(job, **options)))

    def enqueue_many(self, jobs: Sequence[Any]) -> list[SyncHandle[Any]]:
        """As `Piecework.enqueue_many`."""
        handles = self._portal.run(self._app.enqueue_many(jobs))
        return [SyncHandle(self._portal, handle) for handle in handles]

    def using(self, **options: Unpack[EnqueueOptions]) -> SyncUsing:
        """As `Piecework.using`."""
        return SyncUsing(self._app, self._portal, options)

    def kind(self, kind: str) -> SyncKind:
        """As `Piecework.kind`."""
        return SyncKind(self._app.kind(kind), self._portal)

    def within(self, connection: Any) -> SyncWithin:
        """As `Piecework.within`, for a blocking connection of the calling thread."""
        return SyncWithin(self._app, self._portal, connection)

    def job(self, job_id: UUID | str) -> SyncHandle[Any]:
        """As `Piecework.job`."""
        return SyncHandle(self._portal, self._app.job(job_id))

    def find(self, **what: Any) -> list[JobView]:
        """As `Piecework.find`."""
        return self._portal.run(self._app.find(**what))

    def count(self) -> dict[tuple[str, State], int]:
        """As `Piecework.count`."""
        return self._portal.run(self._app.count())

    def cancel_many(self, *, reason: str | None = None, **what: Any) -> list[Report]:
        """As `Piecework.cancel_many`."""
        return self._portal.run(self._app.cancel_many(reason=reason, **what))

    def retry_many(self, **what: Any) -> list[Report]:
        """As `Piecework.retry_many`."""
        return self._portal.run(self._app.retry_many(**what))

    def delete_many(self, **what: Any) -> list[Report]:
        """As `Piecework.delete_many`."""
        return self._portal.run(self._app.delete_many(**what))

    def nodes(self) -> list[Node]:
        """As `Piecework.nodes`."""
        return self._portal.run(self._app.nodes())

    def check(self) -> list[Finding]:
        """As `Piecework.check`."""
        return self._portal.run(self._app.check())

    def migrate(self) -> None:
        """As `Piecework.migrate`."""
        self._portal.run(self._app.migrate())

    def run_until_idle(self, *, concurrency: int = 50) -> None:
        """As `Piecework.run_until_idle`."""
        self._portal.run(self._app.run_until_idle(concurrency=concurrency))
