"""Jobs in a PostgreSQL database, shared by the workers of a fleet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

from piecework.core.errors import SchemaOutdated
from piecework.stores._hints import Hub
from piecework.stores.postgres import reading, upkeep
from piecework.stores.postgres.applying import Applied, apply, apply_alone, plan
from piecework.stores.postgres.bound import bind
from piecework.stores.postgres.checking import findings
from piecework.stores.postgres.claiming import claim, claim_controlled
from piecework.stores.postgres.hints import new_sender
from piecework.stores.postgres.inserting import copy, insert, insert_alone, is_plain, one_statement
from piecework.stores.postgres.keys import look_again
from piecework.stores.postgres.lanes import Lanes, Office
from piecework.stores.postgres.schema import migrate
from piecework.stores.postgres.settings import Settings
from piecework.stores.postgres.told import CONTROL, WORK, of_jobs, of_moves
from piecework.system import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from datetime import datetime

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
        Finding,
        Hint,
        Inserted,
        JobStatus,
        Node,
        QueueChange,
        QueueInfo,
        Refused,
        Staged,
    )
    from piecework.stores.postgres.tx import Tx

__all__ = ["PostgresStore"]

T = TypeVar("T")

COPY_FROM: Final = 200
"""How many jobs make COPY worth its extra round trips."""

CONTROLLED_SECONDS: Final = 5.0
"""How long a claim takes controls for granted after it has met some."""

FORGET_EVERY: Final = 100


class PostgresStore:
    """A Store and Reader on PostgreSQL 14 or newer, its tables in the schema `namespace`.

    The server's clock stamps, unless a `clock` is given. `listen=False` sends and hears no
    notifications and keeps no state in a session, as a pooler in transaction mode needs it.
    `pool` is how many connections work on each event loop; `patience_seconds` for how long a lost
    connection is tried again. Nothing is opened before the first use.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        namespace: str = "piecework",
        migrate: bool = True,
        listen: bool = True,
        pool: int = 3,
        patience_seconds: float = 5.0,
    ) -> None:
        self._settings = Settings(
            url=url,
            namespace=namespace,
            migrate=migrate,
            pooled=not listen,
            pool_size=pool,
            patience=patience_seconds,
        )
        self._stamps = clock
        self._clock = clock or SystemClock()
        self._hub = Hub()
        self._sender = new_sender()
        self._lanes = Lanes(self._make_office)
        self._ready_in: int | None = None
        self._controlled_until = 0.0
        self._stage_after = ""
        self._looks_for_lost = 0

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return f"PostgresStore({self._settings.shown!r})"

    # ── how work is done ─────────────────────────────────────────────────────────────────

    def _at(self) -> datetime | None:
        return None if self._stamps is None else self._stamps.now()

    def _make_office(self) -> Office:
        return Office(self._settings, self._hub, self._sender, self._at, self._insert_plain)

    async def _office(self) -> Office:
        office = self._lanes.here()
        if self._ready_in != os.getpid():
            await self._open(office)
        return office

    async def _open(self, office: Office) -> None:
        async with office.opening:
            if self._ready_in != os.getpid():
                await office.lane.run(lambda tx: migrate(tx, self._settings))
                self._ready_in = os.getpid()

    async def _do(
        self,
        work: Callable[[Tx], Awaitable[T]],
        *,
        transaction: bool = False,
        again: bool = True,
    ) -> T:
        office = await self._office()
        try:
            return await office.lane.run(work, transaction=transaction, again=again)
        except SchemaOutdated:
            self._ready_in = None  # the tables went away: look anew at the next use
            raise

    async def _look(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        office = await self._office()
        return await office.lane.run(work, pool=office.lane.looks, transaction=False)

    def _tell(self, hint: Hint) -> None:
        self._lanes.here().voice.tell(hint)

    # ── Store ────────────────────────────────────────────────────────────────────────────

    @property
    def clock(self) -> Clock:
        """The clock of this process, or the one that stamps, where one was given."""
        return self._clock

    @property
    def shared(self) -> bool:
        """Other processes reach the same jobs."""
        return True

    async def open(self) -> None:
        """As `Store.open`."""
        self._ready_in = None
        await self._open(self._lanes.here())

    async def close(self) -> None:
        """As `Store.close`."""
        self._ready_in = None
        await self._lanes.close()

    async def check(self) -> list[Finding]:
        """As `Store.check`: versions, schema, clock, latency and the settings that matter."""
        await self.open()
        return await self._look(lambda tx: findings(tx, self._settings, self._clock))

    async def insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        """As `Store.insert`."""
        if not jobs:
            return []
        office = await self._office()
        if len(jobs) < COPY_FROM and all(map(is_plain, jobs)):
            answers = await office.batcher.insert(jobs)
        else:
            answers = await self._insert(jobs)
        office.voice.tell(of_jobs(jobs))
        return answers

    async def _insert_plain(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        found = await self._do(lambda tx: insert_alone(tx, jobs))
        return await self._insert_looking(jobs) if found is None else found.answers

    async def _insert(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        if len(jobs) >= COPY_FROM and all(map(is_plain, jobs)):
            copied = await self._do(lambda tx: copy(tx, jobs, self._settings.namespace))
            if copied is not None:
                return copied
        if one_statement(jobs):
            found = await self._do(lambda tx: insert_alone(tx, jobs))
            if found is not None:
                if found.blocked:
                    await self._look_again(found.blocked)
                return found.answers
        return await self._insert_looking(jobs)

    async def _insert_looking(self, jobs: Sequence[NewJob]) -> list[Inserted]:
        found = await self._do(lambda tx: insert(tx, jobs), transaction=True)
        if found.blocked:
            await self._look_again(found.blocked)
        return found.answers

    async def _look_again(self, keys: Sequence[str]) -> None:
        # Whoever was ending the holder just then cannot have seen the jobs that wait for it.
        if await self._do(lambda tx: look_again(tx, set(keys))):
            self._tell(WORK)

    async def claim(self, ask: Ask) -> list[Claimed]:
        """As `Store.claim`.

        Not repeated when the connection is lost: what a lost answer gave, the beat tells.
        """
        if ask.free + ask.ahead <= 0:
            return []
        loop_time = self._lanes.here().lane.loop.time
        if loop_time() >= self._controlled_until:
            claimed = await self._do(lambda tx: claim(tx, ask), again=False)
            if claimed is not None:
                return claimed
            if not ask.rooms:
                self._controlled_until = loop_time() + CONTROLLED_SECONDS
        return await self._do(lambda tx: claim_controlled(tx, ask), again=False)

    async def apply(self, transitions: Sequence[Transition]) -> list[Refused]:
        """As `Store.apply`."""
        if not transitions:
            return []
        planned = plan(transitions)
        if planned.alone:
            shape = planned.shapes[0][0]
            applied: Applied = await self._do(lambda tx: apply_alone(tx, transitions, shape))
        else:
            applied = await self._do(lambda tx: apply(tx, transitions, planned), transaction=True)
        self._tell(of_moves(transitions, promoted=applied.promoted))
        return applied.refused

    async def stage(self, *, limit: int) -> Staged:
        """As `Store.stage`."""
        after = self._stage_after
        staged, self._stage_after = await self._do(lambda tx: upkeep.stage(tx, limit, after))
        if staged.due or staged.promoted:
            self._tell(WORK)
        return staged

    async def beat(self, beat: Beat) -> Beaten:
        """As `Store.beat`."""
        office = await self._office()
        return await office.lane.run(
            lambda tx: upkeep.beat(tx, beat), pool=office.lane.beats, transaction=False
        )

    async def retire(self, worker: WorkerId) -> None:
        """As `Store.retire`."""
        await self._do(lambda tx: upkeep.retire(tx, worker))

    async def orphans(self, *, limit: int) -> list[Job]:
        """As `Store.orphans`."""
        self._looks_for_lost += 1
        if self._looks_for_lost % FORGET_EVERY == 1:
            await self._do(upkeep.forget)
        return await self._do(lambda tx: upkeep.orphans(tx, limit))

    async def prune(self, what: Retention | Sequence[JobId], *, limit: int) -> list[JobId]:
        """As `Store.prune`."""
        return await self._do(lambda tx: upkeep.prune(tx, what, limit), transaction=True)

    async def configure(self, changes: Sequence[QueueChange]) -> None:
        """As `Store.configure`."""
        await self._do(lambda tx: upkeep.configure(tx, changes), transaction=True)
        self._tell(CONTROL)

    async def hints(self) -> AsyncIterator[Hint]:
        """As `Store.hints`: at once from this process, from others as soon as they notify."""
        ears = self._lanes.here().ears
        ears.hold()
        try:
            async for hint in self._hub.listen():
                yield hint
        finally:
            await ears.release()

    async def bind(self, connection: Any) -> Bound:
        """As `Store.bind`, for asyncpg connections with an open transaction."""
        bound = bind(connection, self._settings, self._at)
        await self._office()
        return bound

    # ── Reader ───────────────────────────────────────────────────────────────────────────

    async def get(self, ids: Sequence[JobId]) -> list[Job]:
        """As `Reader.get`."""
        return await self._look(lambda tx: reading.get(tx, ids)) if ids else []

    async def find(self, what: Filter, *, after: JobId | None, limit: int) -> list[Job]:
        """As `Reader.find`."""
        return await self._look(lambda tx: reading.find(tx, what, after, limit))

    async def count(self) -> dict[tuple[str, State], int]:
        """As `Reader.count`."""
        return await self._look(reading.count)

    async def statuses(self, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
        """As `Reader.statuses`."""
        return await self._look(lambda tx: reading.statuses(tx, ids)) if ids else {}

    async def attempts(self, job_id: JobId) -> list[Attempt]:
        """As `Reader.attempts`."""
        return await self._look(lambda tx: reading.attempts(tx, job_id))

    async def logs(self, job_id: JobId) -> list[tuple[int, LogLine]]:
        """As `Reader.logs`."""
        return await self._look(lambda tx: reading.logs(tx, job_id))

    async def queues(self) -> list[QueueInfo]:
        """As `Reader.queues`."""
        return await self._look(reading.queues)

    async def nodes(self) -> list[Node]:
        """As `Reader.nodes`."""
        return await self._look(reading.nodes)
