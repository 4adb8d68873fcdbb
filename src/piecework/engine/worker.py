"""Claim jobs up to the free slots, run them, settle them; drain when asked to stop.

    claim ─► buffer ─► slot: decode, execute ─► Outcome ─► settler ─► apply
      ▲                  │
      └── a free slot ───┘            beats, staging, rescue: see chores.py

Each slot is one long-lived task. Jobs claimed beyond the free slots wait in the buffer for no
longer than a beat; what has not started by then is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from piecework.core import lifecycle
from piecework.core.errors import Cancelled
from piecework.core.job import Claimed, JobId, WorkerId
from piecework.core.lifecycle import (
    ErrorInfo,
    Failed,
    GivenBack,
    Outcome,
    Parked,
    Released,
    Snoozed,
    Stopped,
)
from piecework.engine.active import GRACE_SECONDS, Active
from piecework.engine.chores import Chores
from piecework.engine.executor import Executor, calm, describe, judge, retry_delay
from piecework.engine.isolate import Children, NotLoadable, is_importable
from piecework.engine.loop import FOREVER, Loop
from piecework.engine.reports import Reports
from piecework.engine.settler import Claim, Ending, Settler
from piecework.handlers.codec import Undecodable
from piecework.handlers.run import Run
from piecework.observe import LogCapture
from piecework.ports import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Retention
    from piecework.handlers.registry import Definition, Registry
    from piecework.ports import Reader, Store

__all__ = ["Settings", "Worker"]

_log: Final = logging.getLogger("piecework.engine")
MOST_AHEAD: Final = 512
AHEAD_SECONDS: Final = 0.02
YIELD_EVERY: Final = 16
ALONE_LATER: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a worker works. `queues` None means every queue."""

    node: str
    queues: tuple[str, ...] | None = None
    concurrency: int = 50
    lease: timedelta = timedelta(seconds=30)
    beat: timedelta = timedelta(seconds=5)
    poll: timedelta = timedelta(seconds=1)
    shutdown_timeout: timedelta = timedelta(seconds=25)
    retention: Retention | None = None
    max_result_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency}: a worker needs at least one slot")
        if self.queues is not None and not self.queues:
            raise ValueError("queues=[] would never run anything: give names, or None for all")
        zero = timedelta(0)
        if min(self.lease, self.beat, self.poll) <= zero or self.shutdown_timeout < zero:
            raise ValueError("lease, beat, poll and shutdown_timeout must be positive")
        if self.beat * 2 > self.lease:
            raise ValueError(
                f"beat={self.beat} must be at most half of lease={self.lease}, "
                "so that one lost beat costs nothing"
            )


