"""One thread that writes: it gathers what waits into one transaction, commits, then answers.

    submit(work) ─► queue ─► [BEGIN IMMEDIATE · work · work · … · COMMIT] ─► answers

Handing work to a thread and its answer back costs half as much as a commit. So what may be done
here and now (`submit_here`) is gathered until the event loop's next turn and committed by the
caller's own thread, as long as nobody else writes and recent commits were quick; whenever that
does not hold, it goes to the thread like all the rest.

Each piece of work fails alone (its savepoint is rolled back); a COMMIT that fails, fails them
all. Nothing is answered before the commit. Between batches the same connection looks at
`PRAGMA data_version`, which changes when anybody else has committed to the file.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import sqlite3
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from piecework.core.errors import StoreUnavailable
from piecework.stores.sqlite.connect import open_writer, translate
from piecework.stores.sqlite.inserting import insert
from piecework.stores.sqlite.tx import savepoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from piecework.core.job import NewJob
    from piecework.stores.sqlite.connect import Connection, Settings
    from piecework.stores.sqlite.tx import Tx

__all__ = ["Insertion", "Work", "Writer"]

_log: Final = logging.getLogger("piecework.stores.sqlite")

WATCH_SECONDS: Final = 0.005
QUICK_SECONDS: Final = 0.002
AFTER_SLOW_SECONDS: Final = 5.0
MOST_HERE: Final = 50
CHECKPOINT_EVERY: Final = 256
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
MOST_AT_ONCE: Final = 1_000
PAUSE_SECONDS: Final = 0.0005
LONGEST_PAUSE_SECONDS: Final = 0.005


class Work:
    """A piece of writing, who waits for it, and since when."""

    __slots__ = ("error", "future", "loop", "result", "run", "since")

    def __init__(self, run: Callable[[Tx], Any]) -> None:
        self.run = run
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.since = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None


class Insertion(Work):
    """Jobs to insert: neighbours in the queue become one statement."""

    __slots__ = ("jobs",)

    def __init__(self, jobs: Sequence[NewJob], run: Callable[[Tx], Any]) -> None:
        super().__init__(run)
        self.jobs = jobs


class _Opening(Work):
    """Only asks that the connection is open."""

    __slots__ = ()


class Writer:
    """The only thread of this process that writes to the file (but for beats, which have one)."""

    def __init__(
        self, settings: Settings, now: Callable[[], int], heard: Callable[[], None], name: str
    ) -> None:
        self._settings = settings
        self._now = now
        self._heard = heard
        self._name = name
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self._connection: Connection | None = None
        self._version = 0
        self._turn = threading.Lock()
        self._here: dict[asyncio.AbstractEventLoop, list[Work]] = {}
        self._slow_until = 0.0
        self._commits = 0
        self.watching = 0

    # ── from any event loop ──────────────────────────────────────────────────────────────

    def submit(self, work: Work) -> asyncio.Future[Any]:
        """The work is in the next transaction; the future has its answer after the commit."""
        self._put(work)
        return work.future

    def _put(self, work: Work) -> None:
        if self._thread is None:
            self._begin()
        self._queue.put(work)

    def submit_here(self, work: Insertion) -> asyncio.Future[Any]:
        """As `submit`, but on the caller's own thread where that takes no longer than a blink."""
        if len(work.jobs) > MOST_HERE:
            return self.submit(work)
        waiting = self._here.get(work.loop)
        if waiting is None:
            self._here[work.loop] = [work]
            work.loop.call_soon(self._flush_here, work.loop)
        else:
            waiting.append(work)
        return work.future

    def _flush_here(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._here.pop(loop)
        if self._commit_here(batch):
            _deliver(batch)
        else:
            for work in batch:
                self._put(work)

    def _commit_here(self, batch: list[Work]) -> bool:
        """Commit the batch, unless somebody would have to wait for it: then nothing is done."""
        began = time.monotonic()
        if began < self._slow_until or not self._queue.empty():
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            connection = self._connection
            if connection is None:
                return False
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False  # another process writes: wait for it elsewhere
            self._transact(connection, batch)
        finally:
            self._turn.release()
        self._commits += 1
        if self._commits % CHECKPOINT_EVERY == 0:
            self._queue.put(Nudge)
        ended = time.monotonic()
        if ended - began > QUICK_SECONDS * max(1, len(batch) / 100):
            # In proportion: a hiccup of the disk costs little, a slow disk a twentieth of the loop.
            self._slow_until = ended + min(AFTER_SLOW_SECONDS, 20 * (ended - began))
        return True

    def open(self) -> asyncio.Future[Any]:
        """The connection is open and the schema fits, or the future says why not."""
        return self.submit(_Opening(_nothing))

    def watch(self, change: int) -> None:
        """One more, or one fewer, wants to hear of the commits of others."""
        self.watching += change
        if self._thread is not None:
            self._queue.put(Nudge)

    def close(self) -> None:
        """What was submitted is written, the connection closed, the thread gone."""
        with self._start:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    # ── the thread ───────────────────────────────────────────────────────────────────────

    def _loop(self) -> None:
        while True:
            batch, stop = self._next()
            with self._turn:
                if batch:
                    self._do(batch)
                if self._connection is not None:
                    self._look_after(self._connection)
                if stop:
                    break
        with self._turn:
            if self._connection is not None:
                self._connection.raw.close()
                self._connection = None

    def _look_after(self, connection: Connection) -> None:
        if self.watching:
            self._listen(connection)
        if self._commits >= CHECKPOINT_EVERY:
            self._commits = 0
            self._checkpoint(connection)

    def _checkpoint(self, connection: Connection) -> None:
        """Move what the log holds into the file, here and not in the middle of a commit."""
        log = self._settings.path.with_name(self._settings.path.name + "-wal")
        try:
            if log.stat().st_size >= CHECKPOINT_BYTES:
                connection.raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except (sqlite3.Error, OSError) as error:
            _log.debug("a checkpoint has to wait: %s", error)

    def _next(self) -> tuple[list[Work], bool]:
        """Return all the work that waits; while somebody watches, wait only a moment for it."""
        batch: list[Work] = []
        try:
            timeout = WATCH_SECONDS if self.watching and self._connection else None
            work = self._queue.get(timeout=timeout)
            while True:
                if work is None:
                    return batch, True
                if work is not Nudge:
                    batch.append(work)
                if len(batch) >= MOST_AT_ONCE:
                    return batch, False
                work = self._queue.get_nowait()
        except queue.Empty:
            return batch, False

    def _listen(self, connection: Connection) -> None:
        try:
            (version,) = connection.raw.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return  # only a hint; the next write will tell what is wrong
        if version != self._version:
            self._version = version
            self._heard()

    def _do(self, batch: list[Work]) -> None:
        try:
            connection = self._open()
            work = [item for item in batch if not isinstance(item, _Opening)]
            ready = self._begin_transaction(connection, work)
            if ready:
                self._transact(connection, ready)
                self._commits += 1
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever goes wrong
            failure = self._translated(error)
            for item in batch:
                item.error = item.error or failure
        self._answer(batch)

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = open_writer(self._settings)
        return self._connection

    def _transact(self, connection: Connection, batch: list[Work]) -> None:
        try:
            if len(batch) == 1:  # nobody else to protect: the transaction is its savepoint
                batch[0].result = batch[0].run(connection)
            else:
                for group in _groups(batch):
                    self._run_group(connection, group)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing of the batch stands
            failure = self._translated(error)
            for item in batch:
                item.error = item.error or failure
            if connection.raw.in_transaction:
                connection.raw.rollback()

    def _begin_transaction(self, connection: Connection, batch: list[Work]) -> list[Work]:
        """Begin, waiting for others at most as long as each piece of work may wait in all.

        SQLite's own waiting sleeps up to 100 ms at a time, where a turn takes less than one.
        """
        limit = self._settings.busy_seconds
        began = time.monotonic()
        while batch:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                now = time.monotonic()
                failure = self._translated(error)
                for item in batch:
                    if now - item.since >= limit:
                        item.error = failure
                batch = [item for item in batch if item.error is None]
                # Even, so that who has waited longest is not the one who looks least often.
                pause = max(PAUSE_SECONDS, min(LONGEST_PAUSE_SECONDS, (now - began) / 200))
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        return batch

    def _run_group(self, connection: Connection, group: list[Work]) -> None:
        if len(group) > 1:
            if self._insert_together(connection, group):
                return
            for item in group:
                self._run_group(connection, [item])
            return
        (item,) = group
        try:
            with savepoint(connection):
                item.result = item.run(connection)
        except Exception as error:
            # A bad piece of work is its own fault alone.
            item.error = self._translated(error) if _is_sqlite(error) else error
            if not connection.raw.in_transaction:
                raise  # SQLite has rolled everything back: nothing of this batch stands

    def _insert_together(self, connection: Connection, group: list[Work]) -> bool:
        jobs = [job for item in group if isinstance(item, Insertion) for job in item.jobs]
        try:
            with savepoint(connection):
                answers = iter(insert(connection, jobs, self._now()))
        except Exception:
            if not connection.raw.in_transaction:
                raise
            return False  # one of them is to blame: each on its own
        for item in group:
            if isinstance(item, Insertion):
                item.result = [next(answers) for _ in item.jobs]
        return True

    def _translated(self, error: BaseException) -> BaseException:
        if not _is_sqlite(error):
            return error
        failure = translate(error, self._settings)
        failure.__cause__ = error
        return failure

    def _answer(self, batch: list[Work]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Work]] = defaultdict(list)
        for item in batch:
            by_loop[item.loop].append(item)
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop was closed; who waited there is gone
                _log.debug("an event loop was closed before its answers came")


def _nothing(tx: Tx) -> None:
    """Ask for nothing."""


class _Nudge(Work):
    """Wakes the thread up so that it notices a change of `watching`."""

    __slots__ = ()

    def __init__(self) -> None:
        pass


Nudge: Final = _Nudge()


def _is_sqlite(error: BaseException) -> bool:
    return isinstance(error, (sqlite3.Error, OSError)) and not isinstance(error, StoreUnavailable)


def _groups(batch: list[Work]) -> list[list[Work]]:
    """Neighbouring insertions are one group, all other work is alone."""
    groups: list[list[Work]] = []
    for item in batch:
        last = groups[-1] if groups else None
        if last is not None and isinstance(item, Insertion) and isinstance(last[-1], Insertion):
            last.append(item)
        else:
            groups.append([item])
    return groups


def _deliver(items: list[Work]) -> None:
    for item in items:
        if item.future.done():
            continue  # who waited was cancelled; the write stands
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(item.result)
