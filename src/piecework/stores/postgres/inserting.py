"""Insert jobs: all stand, or none; conflicts are asked for, never caught."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob, StoreUnavailable
from piecework.core.job import NOW as AT_ONCE
from piecework.ports import Inserted
from piecework.stores.postgres.applying import apply, plan
from piecework.stores.postgres.keys import holder_of
from piecework.stores.postgres.rows import metadata_text, micros
from piecework.stores.postgres.tx import NOW, savepoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from piecework.core.job import Job, JobId, Moment, NewJob
    from piecework.stores.postgres.tx import Tx

__all__ = ["Answers", "copy", "insert", "insert_alone", "is_plain", "one_statement"]

MOST_LOOKS: Final = 20

_LEAN: Final = (
    ("id", "uuid"),
    ("kind", "text"),
    ("queue", "text"),
    ("priority", "bigint"),
    ("max_attempts", "bigint"),
    ("max_crashes", "bigint"),
    ("args", "text"),
)
_DUE: Final = (("due_at", "timestamptz"), ("due_in", "bigint"))
_FULL: Final = (
    *_DUE,
    ("expires_at", "timestamptz"),
    ("expires_in", "bigint"),
    ("kind_expires_in", "bigint"),
    ("name", "text"),
    ("timeout", "double precision"),
    ("node", "text"),
    ("parent", "uuid"),
    ("schedule", "text"),
    ("tick", "timestamptz"),
    ("count", "bigint"),
    ("result_ttl", "bigint"),
    ("unique_key", "text"),
    ("unique_scope", "text"),
    ("unique_in", "bigint"),
    ("serial_key", "text"),
    ("metadata", "text"),
)
GET_ARGS: Final = "SELECT id, args FROM piecework.piecework_job WHERE id = ANY ($1)"
INSERT_LEAN_ONE: Final = f"""
WITH {NOW}
INSERT INTO piecework.piecework_job
    (id, kind, queue, priority, max_attempts, max_crashes, args, enqueued_at, due_at)
SELECT $2, $3, $4, $5, $6, $7, $8, t.now, t.now FROM t
ON CONFLICT (id) DO NOTHING RETURNING true"""


class Answers(NamedTuple):
    """What became of the jobs, and the keys in whose line some of them wait."""

    answers: list[Inserted]
    blocked: list[str]


class _Made(NamedTuple):
    """Which of the jobs were inserted (None: all), and the keys of those that are blocked."""

    ids: set[JobId] | None
    blocked: list[str]


def is_plain(job: NewJob) -> bool:
    """Whether the job needs no look at others, and no column but the ten that all have."""
    return (
        job.due is AT_ONCE
        and job.unique_key is None
        and job.serial_key is None
        and not job.metadata
        and job.name is None
        and job.timeout is None
        and job.node is None
        and job.parent is None
        and job.schedule is None
        and job.expires is None
        and job.kind_expires is None
        and job.result_ttl is None
        and job.tick is None
        and job.count is None
    )


def one_statement(jobs: Sequence[NewJob]) -> bool:
    """Whether nothing of the call can have to be undone after its first statement."""
    return len(jobs) == 1 or not any(job.unique_key or job.serial_key for job in jobs)


async def insert_alone(tx: Tx, jobs: Sequence[NewJob]) -> Answers | None:
    """Insert in one statement, outside a transaction; None, and nothing done, if that won't do."""
    made = await _insert_all(tx, jobs)
    if made.ids is None:
        return Answers([Inserted(job.id, created=True) for job in jobs], made.blocked)
    if any(job.unique_key or job.serial_key for job in jobs):
        return None
    answers = await _known(tx, jobs, made.ids)
    return None if answers is None else Answers(answers, made.blocked)


async def copy(tx: Tx, jobs: Sequence[NewJob], namespace: str) -> list[Inserted] | None:
    """Insert many plain jobs as fast as it goes; None, and nothing done, if an id is known."""
    columns = [name for name, _ in _LEAN]
    records: list[Any] = [_lean_values(job) for job in jobs]
    if tx.at is not None:
        columns += ["enqueued_at", "due_at"]
        records = [[*record, tx.at, tx.at] for record in records]
    try:
        await tx.copy(namespace, "piecework_job", columns, records)
    except asyncpg.UniqueViolationError:
        return None
    return [Inserted(job.id, created=True) for job in jobs]