class Worker:
    """Runs the jobs of some queues on the calling event loop, between `start` and `stop`."""

    def __init__(
        self, store: Store, reader: Reader, registry: Registry, settings: Settings
    ) -> None:
        self.id = WorkerId(uuid4())
        self.settings = settings
        self._store = store
        self._reader = reader
        self._registry = registry
        self._slots = settings.concurrency
        self._threads = ThreadPoolExecutor(settings.concurrency, "piecework-handler")
        self._executor = Executor(registry.services, self._threads)
        self._children = Children()
        self._quarantine = Children()  # for jobs that crashed a worker: nobody else runs there
        self._buffer: deque[Claimed] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._busy = 0
        self._active: dict[Claim, Active] = {}
        self._by_kind: Counter[str] = Counter()
        self._alone: asyncio.Lock | None = None
        self._lonely = 0
        self._seconds_per_job = 1.0
        self._stopping = False
        self._registered = True
        self._claim_under_way: asyncio.Future[list[Claimed]] | None = None
        self.claims_begun = self.claims_ended = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._slot_tasks: list[asyncio.Task[Any]] = []
        self._capture = LogCapture()
        self._idle_event = asyncio.Event()
        self._run_ended = asyncio.Event()
        self._written = asyncio.Event()
        self.claiming = Loop("claim", self._claim)
        self.chores: Chores
        self.reports: Reports
        self.settler: Settler
        self._quiet = False
        self._low = 0
        self.waits_for_idle = False

    # ── life ─────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """The worker is known to the store and claims jobs. Raises what the store raises."""
        settings, store = self.settings, self._store
        await store.open()
        self._alone = asyncio.Lock()
        self.reports = Reports(
            store,
            self.lost_job,
            lambda: [active.run for active in self._active.values()],
            settings.max_result_bytes,
        )
        self.settler = Settler(store, settings.node, self.id, self._settled)
        self.chores = Chores(self, store)
        settling, reporting = Loop("settle", self.settler.tick), Loop("report", self.reports.tick)
        self.settler.wake, self.reports.wake = settling.wake, reporting.wake
        await self.chores.start()
        self._capture.install()
        self._loops = [self.claiming, settling, reporting, *self.chores.loops]
        self._tasks = [
            asyncio.create_task(loop.run(), name=f"piecework {loop.name}") for loop in self._loops
        ]
        self._slot_tasks = [
            asyncio.create_task(self._slot(), name=f"piecework slot {number}")
            for number in range(self._slots)
        ]

    async def stop(self, *, now: asyncio.Event | None = None) -> None:
        """Nothing is claimed any more; runs had until the deadline, the rest is released.

        A run in a thread that has not stopped keeps its job until `abandon`, or until the lease
        lapses. `now` set means: do not wait any longer.
        """
        self._stopping = True
        self._give_back()
        for active in self._active.values():
            if active.run.stopping is None:
                active.run.stopping = "shutdown"
        timeout = self.settings.shutdown_timeout.total_seconds()
        await self._wait_for_runs(timeout, now)
        for active in list(self._active.values()):
            active.stop("shutdown")
        await self._wait_for_runs(GRACE_SECONDS)
        if self._claim_under_way is not None:
            await asyncio.wait([self._claim_under_way], timeout=timeout + GRACE_SECONDS)
            await asyncio.sleep(0)  # the claim loop gives back what came
        await self._flush()
        await self._end()

    async def _end(self) -> None:
        self._capture.remove()
        # A run that would not stop keeps its slot's task, and its job: see abandon().
        stubborn = {active.task for active in self._active.values()}
        ending = [*self._tasks, *(task for task in self._slot_tasks if task not in stubborn)]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._children.close()
        await self._quarantine.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.chores.stop(retire=not stubborn)

    def _torn_down(self) -> bool:
        """Whether the loops are gone or going: by `stop`, or because all tasks were cancelled."""
        claiming = self._tasks[0]
        return claiming.done() or claiming.cancelling() > 0

    async def _wait_for_runs(self, seconds: float, now: asyncio.Event | None = None) -> None:
        waits = [asyncio.ensure_future(self._until_quiet(0))]
        if now is not None:
            waits.append(asyncio.ensure_future(_set(now)))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _until_quiet(self, others: int) -> None:
        """Return when no more than so many slots are busy."""
        while self._busy > others:
            self._run_ended.clear()
            await self._run_ended.wait()

    async def _flush(self) -> None:
        """What has ended is recorded. While the store is away this goes on for a lease at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.lease.total_seconds()):
                while len(self.settler):
                    self._written.clear()
                    self.settler.wake()
                    await self._written.wait()

    async def abandon(self) -> None:
        """What still runs is released; only for a process that ends right now."""
        for active in self._active.values():
            active.stop("lost")
            self.settler.add(Ending(active.run.claimed, Released(), self._store.clock.now()))
        while len(self.settler):
            await self.settler.tick()
        await self._store.retire(self.id)

    async def run_until_idle(self) -> None:
        """Return once nothing is due and nothing runs: scheduled retries are not waited for."""
        self.waits_for_idle, self._quiet = True, False
        self._idle_event.clear()
        self.claiming.wake()
        await self._idle_event.wait()

    # ── claim ────────────────────────────────────────────────────────────────────────────

    @property
    def stopping(self) -> bool:
        """Whether nothing is claimed any more."""
        return self._stopping

    @property
    def busy(self) -> int:
        """How many slots run a job."""
        return self._busy

    def _ahead(self) -> int:
        """How many jobs the slots will eat in the next few milliseconds."""
        return min(MOST_AHEAD, int(self._slots * AHEAD_SECONDS / max(self._seconds_per_job, 1e-6)))

    def _may_claim(self) -> bool:
        return self._registered and not (self._stopping or self._lonely)

    async def _claim(self) -> float:
        if not self._may_claim():
            return FOREVER
        room = self._slots - self._busy - len(self._buffer)
        ahead = self._ahead()
        self._low = ahead // 2
        if room <= 0 and len(self._buffer) > self._low:
            return FOREVER  # a slot that empties the buffer wakes this loop
        if len(self.settler) > 4 * MOST_AHEAD:
            return 0.01  # the store cannot follow: what ended is recorded first
        free = max(0, room)
        ask = Ask(
            worker=self.id,
            node=self.settings.node,
            free=free,
            ahead=max(0, ahead - max(0, len(self._buffer) - (self._slots - self._busy))),
            queues=self.settings.queues,
            rooms=self._rooms(),
        )
        if ask.free + ask.ahead == 0:
            return FOREVER
        rounds = self.settler.rounds
        self.claims_begun += 1
        try:
            self._claim_under_way = asyncio.ensure_future(self._store.claim(ask))
            claimed = await asyncio.shield(self._claim_under_way)
        finally:
            self.claims_ended += 1
        if ask.worker != self.id or not self._may_claim():
            self._undo(claimed)  # lost, stopping or busy alone while the answer was under way
            return FOREVER
        self._accept(claimed)
        if claimed:
            self._quiet = False
            return 0.0 if len(claimed) >= free else FOREVER
        return self._nothing_came(rounds)

    def _nothing_came(self, rounds: int) -> float:
        nothing_here = not (self._busy or self._buffer or len(self.settler))
        if self.waits_for_idle and nothing_here and rounds == self.settler.rounds:
            if self._quiet and self.chores.nothing_due:
                self._idle_event.set()
            elif not self._quiet:
                self._quiet = True
                self.chores.stage_now()
        return FOREVER  # hints, and what the staging finds once in a poll interval, wake this

    def _accept(self, claimed: Sequence[Claimed]) -> None:
        if not claimed:
            return
        self._buffer.extend(self._within_rooms(claimed) if self._registry.limited else claimed)
        self.chores.buffered()
        for _ in range(min(len(self._idle), len(self._buffer))):
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _within_rooms(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Count them by kind; give back what came under an alias beyond the kind's room."""
        kept: list[Claimed] = []
        for job in claimed:
            limit = self._registry.limited.get(job.kind)
            kind = self._real_kind(job.kind)
            if limit is not None and self._by_kind[kind] >= limit:
                self.settler.add(Ending(job, GivenBack()))
                continue
            self._by_kind[kind] += 1
            kept.append(job)
        return kept

    def _rooms(self) -> dict[str, int]:
        return {
            name: max(0, limit - self._by_kind[self._real_kind(name)])
            for name, limit in self._registry.limited.items()
        }

    def _real_kind(self, name: str) -> str:
        definition = self._registry.get(name)
        return name if definition is None else definition.kind

    async def give_back_stray(self, job_id: JobId, fence: int) -> None:
        """A job that runs in our name, but whose claim's answer never came, is given back."""
        for job in await self._reader.get([job_id]):
            if job.fence == fence and job.worker == self.id:
                _log.warning("job %s came with a claim whose answer was lost; given back", job_id)
                await self._store.apply([lifecycle.give_back(job)])
                self.claiming.wake()

    def _undo(self, claimed: Sequence[Claimed]) -> None:
        for job in claimed:
            self.settler.add(Ending(job, GivenBack()))

    def _give_back(self) -> None:
        while self._buffer:
            job = self._buffer.pop()
            self._forget(job)
            self.settler.add(Ending(job, GivenBack()))

    def give_back_unstarted(self) -> None:
        """What has waited in the buffer for a beat is another worker's to run."""
        self._give_back()
        self._seconds_per_job = max(self._seconds_per_job, 1.0)  # the guess was far too good

    def _drop(self, job: Claimed) -> None:
        self._buffer.remove(job)
        self._forget(job)

    def _forget(self, job: Claimed) -> None:
        if self._registry.limited:
            kind = self._real_kind(job.kind)
            self._by_kind[kind] = max(0, self._by_kind[kind] - 1)  # it may be limited since

    # ── run ──────────────────────────────────────────────────────────────────────────────

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        buffer, since_yield = self._buffer, 0
        while True:
            if not buffer:
                self.claiming.wake()
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            job = buffer.popleft()
            if len(buffer) == self._low:
                self.claiming.wake()
            self._busy += 1
            began = loop.time()
            began_at = self._store.clock.now()
            try:
                await self._run(job, task, began_at)
            except Exception as error:  # noqa: BLE001 - see below
                # No handler's fault; but a slot must not die of it, nor the job be forgotten.
                _log.exception("job %s could not be run", job.id)
                self.settler.add(Ending(job, Failed(describe(error), timedelta(0)), began_at))
            finally:
                self._busy -= 1
                self._forget(job)
                if self._stopping or self._lonely:
                    self._run_ended.set()
            if self._torn_down():
                return
            taken = loop.time() - began
            self._seconds_per_job += 0.05 * (taken - self._seconds_per_job)
            since_yield += 1
            if since_yield >= YIELD_EVERY:
                since_yield = 0
                await asyncio.sleep(0)

    async def _run(self, job: Claimed, task: asyncio.Task[Any], started_at: datetime) -> None:
        try:
            located = self._registry.locate(job.kind, job.args)
            if located is None:
                reason = f"no handler for kind {job.kind!r} in this worker"
                self.settler.add(Ending(job, Parked(reason)))
                return
            definition, text = located
            value = definition.decode(text)
        except Undecodable as error:
            self.settler.add(Ending(job, Parked(f"args cannot be read: {error}")))
            return
        deadline = None if job.timeout is None else started_at + timedelta(seconds=job.timeout)
        run = Run(job, self.reports, deadline=deadline, logs=self.reports.logs(job.id))
        active = self._active[job.id, job.fence] = Active(run, definition, task)
        if job.timeout is not None:
            loop = asyncio.get_running_loop()
            active.timer = loop.call_later(job.timeout, active.stop, "timeout")
        try:
            outcome = await self._outcome(definition, value, active)
        finally:
            active.release()
            del self._active[job.id, job.fence]
        if outcome is not None:
            progress, logs = self.reports.take(run), run.logs.take(last=True)
            self.settler.add(Ending(job, outcome, started_at, progress, logs))

    async def _outcome(self, definition: Definition, value: Any, active: Active) -> Outcome | None:
        if active.run.claimed.crashes:
            return await self._suspect(definition, value, active)
        if active.killed is not None:
            try:
                return await self._children.run(definition, active.run, active.killed)
            except NotLoadable as error:
                info = ErrorInfo("NotImportable", f"the child process cannot import it: {error}")
                return Failed(info, retry_delay(definition, active.run, error))
        return await self._executor.execute(definition, value, active.run)

    async def _suspect(self, definition: Definition, value: Any, active: Active) -> Outcome | None:
        """Run what crashed a worker before where it can harm only itself."""
        if is_importable(definition):
            active.killed = active.killed or asyncio.Event()
            try:
                return await self._quarantine.run(definition, active.run, active.killed)
            except NotLoadable:
                active.killed = None
        if active.run.halted:
            return judge(definition, active.run, Cancelled(active.run.stopping))
        assert self._alone is not None
        self._lonely += 1  # nothing more is claimed or started until it is over
        try:
            async with self._alone:
                self._give_back()
                if not await self._is_alone():
                    return Snoozed(ALONE_LATER, "crashed a worker before, and waits to run alone")
                return await self._executor.execute(definition, value, active.run)
        except asyncio.CancelledError as error:  # it was stopped while it waited to be alone
            await calm()
            return judge(definition, active.run, error)
        finally:
            self._lonely -= 1
            self.claiming.wake()

    async def _is_alone(self) -> bool:
        """Whether the other runs end within a beat; a long one must not idle the other slots."""
        try:
            async with asyncio.timeout(self.settings.beat.total_seconds()):
                await self._until_quiet(self._lonely)
        except TimeoutError:
            return False
        return True

    # ── what the chores tell ─────────────────────────────────────────────────────────────

    def known(self) -> set[Claim]:
        """Return the claims this worker believes to hold.

        It can be two of one job: one that was lost and whose handler still stops, and a new one.
        """
        return {(job.id, job.fence) for job in self._buffer} | self._active.keys()

    def cancel(self, claim: Claim) -> None:
        """Somebody wants this run to stop."""
        if active := self._active.get(claim):
            active.stop("cancel")
            return
        for job in self._buffered(claim):
            self._drop(job)
            self.settler.add(Ending(job, Stopped()))

    def lost_job(self, claim: Claim) -> None:
        """The job is another's: the run is stopped and nothing of it is recorded."""
        if active := self._active.get(claim):
            if active.run.stopping != "lost":
                _log.warning("lost job %s to another worker; its handler is stopped", claim[0])
                active.stop("lost")
            return
        for job in self._buffered(claim):
            self._drop(job)

    def _buffered(self, claim: Claim) -> list[Claimed]:
        return [job for job in self._buffer if (job.id, job.fence) == claim]

    def declared_lost(self) -> None:
        """Others took this worker for dead: it stops its handlers and begins anew."""
        _log.error("this worker did not beat for a lease and was declared lost; beginning anew")
        for claim in self.known():
            self.lost_job(claim)
        self.id = self.settler.worker = WorkerId(uuid4())
        # Not before its first beat may it claim: a job in an unknown name is taken for an orphan.
        self._registered = False
        self.chores.beat_now()

    def registered(self) -> None:
        """The store knows this worker."""
        if not self._registered:
            self._registered = True
            self.claiming.wake()

    def _settled(self) -> None:
        self._written.set()
        self.claiming.wake()


async def _set(event: asyncio.Event) -> None:
    await event.wait()
