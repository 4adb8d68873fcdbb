"""What a worker does beside running jobs: beat, stage what is due, rescue orphans, prune.

The beat has a thread and an event loop of its own, so that a handler which blocks the worker's
loop costs nobody a lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from piecework.core import lifecycle
from piecework.core.errors import StoreUnavailable
from piecework.core.retry import Retry
from piecework.engine.loop import FOREVER, Loop, backoff
from piecework.ports import Beat, Fate
from piecework.system import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.core.job import JobId, WorkerId
    from piecework.engine.settler import Claim
    from piecework.engine.worker import Worker
    from piecework.ports import Beaten, Store

__all__ = ["Chores"]

_log: Final = logging.getLogger("piecework.engine")
STAGE_LIMIT: Final = 1_000
RESCUE_LIMIT: Final = 100
RESCUE_SECONDS: Final = 1.5
PRUNE_LIMIT: Final = 500
PRUNE_SECONDS: Final = 60.0
AFTER_CRASH: Final = Retry()
RETIRE_SECONDS: Final = 5.0


class Chores:
    """The loops of one worker that are not about running jobs."""

    def __init__(self, worker: Worker, store: Store) -> None:
        self._worker = worker
        self._store = store
        self._settings = worker.settings
        self._loop = asyncio.get_running_loop()
        self._staging = Loop("stage", self._stage)
        self._listening: asyncio.Task[None] | None = None
        self.loops = [
            self._staging,
            Loop("rescue", self._rescue),
            Loop("prune", self._prune),
        ]
        self.nothing_due = False
        self._buffered_at: float | None = None
        self._unknown: dict[JobId, tuple[int, int]] = {}
        self._strays: set[asyncio.Task[None]] = set()
        self._pulse = _Pulse(store, self._sign, self._beaten, self._settings.beat)

    async def start(self) -> None:
        """The first beat is done, so that others know the worker; hints are heard."""
        await self._pulse.start()
        self._listening = asyncio.create_task(self._listen(), name="piecework listen")

    async def stop(self, *, retire: bool) -> None:
        """No more beats. The worker's row goes, unless something of it still runs."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._pulse.stop()
        if retire:
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(RETIRE_SECONDS):
                    await self._store.retire(self._worker.id)

    # ── beat ─────────────────────────────────────────────────────────────────────────────

    def _sign(self) -> tuple[Beat, set[Claim]]:
        """Return the beat and what the worker held before it; called on the beat's thread."""
        worker, settings = self._worker, self._settings
        beat = Beat(
            worker=worker.id,
            node=settings.node,
            pid=os.getpid(),
            lease=settings.lease,
            queues=settings.queues,
            slots=settings.concurrency,
            running=worker.busy,
            stopping=worker.stopping,
        )
        for _ in range(10):
            try:
                return beat, worker.known()
            except RuntimeError:  # the worker's thread changed a dict meanwhile: look again
                continue
        return beat, set()

    def _beaten(self, worker: WorkerId, answer: Beaten, known: set[Claim]) -> None:
        """Compare what the store says runs here with what does; on the worker's own loop."""
        if worker != self._worker.id:
            return
        if answer.fate is Fate.LOST:
            self._worker.declared_lost()
            return
        self._worker.registered()
        now_known = self._worker.known()
        for job_id, (fence, cancel) in answer.running.items():
            if cancel and (job_id, fence) in now_known:
                self._worker.cancel((job_id, fence))
        self._find_lost(answer, known, now_known)
        self._find_unknown(answer, now_known)
        if self._buffered_at is not None:
            waited = time.monotonic() - self._buffered_at
            if waited > self._settings.beat.total_seconds():
                self._buffered_at = None
                self._worker.give_back_unstarted()

    def _find_lost(self, answer: Beaten, known: set[Claim], now_known: set[Claim]) -> None:
        for job_id, fence in known & now_known:
            there = answer.running.get(job_id)
            if there is None or there[0] != fence:
                self._worker.lost_job((job_id, fence))

    def _find_unknown(self, answer: Beaten, now_known: set[Claim]) -> None:
        """A job unknown at two beats came with a claim whose answer was lost: give it back.

        Unless a claim begun before the first beat is still under way: it may yet bring the job.
        Both beats can be told at once, where a handler had blocked this loop.
        """
        worker, before = self._worker, self._unknown
        ending = worker.settler.claims()
        self._unknown = {}
        for job_id, (fence, _) in answer.running.items():
            if (job_id, fence) in now_known or (job_id, fence) in ending:
                continue
            seen, claims = before.get(job_id, (0, 0))
            if seen != fence:
                self._unknown[job_id] = (fence, worker.claims_begun)
                continue
            self._unknown[job_id] = (fence, claims)
            if worker.claims_ended >= claims:
                task = self._loop.create_task(self._give_back_stray(job_id, fence))
                self._strays.add(task)
                task.add_done_callback(self._strays.discard)

    async def _give_back_stray(self, job_id: JobId, fence: int) -> None:
        with suppress(StoreUnavailable):  # the next beat finds it again
            await self._worker.give_back_stray(job_id, fence)

    def beat_now(self) -> None:
        """The next beat comes at once."""
        self._pulse.hurry()

    def buffered(self) -> None:
        """The buffer was filled just now."""
        self._buffered_at = time.monotonic()

    # ── hints ────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        """Hints only hurry what polling would find as well."""
        failures = 0
        while True:
            try:
                async for hint in self._store.hints():
                    failures = 0
                    if "work" in hint.what:
                        self._worker.claiming.wake()
                    if "due" in hint.what:
                        self._staging.wake()
                    if "control" in hint.what:
                        self._pulse.hurry()
            except Exception as error:  # noqa: BLE001 - without hints, polling goes on
                if not failures:
                    _log.warning("no hints, only polling for now: %s", error)
            failures += 1
            await asyncio.sleep(backoff(failures))

    # ── stage, rescue, prune ─────────────────────────────────────────────────────────────

    def stage_now(self) -> None:
        """Look for what is due at once."""
        self.nothing_due = False
        self._staging.wake()

    async def _stage(self) -> float:
        staged = await self._store.stage(limit=STAGE_LIMIT)
        self.nothing_due = not (staged.due or staged.expired or staged.promoted)
        # Also when nothing is there: who waits for idleness looks once more after this.
        if staged.available or self._worker.waits_for_idle:
            self._worker.claiming.wake()
        if staged.more:
            return 0.0
        poll = self._settings.poll.total_seconds()
        return poll if staged.next_due is None else min(poll, staged.next_due)

    async def _rescue(self) -> float:
        if self._pulse.is_steady(self._settings.lease):
            orphans = await self._store.orphans(limit=RESCUE_LIMIT)
            if orphans:
                _log.warning("rescuing %d jobs of lost workers", len(orphans))
                moves = [lifecycle.rescue(job, retry_in=_wait(job.crashes + 1)) for job in orphans]
                await self._store.apply(moves)
                if len(orphans) == RESCUE_LIMIT:
                    return 0.0
        beat = self._settings.beat.total_seconds()
        return min(RESCUE_SECONDS, beat) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    async def _prune(self) -> float:
        retention = self._settings.retention
        if retention is None:
            return FOREVER
        gone = await self._store.prune(retention, limit=PRUNE_LIMIT)
        if len(gone) == PRUNE_LIMIT:
            return 0.05  # leave room for others between two batches
        return PRUNE_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _wait(crashes: int) -> timedelta:
    return timedelta(seconds=AFTER_CRASH.delay(crashes, spread=random.random()))  # noqa: S311


