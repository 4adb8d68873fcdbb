"""Jobs in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any, Final, TypeVar

from piecework.core.job import NOW
from piecework.ports import Finding, Hint
from piecework.stores._hints import Hub
from piecework.stores.sqlite import reading, upkeep
from piecework.stores.sqlite.applying import apply
from piecework.stores.sqlite.bound import bind
from piecework.stores.sqlite.claiming import claim
from piecework.stores.sqlite.connect import Settings, open_reader, translate
from piecework.stores.sqlite.inserting import insert
from piecework.stores.sqlite.rows import micros
from piecework.stores.sqlite.writer import Insertion, Work, Writer
from piecework.system import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from piecework.core.job import (
        Attempt,
        Claimed,
        Job,
        JobId,
        LogLine,
        NewJob,
        Retention,
        State,
        WorkerId,
    )
    from piecework.core.lifecycle import Transition
    from piecework.ports import (
        Ask,
        Beat,
        Beaten,
        Bound,
        Clock,
        Filter,
        Inserted,
        JobStatus,
        Node,
        QueueChange,
        QueueInfo,
        Refused,
        Staged,
    )
    from piecework.stores.sqlite.connect import Connection
    from piecework.stores.sqlite.tx import Tx

__all__ = ["SqliteStore"]

T = TypeVar("T")

_WORK: Final = Hint(frozenset({"work"}))
_WORK_AND_DUE: Final = Hint(frozenset({"work", "due"}))
_CONTROL: Final = Hint(frozenset({"control", "work"}))
# Not "control": beats are commits, too, and would call for the next beat at once.
_ANYTHING: Final = Hint(frozenset({"work", "due", "done"}))
_READERS: Final = 2


class _Lanes:
    """The threads and connections of one process: a writer, one for beats alone, readers."""

    def __init__(
        self, settings: Settings, now: Callable[[], int], heard: Callable[[], None]
    ) -> None:
        self.pid = os.getpid()
        self.writer = Writer(settings, now, heard, "piecework-writer")
        # Beats have a thread and connection of their own: a lease must not wait behind work.
        self.beats = Writer(settings, now, heard, "piecework-beats")
        self.readers = ThreadPoolExecutor(_READERS, "piecework-reader")
        self._local = local()
        self._opened: list[Connection] = []
        self._settings = settings

    def read(self, work: Callable[[Tx], T]) -> T:
        """Run a read on this thread's own connection."""
        connection: Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = open_reader(self._settings)
                self._opened.append(connection)
            return work(connection)
        except sqlite3.Error as error:
            raise translate(error, self._settings) from error

    def close(self) -> None:
        """Everything is written and closed."""
        self.writer.close()
        self.beats.close()
        self.readers.shutdown()
        for connection in self._opened:
            connection.raw.close()


