"""Insert jobs inside one write transaction: all stand, or none."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import NOW, State
from piecework.ports import Inserted
from piecework.stores.sqlite.applying import apply
from piecework.stores.sqlite.keys import add_metadata, holder_of
from piecework.stores.sqlite.rows import from_micros, micros, moment, sql_value
from piecework.stores.sqlite.tx import CHUNKS, chunks, savepoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Job, NewJob
    from piecework.stores.sqlite.tx import Tx

__all__ = ["insert"]

_LEAN_COLUMNS: Final = """id, kind, queue, state, priority, max_attempts, max_crashes,
    enqueued_at, due_at, args"""
_FULL_COLUMNS: Final = (
    _LEAN_COLUMNS
    + """, name, timeout, node, unique_key, unique_scope, unique_until,
    unique_held, serial_key, serial_held, parent, schedule, tick, count, expires_at, result_ttl,
    metadata"""
)


@lru_cache(maxsize=2 * len(CHUNKS))
def _insert_sql(columns: str, size: int) -> str:
    row = f"({','.join('?' * (columns.count(',') + 1))})"
    return (
        f"INSERT INTO piecework_job ({columns}) VALUES {','.join([row] * size)} "
        "ON CONFLICT (id) DO NOTHING"
    )


GET_ARGS: Final = "SELECT args FROM piecework_job WHERE id = ?"
KEY_IS_HELD: Final = "SELECT 1 FROM piecework_job WHERE serial_held = ?"


def insert(tx: Tx, jobs: Sequence[NewJob], now: int) -> list[Inserted]:
    """As `Store.insert`: all jobs stand or none."""
    if not any(job.unique_key or job.serial_key or job.metadata for job in jobs):
        answers = _insert_plain(tx, jobs, now)
        if answers is not None:
            return answers
    with savepoint(tx):
        return [_insert_one(tx, job, now) for job in jobs]


def _insert_plain(tx: Tx, jobs: Sequence[NewJob], now: int) -> list[Inserted] | None:
    """Insert jobs that need no look at others; None, and nothing done, where one is known."""
    values = [_lean_values(job, now) for job in jobs]
    columns = _LEAN_COLUMNS
    # Most jobs have none of the other columns, and binding a NULL costs more than an integer.
    if any(map(_has_more, jobs)):
        columns = _FULL_COLUMNS
        try:
            for job, row in zip(jobs, values, strict=True):
                row.extend(_other_values(job, now, row[8]))
        except ValueError:
            return None  # a known job may well be late by now: look at each
    with savepoint(tx) if len(jobs) > 1 else nullcontext():
        start = created = 0
        for size in chunks(len(values)):
            batch = values[start : start + size]
            params = batch[0] if size == 1 else [value for row in batch for value in row]
            created += tx.execute(_insert_sql(columns, size), params).rowcount
            start += size
        if created == len(jobs):
            return [Inserted(job.id, created=True) for job in jobs]
        if len(jobs) > 1:
            tx.execute("ROLLBACK TO piecework_part")
    return None


def _has_more(job: NewJob) -> bool:
    # Fields of different types that are all None, compared as cheaply as can be.
    return (
        job.name is not None
        or job.timeout is not None
        or job.node is not None
        or job.parent is not None
        or job.schedule is not None
        or job.expires is not None
        or job.kind_expires is not None
        or job.result_ttl is not None
    )


def _lean_values(job: NewJob, now: int, state: State | None = None) -> list[Any]:
    due = now if job.due is NOW else moment(job.due, now)
    assert due is not None
    if state is None:
        state = State.AVAILABLE if due <= now else State.SCHEDULED
    return [
        bytearray(job.id.bytes),  # sqlite3 binds it without looking for an adapter, unlike bytes
        job.kind,
        job.queue,
        state.value,
        job.priority,
        job.max_attempts,
        job.max_crashes,
        now,
        due,
        job.args,
    ]


def _other_values(job: NewJob, now: int, due: int, held: str | None = None) -> list[Any]:
    expires = None
    if job.expires is not None or job.kind_expires is not None:
        expires = _expiry(job, now)
        if expires is not None and expires <= max(due, now):
            raise ValueError("the expiry must be later than the start: give a later expires_at")
    return [
        job.name,
        job.timeout,
        job.node,
        job.unique_key,
        None if job.unique_key is None else job.unique_scope,
        moment(job.unique_window, now) if job.unique_scope == "until" else None,
        job.unique_key,
        job.serial_key,
        held,
        None if job.parent is None else job.parent.bytes,
        job.schedule,
        None if job.tick is None else micros(job.tick),
        job.count,
        expires,
        None if job.result_ttl is None else sql_value(job.result_ttl, 0),
        sql_value(job.metadata, now) if job.metadata else None,
    ]


def _expiry(job: NewJob, now: int) -> int | None:
    instant = from_micros(now)
    assert instant is not None
    expires = lifecycle.expiry(job, instant)
    return None if expires is None else micros(expires)


def _insert_one(tx: Tx, job: NewJob, now: int) -> Inserted:
    if known := tx.execute(GET_ARGS, (job.id.bytes,)).fetchone():
        return Inserted(job.id, created=False, args_differ=known[0] != job.args)
    if job.unique_key is not None and (holder := holder_of(tx, job.kind, job.unique_key, now)):
        return _duplicate(tx, job, holder, now)
    due = moment(job.due, now)
    assert due is not None
    state, held = None, None
    if job.serial_key is not None and due <= now:
        if tx.execute(KEY_IS_HELD, (job.serial_key,)).fetchone():
            state = State.BLOCKED
        else:
            held = job.serial_key
    row = _lean_values(job, now, state) + _other_values(job, now, due, held)
    tx.execute(_insert_sql(_FULL_COLUMNS, 1), row)
    add_metadata(tx, job.id.bytes, job.metadata)
    return Inserted(job.id, created=True)


def _duplicate(tx: Tx, job: NewJob, holder: Job, now: int) -> Inserted:
    differ = holder.args != job.args
    if holder.id == job.id or job.on_duplicate == "existing":
        return Inserted(holder.id, created=False, args_differ=differ)
    if job.on_duplicate == "raise":
        assert job.unique_key is not None
        raise DuplicateJob(job.kind, job.unique_key, holder.id)
    instant = from_micros(now)
    assert instant is not None
    move = lifecycle.replace(holder, job, now=instant)
    if move is not None and not apply(tx, [move], now):
        differ = False
    return Inserted(holder.id, created=False, args_differ=differ)