class _Pulse:
    """A thread with an event loop of its own that beats, whatever the worker's loop does."""

    def __init__(
        self,
        store: Store,
        sign: Callable[[], tuple[Beat, set[Claim]]],
        beaten: Callable[[WorkerId, Beaten, set[Claim]], None],
        every: timedelta,
    ) -> None:
        self._store = store
        self._sign = sign
        self._beaten = beaten
        self._every = every.total_seconds()
        self._home = asyncio.get_running_loop()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._last: tuple[float, datetime] | None = None
        self._unsteady_at: float | None = None

    async def start(self) -> None:
        """The first beat is done; raises what the store raised."""
        await self._beat()
        self._loop = self._runner.get_loop()  # from now on it can be hurried
        self._thread = threading.Thread(target=self._main, name="piecework-pulse", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """The thread is gone, even if a beat of it waits for the store."""
        self._stopped.set()
        self._tell(self._interrupt)
        if self._thread is not None:
            await self._home.run_in_executor(None, self._thread.join)

    def hurry(self) -> None:
        """Beat now: something about our jobs may have changed."""
        self._tell(self._hurry.set)

    def _tell(self, what: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the thread has just ended
                self._loop.call_soon_threadsafe(what)

    def _interrupt(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def is_steady(self, lease: timedelta) -> bool:
        """Whether this process could beat all along: who was away waits one lease."""
        since = self._unsteady_at
        return since is None or time.monotonic() - since >= lease.total_seconds()

    def _main(self) -> None:
        with suppress(asyncio.CancelledError), self._runner:
            self._runner.run(self._forever())

    async def _forever(self) -> None:
        self._task = asyncio.current_task()
        failures = 0
        while not self._stopped.is_set():
            delay = self._every if not failures else min(self._every, backoff(failures))
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hurry.wait()
            self._hurry.clear()
            if self._home.is_closed():
                return  # nobody stopped the worker, but it is gone: its jobs are for others
            try:
                await self._beat()
                failures = 0
            except Exception as error:  # noqa: BLE001 - a pulse must not stop
                failures += 1
                self._unsteady_at = time.monotonic()
                if failures == 1:
                    _log.warning("cannot beat, trying again: %s", error)

    async def _beat(self) -> None:
        self._watch_gap()
        beat, known = self._sign()
        answer = await self._store.beat(beat)
        self._home.call_soon_threadsafe(self._beaten, beat.worker, answer, known)

    def _watch_gap(self) -> None:
        """A process that slept, or was stopped, may not judge others by their age at once."""
        now = (time.monotonic(), SystemClock().now())
        if self._last is not None:
            ticked, elapsed = now[0] - self._last[0], (now[1] - self._last[1]).total_seconds()
            if max(ticked, elapsed) > 2 * self._every + 1:
                self._unsteady_at = now[0]
        self._last = now