class SqliteStore:
    """A Store and Reader on one SQLite file: WAL, synchronous FULL, one writing thread.

    `busy_seconds` is how long a write waits for another's transaction. `namespace` is the prefix
    of the tables, so that several can share a file. Nothing is opened before the first use.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Clock | None = None,
        namespace: str = "piecework",
        busy_seconds: float = 30.0,
        migrate: bool = True,
    ) -> None:
        self._settings = Settings(
            path=Path(path).absolute(),
            prefix=namespace,
            busy_seconds=busy_seconds,
            migrate=migrate,
        )
        self._clock = clock or SystemClock()
        self._hub = Hub()
        self._lanes_now: _Lanes | None = None
        self._lock = Lock()
        self._ready = False
        self._forgotten: list[_Lanes] = []

    def __repr__(self) -> str:
        """Return the file's name."""
        return f"SqliteStore({str(self._settings.path)!r})"

    # ── the process's threads ────────────────────────────────────────────────────────────

    def _lanes(self) -> _Lanes:
        lanes = self._lanes_now
        if lanes is not None and lanes.pid == os.getpid():
            return lanes
        with self._lock:
            lanes = self._lanes_now
            if lanes is not None and lanes.pid != os.getpid():
                # Forked: the parent's connections are kept from being closed here, because a
                # close would drop locks and files that the parent still uses.
                self._forgotten.append(lanes)
                lanes = None
            if lanes is None:
                heard = self._heard
                lanes = self._lanes_now = _Lanes(self._settings, self._now, heard)
                self._ready = False
            return lanes

    def _now(self) -> int:
        return micros(self._clock.now())

    def _heard(self) -> None:
        self._hub.tell(_ANYTHING)

    async def _write(self, run: Callable[[Tx, int], T]) -> T:
        work = Work(lambda tx: run(tx, self._now()))
        answer: T = await self._lanes().writer.submit(work)
        return answer

    async def _read(self, run: Callable[[Tx], T]) -> T:
        lanes = self._lanes()
        if not self._ready:
            await self.open()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(lanes.readers, lanes.read, run)

    # ── Store ────────────────────────────────────────────────────────────────────────────

    @property
    def clock(self) -> Clock:
        """The clock that stamps."""
        return self._clock

    @property
    def shared(self) -> bool:
        """Other processes can open the file."""
        return True

    async def open(self) -> None:
        """As `Store.open`."""
        await self._lanes().writer.open()
        self._ready = True

    async def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            lanes, self._lanes_now = self._lanes_now, None
            self._ready = False
        if lanes is not None and lanes.pid == os.getpid():
            await asyncio.get_running_loop().run_in_executor(None, lanes.close)

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Store.insert`."""
        work = Insertion(jobs, lambda tx: insert(tx, jobs, self._now()))
        answers: list[Inserted] = await self._lanes().writer.submit_here(work)
        self._hub.tell(_WORK if all(job.due is NOW for job in jobs) else _WORK_AND_DUE)
        return answers

    async def claim(self, ask: Ask) -> list[Claimed]:
        """As `Store.claim`."""
        return await self._write(lambda tx, now: claim(tx, ask, now))

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Store.apply`."""
        refused = await self._write(lambda tx, now: apply(tx, transitions, now))
        self._hub.tell(_hint_of(transitions))
        return refused

    async def stage(self, *, limit: int) -> Staged:
        """As `Store.stage`."""
        return await self._write(lambda tx, now: upkeep.stage(tx, limit, now))

    async def beat(self, beat: Beat) -> Beaten:
        """As `Store.beat`."""
        work = Work(lambda tx: upkeep.beat(tx, beat, self._now()))
        answer: Beaten = await self._lanes().beats.submit(work)
        return answer

    async def retire(self, worker: WorkerId) -> None:
        """As `Store.retire`."""
        await self._write(lambda tx, _: upkeep.retire(tx, worker))

    async def orphans(self, *, limit: int) -> list[Job]:
        """As `Store.orphans`."""
        return await self._write(lambda tx, now: upkeep.orphans(tx, limit, now))

    async def prune(self, what: Retention | Sequence[JobId], *, limit: int) -> list[JobId]:
        """As `Store.prune`."""
        return await self._write(lambda tx, now: upkeep.prune(tx, what, limit, now))

    async def configure(self, changes: Sequence[QueueChange]) -> None:
        """As `Store.configure`."""
        await self._write(lambda tx, now: upkeep.configure(tx, changes, now))
        self._hub.tell(_CONTROL)

    async def hints(self) -> AsyncIterator[Hint]:
        """As `Store.hints`: at once from this process, within 5 ms from others."""
        writer = self._lanes().writer
        writer.watch(1)
        try:
            async for hint in self._hub.listen():
                yield hint
        finally:
            writer.watch(-1)

    async def bind(self, connection: Any) -> Bound:
        """As `Store.bind`, for sqlite3 connections and SQLAlchemy's on the same file."""
        return bind(connection, self._settings, self._now)

    # ── Reader ───────────────────────────────────────────────────────────────────────────

    async def get(self, ids: Sequence[JobId]) -> list[Job]:
        """As `Reader.get`."""
        return await self._read(lambda tx: reading.get(tx, ids))

    async def find(self, what: Filter, *, after: JobId | None, limit: int) -> list[Job]:
        """As `Reader.find`."""
        return await self._read(lambda tx: reading.find(tx, what, after, limit))

    async def count(self) -> dict[tuple[str, State], int]:
        """As `Reader.count`."""
        return await self._read(reading.count)

    async def statuses(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """As `Reader.statuses`."""
        return await self._read(lambda tx: reading.statuses(tx, ids))

    async def attempts(self, job_id: JobId) -> list[Attempt]:
        """As `Reader.attempts`."""
        return await self._read(lambda tx: reading.attempts(tx, job_id))

    async def logs(self, job_id: JobId) -> list[tuple[int, LogLine]]:
        """As `Reader.logs`."""
        return await self._read(lambda tx: reading.logs(tx, job_id))

    async def queues(self) -> list[QueueInfo]:
        """As `Reader.queues`."""
        return await self._read(reading.queues)

    async def nodes(self) -> list[Node]:
        """As `Reader.nodes`."""
        return await self._read(lambda tx: reading.nodes(tx, self._now()))

    async def check(self) -> list[Finding]:
        """As `Store.check`: opens the file and reads its settings and integrity."""
        await self.open()
        return await self._read(self._findings)

    def _findings(self, tx: Tx) -> list[Finding]:
        path = self._settings.path
        version = sqlite3.sqlite_version_info
        # Fixed in 3.51.3, and carried back to 3.50.7 and 3.44.6: sqlite.org/wal.html#walresetbug
        safe = (
            version >= (3, 51, 3)
            or (3, 50, 7) <= version < (3, 51)
            or (3, 44, 6) <= version < (3, 45)
        )
        (integrity,) = tx.execute("PRAGMA quick_check(1)").fetchone()
        (mode,) = tx.execute("PRAGMA journal_mode").fetchone()
        found = [
            Finding("ok", "file", f"{path}, {path.stat().st_size:,} bytes"),
            Finding(
                "ok" if safe else "warning",
                "sqlite",
                f"version {sqlite3.sqlite_version}"
                + ("" if safe else ": has the rare WAL-reset race; 3.51.3 or newer does not"),
            ),
            Finding("ok" if mode == "wal" else "error", "journal", f"mode {mode}"),
            Finding("ok" if integrity == "ok" else "error", "integrity", str(integrity)),
        ]
        rights = path.stat().st_mode & 0o077
        if rights:
            found.append(
                Finding(
                    "warning", "rights", f"others can read {path}: chmod 600 keeps jobs private"
                )
            )
        return found


def _hint_of(transitions: Sequence[Transition]) -> Hint:
    what = set[Any]()
    for transition in transitions:
        state = transition.changes["state"].value
        if state == "scheduled":
            what.add("due")
        elif state == "available":
            what.add("work")
        elif state == "running":
            if "cancel_requested" in transition.changes:
                what.add("control")
        else:
            what.add("done")
    return Hint(frozenset(what))