async def insert(tx: Tx, jobs: Sequence[NewJob]) -> Answers:
    """As `Store.insert`, inside an open transaction or savepoint, which an error must undo."""
    try:
        async with savepoint(tx):
            made = await _insert_all(tx, jobs)
            # Who holds a serial key depends on those before it: then each is looked at in turn.
            if made.ids is not None and any(job.serial_key for job in jobs):
                raise _LookAtEach
    except _LookAtEach:
        made = _Made(set(), [])
    if made.ids is None:
        return Answers([Inserted(job.id, created=True) for job in jobs], made.blocked)
    answers: list[Inserted] = []
    for job in jobs:
        if job.id in made.ids:
            made.ids.discard(job.id)  # a second one of this id is the first one again
            answers.append(Inserted(job.id, created=True))
        else:
            answers.append(await _insert_one(tx, job, made.blocked))
    return Answers(answers, made.blocked)


class _LookAtEach(Exception):
    """One of the jobs is a duplicate, or lost a race for a key."""


async def _known(tx: Tx, jobs: Sequence[NewJob], created: set[JobId]) -> list[Inserted] | None:
    """The answers where only known ids can have been in the way."""
    missing = [job.id for job in jobs if job.id not in created]
    args = dict(await tx.fetch(GET_ARGS, missing)) if missing else {}
    fresh = set(created)
    answers: list[Inserted] = []
    for job in jobs:
        if job.id in fresh:
            fresh.discard(job.id)  # a second one of this id is the first one again
            answers.append(Inserted(job.id, created=True))
            args.setdefault(job.id, job.args)
        elif job.id in args:
            answers.append(Inserted(job.id, created=False, args_differ=args[job.id] != job.args))
        else:
            return None  # pruned just now
    return answers


# ── one by one: duplicates ───────────────────────────────────────────────────────────────────


async def _insert_one(tx: Tx, job: NewJob, blocked: list[str]) -> Inserted:
    for _ in range(MOST_LOOKS):
        if known := await tx.fetch(GET_ARGS, [job.id]):
            return Inserted(job.id, created=False, args_differ=known[0][1] != job.args)
        if job.unique_key is not None:
            holder, now = await holder_of(tx, job.kind, job.unique_key)
            if holder is not None:
                return await _duplicate(tx, job, holder, now)
        made = await _insert_all(tx, [job])
        if made.ids is None:
            blocked += made.blocked
            return Inserted(job.id, created=True)
        # Another transaction was first with a key: its commit can be seen by now.
    raise StoreUnavailable(f"job {job.id} lost the race for its keys {MOST_LOOKS} times: try again")


async def _duplicate(tx: Tx, job: NewJob, holder: Job, now: datetime) -> Inserted:
    differ = holder.args != job.args
    if job.on_duplicate == "existing":
        return Inserted(holder.id, created=False, args_differ=differ)
    if job.on_duplicate == "raise":
        assert job.unique_key is not None
        raise DuplicateJob(job.kind, job.unique_key, holder.id)
    move = lifecycle.replace(holder, job, now=now)
    if move is not None and not (await apply(tx, [move], plan([move]))).refused:
        differ = False
    return Inserted(holder.id, created=False, args_differ=differ)


# ── all at once ──────────────────────────────────────────────────────────────────────────────


async def _insert_all(tx: Tx, jobs: Sequence[NewJob]) -> _Made:
    """Insert all that nothing stands in the way of. ValueError, and nothing done, for an expiry."""
    plain = all(map(is_plain, jobs))
    if plain and len(jobs) == 1:
        job = jobs[0]
        made = await tx.stamped(
            INSERT_LEAN_ONE,
            job.id,
            job.kind,
            job.queue,
            job.priority,
            job.max_attempts,
            job.max_crashes,
            job.args,
        )
        return _Made(None if made else set(), [])
    values = [_lean_values(job) for job in jobs]
    if not plain:
        for job, row in zip(jobs, values, strict=True):
            row.extend(_other_values(job))
    params = [list(column) for column in zip(*values, strict=True)]
    metadata = [(job.id, *pair) for job in jobs for pair in (job.metadata or {}).items()]
    if metadata:
        params += [list(column) for column in zip(*metadata, strict=True)]
    sql = _insert_sql(plain=plain, metadata=bool(metadata))
    count, ids, fits, blocked = (await tx.stamped(sql, *params))[0]
    if not fits:
        raise ValueError("the expiry must be later than the start: give a later expires_at")
    return _Made(None if count == len(jobs) else set(ids or ()), blocked or [])


