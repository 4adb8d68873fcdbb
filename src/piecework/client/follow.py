"""Wait for jobs: one batched look per process at all awaited ids, hurried by hints."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from piecework.core.errors import JobNotFound, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.core.job import JobId
    from piecework.ports import JobStatus, Reader, Store

__all__ = ["Follower"]

_log: Final = logging.getLogger("piecework.client")
FIRST_SECONDS: Final = 0.010
LAST_SECONDS: Final = 0.500
GROWTH: Final = 1.5


class _Waiter:
    __slots__ = ("future", "wanted")

    def __init__(self, wanted: Callable[[JobStatus], bool]) -> None:
        self.wanted = wanted
        self.future: asyncio.Future[JobStatus] = asyncio.get_running_loop().create_future()


class Follower:
    """Looks at the jobs that somebody on this event loop waits for."""

    def __init__(self, store: Store, reader: Reader) -> None:
        self._store = store
        self._reader = reader
        self._waiters: dict[JobId, list[_Waiter]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._hinted = asyncio.Event()

    async def wait(self, job_id: JobId, wanted: Callable[[JobStatus], bool]) -> JobStatus:
        """Return the job's status once it is wanted. JobNotFound if there is no such job."""
        waiter = _Waiter(wanted)
        self._waiters.setdefault(job_id, []).append(waiter)
        self._hinted.set()
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._look(), name="piecework follow"),
                asyncio.create_task(self._listen(), name="piecework follow hints"),
            ]
        try:
            return await waiter.future
        finally:
            self._forget(job_id, waiter)

    def _forget(self, job_id: JobId, waiter: _Waiter) -> None:
        waiters = self._waiters.get(job_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiters.pop(job_id, None)

    async def close(self) -> None:
        """Nobody is looked for any more; who still waits is cancelled."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for waiters in list(self._waiters.values()):
            for waiter in waiters:
                waiter.future.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                async for hint in self._store.hints():
                    if hint.what & {"done", "control"}:
                        self._hinted.set()
            except StoreUnavailable:
                await asyncio.sleep(LAST_SECONDS)

    async def _look(self) -> None:
        delay = FIRST_SECONDS
        while True:
            if self._hinted.is_set():
                delay = FIRST_SECONDS
            self._hinted.clear()
            if not self._waiters:
                await self._hinted.wait()
                continue
            await self._look_once()
            # Not wait_for: before 3.12 it swallows a cancellation that meets the hint.
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hinted.wait()
            delay = min(LAST_SECONDS, delay * GROWTH)

    async def _look_once(self) -> None:
        ids = list(self._waiters)
        try:
            found = await self._reader.statuses(ids)
        except StoreUnavailable as error:
            _log.warning("cannot look at awaited jobs, trying again: %s", error)
            return
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            for job_id in ids:
                for waiter in self._waiters.get(job_id, []):
                    if not waiter.future.done():
                        waiter.future.set_exception(error)
            return
        for job_id in ids:
            status = found.get(job_id)
            for waiter in list(self._waiters.get(job_id, ())):
                if waiter.future.done():
                    continue
                if status is None:
                    waiter.future.set_exception(JobNotFound(job_id))
                elif waiter.wanted(status):
                    waiter.future.set_result(status)
