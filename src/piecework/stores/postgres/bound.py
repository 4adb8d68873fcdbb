"""Write inside a transaction of the caller's: asyncpg connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from piecework.ports import Hint
from piecework.stores.postgres.applying import apply, plan
from piecework.stores.postgres.hints import NOTIFY, channel, payload
from piecework.stores.postgres.inserting import insert
from piecework.stores.postgres.settings import DRIVER_ERRORS, translate
from piecework.stores.postgres.told import of_jobs, of_moves
from piecework.stores.postgres.tx import Tx, savepoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from piecework.core.job import NewJob
    from piecework.core.lifecycle import Transition
    from piecework.ports import Bound, Inserted, Refused
    from piecework.stores.postgres.settings import Settings

__all__ = ["bind"]

T = TypeVar("T")

MOST_CONFLICTS: Final = 5


class _Bound:
    """Everything happens on the caller's connection, in savepoints: an error undoes our part."""

    def __init__(
        self, connection: Any, settings: Settings, at: Callable[[], datetime | None]
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._at = at

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Bound.insert`."""
        if not jobs:
            return []
        answers = (await self._run(lambda tx: insert(tx, jobs))).answers
        await self._tell(of_jobs(jobs))
        return answers

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Bound.apply`."""
        if not transitions:
            return []
        applied = await self._run(lambda tx: apply(tx, transitions, plan(transitions)))
        await self._tell(of_moves(transitions, promoted=applied.promoted))
        return applied.refused

    async def _run(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        if not self._connection.is_in_transaction():
            raise ValueError(
                "the connection has no transaction open: use it inside "
                "`async with connection.transaction():`, or use app.enqueue"
            )
        tx = Tx(self._connection, self._settings.namespace, self._at())
        for left in reversed(range(MOST_CONFLICTS)):
            try:
                async with savepoint(tx):
                    return await work(tx)
            except asyncpg.UniqueViolationError as error:
                if not left:  # somebody was quicker with a key, again and again
                    raise translate(error, self._settings) from error
            except (*DRIVER_ERRORS, UnicodeError) as error:
                raise translate(error, self._settings) from error
        raise AssertionError("unreachable")

    async def _tell(self, hint: Hint) -> None:
        """Told at the caller's commit, and not at all if they roll back."""
        if hint.what and not self._settings.pooled:
            text = payload(hint.what)
            await self._connection.fetch(NOTIFY, channel(self._settings.namespace), text)


def bind(connection: object, settings: Settings, at: Callable[[], datetime | None]) -> Bound:
    """Return a Bound for the connection; TypeError for one we do not know."""
    if isinstance(connection, (asyncpg.Connection, PoolConnectionProxy)):
        return _Bound(connection, settings, at)
    what = type(connection)
    raise TypeError(
        "app.within() on PostgreSQL takes an asyncpg connection so far, "
        f"not {what.__module__}.{what.__qualname__}"
    )
