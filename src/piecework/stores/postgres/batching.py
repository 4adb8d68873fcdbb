"""Small insertions that come while others are on their way go together, in one statement."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from piecework.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.core.job import NewJob
    from piecework.ports import Inserted

__all__ = ["Batcher"]

AT_ONCE: Final = 2
MOST: Final = 500


class Batcher:
    """Two statements at a time: a lone caller waits for nobody, a hundred share two commits."""

    def __init__(self, insert: Callable[[Sequence[NewJob]], Awaitable[list[Inserted]]]) -> None:
        self._insert = insert
        self._under_way = 0
        self._waiting: list[tuple[Sequence[NewJob], asyncio.Future[list[Inserted]]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Store.insert`, for jobs that need no look at others."""
        if self._under_way >= AT_ONCE:
            answer: asyncio.Future[list[Inserted]] = asyncio.get_running_loop().create_future()
            self._waiting.append((jobs, answer))
            return await answer
        self._under_way += 1
        try:
            return await self._insert(jobs)
        finally:
            self._under_way -= 1
            self._go_on()

    def _go_on(self) -> None:
        if not self._waiting:
            return
        batch, size = [self._waiting[0]], len(self._waiting[0][0])
        for item in self._waiting[1:]:
            size += len(item[0])
            if size > MOST:
                break
            batch.append(item)
        del self._waiting[: len(batch)]
        self._under_way += 1
        task = asyncio.create_task(self._together(batch), name="piecework insert")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _together(
        self, batch: list[tuple[Sequence[NewJob], asyncio.Future[list[Inserted]]]]
    ) -> None:
        try:
            answers = iter(await self._insert([job for jobs, _ in batch for job in jobs]))
            for jobs, future in batch:
                mine = [next(answers) for _ in jobs]
                if not future.done():
                    future.set_result(mine)
        except StoreUnavailable as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        except Exception:  # noqa: BLE001 - one of them is to blame: each on its own
            for jobs, future in batch:
                await self._on_its_own(jobs, future)
        finally:
            for _, future in batch:
                future.cancel()  # nothing where it is done; else the loop ends
            self._under_way -= 1
            self._go_on()

    async def _on_its_own(
        self, jobs: Sequence[NewJob], future: asyncio.Future[list[Inserted]]
    ) -> None:
        try:
            answers = await self._insert(jobs)
        except Exception as error:  # noqa: BLE001 - it is its caller's
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(answers)
