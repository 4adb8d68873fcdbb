"""One event loop's connections, and how work is done on them: again, where that is safe."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from piecework.core.errors import SchemaOutdated, StoreUnavailable
from piecework.stores.postgres.pool import Pool
from piecework.stores.postgres.settings import (
    DRIVER_ERRORS,
    STEADY_PLANS,
    is_lost,
    is_retryable,
    translate,
)
from piecework.stores.postgres.tx import Tx

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from datetime import datetime

    from piecework.stores.postgres.settings import Settings

__all__ = ["Lane"]

T = TypeVar("T")

_log: Final = logging.getLogger("piecework.stores.postgres")

MOST_CONFLICTS: Final = 20
FIRST_WAIT: Final = 0.05
_STEADY: Final = "".join(f"; SET LOCAL {name} = {value}" for name, value in STEADY_PLANS.items())


class Lane:
    """The connections of one event loop: for work, for looks, and one for beats alone."""

    def __init__(self, settings: Settings, at: Callable[[], datetime | None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._settings = settings
        self._at = at
        self.work = Pool(settings, "work", settings.pool_size)
        # Beats never wait behind work, nor work behind somebody's long look.
        self.beats = Pool(settings, "beat", 1)
        self.looks = Pool(settings, "look", max(1, settings.pool_size - 1), steady=False)
        self._end: AsyncGenerator[None] | None = None

    async def run(
        self,
        work: Callable[[Tx], Awaitable[T]],
        *,
        pool: Pool | None = None,
        transaction: bool = True,
        again: bool = True,
    ) -> T:
        """Return what `work` returns, after its commit.

        A conflict with others is tried again. So is a lost connection, for a moment, if the work
        may be repeated (`again`). Raises StoreUnavailable with the driver's error as its cause.
        """
        if self._end is None:
            await self._begin()
        pool = pool or self.work
        conflicts = 0
        give_up = self.loop.time() + self._settings.patience
        wait = FIRST_WAIT
        while True:
            reached = pool.reached
            try:
                return await self._once(work, pool, transaction=transaction)
            except StoreUnavailable as error:
                # Only what was reached before is worth waiting for: else it is the URL.
                if isinstance(error, SchemaOutdated) or not (reached and _may_return(error)):
                    raise
                failure: Exception = error
            except (*DRIVER_ERRORS, ValueError) as error:
                if is_retryable(error) and conflicts < MOST_CONFLICTS:
                    conflicts += 1
                    await asyncio.sleep(random.uniform(0, 0.002 * conflicts))  # noqa: S311 - no secret
                    continue
                if not isinstance(error, (*DRIVER_ERRORS, UnicodeError)):
                    raise  # not the database's: a ValueError of ours
                failure = translate(error, self._settings)
                failure.__cause__ = error
                if not is_lost(error):
                    raise failure from error
                pool.forget_idle()
                if not again:
                    raise failure from error
            if self.loop.time() + wait > give_up:
                raise failure
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - no secret
            wait = min(1.0, 2 * wait)

    async def _once(
        self, work: Callable[[Tx], Awaitable[T]], pool: Pool, *, transaction: bool
    ) -> T:
        connection = await pool.acquire()
        tx = Tx(connection, self._settings.namespace, self._at())
        try:
            if not transaction and not self._settings.pooled:
                result = await work(tx)
            else:
                begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
                if self._settings.pooled and pool is not self.looks:
                    begin += _STEADY
                await connection.execute(begin)
                result = await work(tx)
                await connection.execute("COMMIT")
        except Exception as error:
            await self._undo(pool, connection, error)
            raise
        except BaseException:
            pool.discard(connection)  # cancelled in the midst of something
            raise
        pool.release(connection)
        return result

    async def _undo(self, pool: Pool, connection: Any, error: Exception) -> None:
        if is_lost(error) or connection.is_closed():
            pool.discard(connection)
            return
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        except DRIVER_ERRORS as second:
            _log.debug("a connection was dropped: %s", second)
            pool.discard(connection)
        except BaseException:
            pool.discard(connection)
            raise
        else:
            pool.release(connection)

    # ── its end ──────────────────────────────────────────────────────────────────────────

    async def _begin(self) -> None:
        # The loop closes its asynchronous generators at its end, and with this one the
        # connections: nobody else hears of the end of, say, asyncio.run().
        self._end = self._until_the_end()
        await anext(self._end)

    async def _until_the_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Every connection is closed."""
        for pool in (self.work, self.beats, self.looks):
            await pool.close()

    def terminate(self) -> None:
        """Every connection is dropped, without a word: its loop will not run any more."""
        for pool in (self.work, self.beats, self.looks):
            pool.each(_terminate)


def _terminate(connection: Any) -> None:
    try:
        connection.terminate()
    except RuntimeError:  # its loop is closed
        _log.debug("a connection went with its event loop")


def _may_return(error: StoreUnavailable) -> bool:
    cause = error.__cause__
    return cause is not None and is_lost(cause)