@lru_cache(maxsize=4)
def _insert_sql(*, plain: bool, metadata: bool) -> str:
    columns = _LEAN if plain else (*_LEAN, *_FULL)
    arrays = ", ".join(f"${place}::{kind}[]" for place, (_, kind) in enumerate(columns, start=2))
    names = ", ".join(name for name, _ in columns)
    source = f"unnest({arrays}) WITH ORDINALITY AS u ({names}, place)"
    lean = ", ".join(name for name, _ in _LEAN)
    if plain:
        return f"""
WITH {NOW}, made AS (
    INSERT INTO piecework.piecework_job ({lean}, enqueued_at, due_at)
    SELECT {lean}, t.now, t.now FROM t, {source}
    ON CONFLICT (id) DO NOTHING RETURNING id
)
SELECT count(*), CASE WHEN count(*) < cardinality($2::uuid[]) THEN array_agg(id) END, true,
    NULL::text[]
FROM made"""
    next_place = len(columns) + 2
    pairs = f"""
, pairs AS (
    INSERT INTO piecework.piecework_metadata (job_id, key, value)
    SELECT m.job_id, m.key, m.value
    FROM unnest(${next_place}::uuid[], ${next_place + 1}::text[], ${next_place + 2}::text[])
        AS m (job_id, key, value)
    WHERE EXISTS (SELECT FROM made WHERE made.id = m.job_id)
)"""
    return _FULL_SQL.format(lean=lean, source=source, now=NOW, pairs=pairs if metadata else "")


_FULL_SQL: Final = """
WITH {now}, given AS MATERIALIZED (
    SELECT u.*, t.now, coalesce(u.due_at, t.now + u.due_in * interval '1 microsecond') AS due
    FROM t, {source}
), new AS MATERIALIZED (
    SELECT g.*, CASE
        WHEN g.expires_at IS NOT NULL THEN g.expires_at
        WHEN g.expires_in IS NOT NULL THEN g.now + g.expires_in * interval '1 microsecond'
        ELSE greatest(g.due, g.now) + g.kind_expires_in * interval '1 microsecond'
        END AS expiry,
        g.serial_key IS NOT NULL AND g.due <= g.now AND row_number() OVER (
            PARTITION BY g.serial_key, g.due <= g.now ORDER BY g.place) = 1
        AND NOT EXISTS (
            SELECT FROM piecework.piecework_job h WHERE h.serial_held = g.serial_key) AS turn
    FROM given g
), fits AS MATERIALIZED (
    SELECT NOT EXISTS (
        SELECT FROM new WHERE new.expiry <= greatest(new.due, new.now)
        AND NOT EXISTS (SELECT FROM piecework.piecework_job k WHERE k.id = new.id)) AS all_of_them
), made AS (
    INSERT INTO piecework.piecework_job ({lean}, state, enqueued_at, due_at, expires_at, name,
        timeout, node, parent, schedule, tick, count, result_ttl, unique_key, unique_scope,
        unique_until, unique_held, serial_key, serial_held, metadata)
    SELECT {lean},
        CASE WHEN due > now THEN 'scheduled'
            WHEN serial_key IS NULL OR turn THEN 'available' ELSE 'blocked' END,
        now, due, expiry, name, timeout, node, parent, schedule, tick, count, result_ttl,
        unique_key, unique_scope, now + unique_in * interval '1 microsecond', unique_key,
        serial_key, CASE WHEN turn THEN serial_key END, metadata
    FROM new WHERE (SELECT all_of_them FROM fits) ORDER BY place
    ON CONFLICT DO NOTHING RETURNING id, state, serial_key
){pairs}
SELECT count(*), CASE WHEN count(*) < cardinality($2::uuid[]) THEN array_agg(id) END,
    (SELECT all_of_them FROM fits),
    array_agg(DISTINCT serial_key) FILTER (WHERE state = 'blocked')
FROM made"""


def _lean_values(job: NewJob) -> list[Any]:
    return [
        job.id,
        job.kind,
        job.queue,
        job.priority,
        job.max_attempts,
        job.max_crashes,
        job.args,
    ]


def _other_values(job: NewJob) -> list[Any]:
    unique = job.unique_key is not None
    return [
        *_moment(job.due),
        *_moment(job.expires),
        _micros(job.kind_expires),
        job.name,
        job.timeout,
        job.node,
        job.parent,
        job.schedule,
        job.tick,
        job.count,
        _micros(job.result_ttl),
        job.unique_key,
        job.unique_scope if unique else None,
        _micros(job.unique_window) if unique and job.unique_scope == "until" else None,
        job.serial_key,
        metadata_text(job.metadata),
    ]


def _moment(value: Moment | None) -> tuple[datetime | None, int | None]:
    """Return the moment as an instant, or as microseconds from the store's now."""
    if value is None:
        return None, None
    if isinstance(value, datetime):
        return value, None
    return None, micros(value)


def _micros(value: timedelta | None) -> int | None:
    return None if value is None else micros(value)
