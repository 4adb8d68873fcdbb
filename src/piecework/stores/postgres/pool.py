"""A few connections of one event loop: opened when needed, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncpg

from piecework.core.errors import StoreUnavailable
from piecework.stores.postgres.settings import DRIVER_ERRORS, OLDEST_SERVER, STEADY_PLANS, translate

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.stores.postgres.settings import Settings

__all__ = ["Pool", "connect"]

CONNECT_SECONDS = 10.0


async def connect(settings: Settings, purpose: str, *, steady: bool = True) -> Any:
    """Return a new connection. Raises StoreUnavailable, which says what to do."""
    given = {"application_name": f"piecework {settings.namespace} {purpose}"}
    if not settings.pooled:
        # Limits and turns count anew after a lock: under a stricter default they could not.
        given["default_transaction_isolation"] = "read committed"
        if steady:
            given |= STEADY_PLANS
    try:
        connection: Any = await asyncpg.connect(
            settings.url,
            timeout=CONNECT_SECONDS,
            command_timeout=settings.command_seconds,
            statement_cache_size=0 if settings.pooled else 500,
            max_cached_statement_lifetime=0,
            server_settings=given,
        )
    except DRIVER_ERRORS as error:
        raise translate(error, settings) from error
    except ValueError as error:
        raise StoreUnavailable(f"{settings.shown}: {error}: check the URL") from error
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        await connection.close()
        raise StoreUnavailable(
            f"{settings.shown} runs PostgreSQL {version.major}: Piecework needs {OLDEST_SERVER} "
            "or newer"
        )
    return connection


class Pool:
    """At most `size` connections, on one event loop."""

    def __init__(self, settings: Settings, purpose: str, size: int, *, steady: bool = True) -> None:
        self._settings = settings
        self._purpose = purpose
        self._size = size
        self._steady = steady
        self._open = 0
        self._idle: list[Any] = []
        self._busy: set[Any] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.reached = False

    async def acquire(self) -> Any:
        """Return a connection that nobody else uses; give it back with `release` or `discard`."""
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    self._busy.add(connection)
                    return connection
                self._open -= 1
            if self._open < self._size:
                return await self._new()
            await self._turn()

    async def _new(self) -> Any:
        self._open += 1
        try:
            connection = await connect(self._settings, self._purpose, steady=self._steady)
        except BaseException:
            self._open -= 1
            self._next()
            raise
        self.reached = True
        self._busy.add(connection)
        return connection

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next()  # the turn was given just as its owner was cancelled
            raise

    def release(self, connection: Any) -> None:
        """The connection is idle again."""
        self._busy.discard(connection)
        if connection.is_closed():
            self._open -= 1
        else:
            self._idle.append(connection)
        self._next()

    def discard(self, connection: Any) -> None:
        """The connection is in an unknown state: it is dropped."""
        self._busy.discard(connection)
        self._open -= 1
        connection.terminate()
        self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def forget_idle(self) -> None:
        """Idle connections are dropped: the server has restarted, and they are dead."""
        while self._idle:
            self._idle.pop().terminate()
            self._open -= 1

    async def close(self) -> None:
        """Every connection is closed; what is under way on one fails."""
        idle, self._idle = self._idle, []
        self._open -= len(idle)
        for connection in idle:
            await _close(connection)
        for connection in list(self._busy):
            connection.terminate()

    def each(self, act: Callable[[Any], None]) -> None:
        """Call with every open connection."""
        for connection in [*self._idle, *self._busy]:
            act(connection)


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=2)
    except DRIVER_ERRORS:
        connection.terminate()
