"""What happens inside a write transaction: insert, apply, claim, stage and the rest.

Each function takes a Tx (our writer's, or the caller's own connection) and the store's now in
microseconds. SQLite has one writer at a time, so what is read here cannot change before the
commit; a statement that touches many rows is one step, because each step gives the interpreter
lock away and may wait milliseconds to get it back.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import FINAL, NOW, WAITING, JobId, State
from piecework.ports import Inserted, Refused
from piecework.stores.sqlite import rows
from piecework.stores.sqlite.rows import JOB_COLUMNS, from_micros, micros, moment, sql_value

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from piecework.core.job import Job, NewJob
    from piecework.core.lifecycle import Transition

__all__ = ["Tx", "apply", "insert", "promote"]

CHUNKS: Final = (512, 128, 32, 8, 1)


class Cursor(Protocol):
    """What a statement gives back."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchall(self) -> Sequence[Any]:
        """Return the rows."""
        ...

    def fetchone(self) -> Any:
        """Return the next row or None."""
        ...


class Tx(Protocol):
    """An open transaction."""

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Cursor:
        """Run one statement."""
        ...


@contextmanager
def savepoint(tx: Tx) -> Generator[None, None, None]:
    """What happens inside is undone as one if it raises."""
    tx.execute("SAVEPOINT piecework_part")
    try:
        yield
    except BaseException as error:
        try:
            tx.execute("ROLLBACK TO piecework_part")
            tx.execute("RELEASE piecework_part")
        except Exception:  # noqa: BLE001 - a full disk has rolled everything back already
            raise error from None
        raise
    tx.execute("RELEASE piecework_part")


def chunks(count: int) -> Iterator[int]:
    """Split a count into few distinct sizes, so that their statements stay prepared."""
    for size in CHUNKS:
        while count >= size:
            yield size
            count -= size


# ── insert ───────────────────────────────────────────────────────────────────────────────────

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


FIND_HOLDER: Final = f"""
    SELECT unique_scope = 'until' AND unique_until <= ?, {JOB_COLUMNS}
    FROM piecework_job WHERE kind = ? AND unique_held = ?"""
FREE_UNIQUE: Final = "UPDATE piecework_job SET unique_held = NULL WHERE id = ?"
GET_ARGS: Final = "SELECT args FROM piecework_job WHERE id = ?"
KEY_IS_HELD: Final = "SELECT 1 FROM piecework_job WHERE serial_held = ?"
ADD_METADATA: Final = "INSERT OR IGNORE INTO piecework_metadata (key, value, job_id) VALUES (?,?,?)"
DROP_METADATA: Final = "DELETE FROM piecework_metadata WHERE job_id = ?"


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
        if expires is not None and expires <= due:
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
    if job.unique_key is not None and (holder := _holder(tx, job.kind, job.unique_key, now)):
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
    _add_metadata(tx, job.id.bytes, job.metadata)
    return Inserted(job.id, created=True)


def _add_metadata(tx: Tx, job_id: bytes, metadata: Mapping[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        tx.execute(ADD_METADATA, (key, value, job_id))


def _holder(tx: Tx, kind: str, key: str, now: int) -> Job | None:
    row = tx.execute(FIND_HOLDER, (now, kind, key)).fetchone()
    if row is None:
        return None
    lapsed, *columns = row
    holder = rows.job(columns)
    if lapsed:
        tx.execute(FREE_UNIQUE, (holder.id.bytes,))
        return None
    return holder


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


# ── apply ────────────────────────────────────────────────────────────────────────────────────

GET_JOB: Final = f"SELECT {JOB_COLUMNS} FROM piecework_job WHERE id = ?"
HELD_KEYS: Final = """
    SELECT DISTINCT serial_held FROM piecework_job
    WHERE serial_held IS NOT NULL AND id IN ({ids})"""
ANY_KEY: Final = "SELECT 1 FROM piecework_job WHERE serial_held IS NOT NULL LIMIT 1"
PROMOTE: Final = """
    UPDATE piecework_job SET state = 'available', serial_held = serial_key
    WHERE id = (
        SELECT id FROM piecework_job WHERE state = 'blocked' AND serial_key = ?1
        ORDER BY priority DESC, due_at, id LIMIT 1)
    AND NOT EXISTS (SELECT 1 FROM piecework_job WHERE serial_held = ?1)"""
ADD_ATTEMPT: Final = """
    INSERT OR REPLACE INTO piecework_attempt (job_id, fence, number, generation, started_at,
        ended_at, outcome, error, traceback, worker, node) VALUES (?,?,?,?,?,?,?,?,?,?,?)"""
ADD_LOG: Final = """
    INSERT INTO piecework_log (job_id, fence, at, level, logger, message) VALUES (?,?,?,?,?,?)"""
KEEP_ATTEMPTS: Final = 100
TRIM_ATTEMPTS: Final = f"""
    DELETE FROM piecework_attempt WHERE job_id = ?1 AND fence <= (
        SELECT fence FROM piecework_attempt WHERE job_id = ?1
        ORDER BY fence DESC LIMIT 1 OFFSET {KEEP_ATTEMPTS})"""

# What a move to a state does to the keys, beside the columns it names.
_FREE_KEYS: Final = (
    "serial_held = NULL, "
    "unique_held = CASE WHEN j.unique_scope = 'live' THEN NULL ELSE j.unique_held END"
)
_TURN_IS_FREE: Final = (
    "(j.serial_key IS NULL OR j.serial_held IS NOT NULL OR NOT EXISTS "
    "(SELECT 1 FROM piecework_job h WHERE h.serial_held = j.serial_key))"
)
_TAKE_TURN: Final = (
    f"state = CASE WHEN {_TURN_IS_FREE} THEN 'available' ELSE 'blocked' END, "
    f"serial_held = CASE WHEN {_TURN_IS_FREE} THEN j.serial_key END"
)


def apply(tx: Tx, transitions: Sequence[Transition], now: int) -> list[Refused]:
    """As `Store.apply`: each transition whole, or among the refused."""
    keys = _held_keys(tx, transitions)
    refused: list[Refused] = []
    done: list[Transition] = []
    for (states, unless_cancelled, target, columns, _), group in _by_shape(
        transitions, now
    ).items():
        sql_parts = _update_parts(states, target, columns, unless_cancelled=unless_cancelled)
        if len(group) > 1 and _set_based(tx, sql_parts, group, now):
            done += group
            continue
        for transition in group:
            answer = _apply_one(tx, sql_parts, transition, now)
            if answer is None:
                done.append(transition)
            else:
                refused.append(answer)
    for transition in done:
        if transition.ended is not None or transition.logs or "metadata" in transition.changes:
            _record(tx, transition, now)
    promote(tx, keys)
    return refused


def _by_shape(transitions: Sequence[Transition], now: int) -> dict[Any, list[Transition]]:
    """Group what one statement can do; several moves of one job stay apart, in their order."""
    seen: set[JobId] = set()
    shapes: dict[Any, list[Transition]] = defaultdict(list)
    for index, transition in enumerate(transitions):
        changes = transition.changes
        state = changes["state"]
        # Two jobs of one key must not both find it free in one statement.
        alone = (
            transition.id in seen
            or transition.take_unique
            or (state is State.AVAILABLE and State.RUNNING not in transition.states)
        )
        seen.add(transition.id)
        due = changes.get("due_at")
        if alone and isinstance(due, datetime) and micros(due) > now:
            state = State.SCHEDULED  # by the store's clock it is not due yet
        place = index if alone else -1
        columns = tuple((name, v is None) for name, v in changes.items() if name != "state")
        shape = (transition.states, transition.unless_cancelled, state, columns, place)
        shapes[shape].append(transition)
    return shapes


@lru_cache(maxsize=256)
def _update_parts(
    states: frozenset[State],
    target: State,
    columns: tuple[tuple[str, bool], ...],
    *,
    unless_cancelled: bool,
) -> tuple[str, str, int]:
    """Return the SET list, the guard, and how many columns the input has.

    A NULL is written into the statement: binding one costs more than an integer.
    """
    sets = [f"{name} = NULL" for name, is_null in columns if is_null]
    names = [name for name, is_null in columns if not is_null]
    sets += [f"{name} = v.column{position}" for position, name in enumerate(names, start=3)]
    if target is State.AVAILABLE:
        sets.append(_TAKE_TURN)
    else:
        sets.append(f"state = '{target.value}'")
        if target in FINAL:
            sets.append(_FREE_KEYS)
        elif target is State.SCHEDULED and states <= WAITING:
            sets.append("serial_held = NULL")  # a future job holds nothing
    allowed = ",".join(f"'{state.value}'" for state in sorted(states))
    guard = f"j.id = v.column1 AND j.fence = v.column2 AND j.state IN ({allowed})"
    if unless_cancelled:
        guard += " AND j.cancel_requested IS NULL"
    return ", ".join(sets), guard, len(names) + 2


@lru_cache(maxsize=256)
def _update_sql(parts: tuple[str, str, int], size: int) -> str:
    sets, guard, width = parts
    row = f"({','.join('?' * width)})"
    return (
        f"UPDATE piecework_job AS j SET {sets} "
        f"FROM (VALUES {','.join([row] * size)}) AS v WHERE {guard}"
    )


def _values(transition: Transition, now: int) -> list[Any]:
    values: list[Any] = [bytearray(transition.id.bytes), transition.fence]
    for name, value in transition.changes.items():
        if value is not None and name != "state":
            values.append(sql_value(value, now))
    return values


def _set_based(tx: Tx, parts: tuple[str, str, int], group: Sequence[Transition], now: int) -> bool:
    """Apply the whole group, or nothing of it: then at least one must be refused."""
    tx.execute("SAVEPOINT piecework_group")
    start = changed = 0
    for size in chunks(len(group)):
        params: list[Any] = []
        for transition in group[start : start + size]:
            params += _values(transition, now)
        changed += tx.execute(_update_sql(parts, size), params).rowcount
        start += size
    if changed != len(group):
        tx.execute("ROLLBACK TO piecework_group")
    tx.execute("RELEASE piecework_group")
    return changed == len(group)


def _apply_one(
    tx: Tx, parts: tuple[str, str, int], transition: Transition, now: int
) -> Refused | None:
    if transition.take_unique:
        return _apply_taking_unique(tx, parts, transition, now)
    if tx.execute(_update_sql(parts, 1), _values(transition, now)).rowcount:
        return None
    return Refused(transition, _get(tx, transition.id))


def _apply_taking_unique(
    tx: Tx, parts: tuple[str, str, int], transition: Transition, now: int
) -> Refused | None:
    job = _get(tx, transition.id)
    if job is None or job.unique_key is None:
        return Refused(transition, job)
    holder = _holder(tx, job.kind, job.unique_key, now)
    if holder is not None and holder.id != job.id:
        return Refused(transition, job, holder.id)
    if not tx.execute(_update_sql(parts, 1), _values(transition, now)).rowcount:
        return Refused(transition, job)
    until = job.unique_until
    if until is None or micros(until) > now:
        tx.execute(
            "UPDATE piecework_job SET unique_held = unique_key WHERE id = ?", (job.id.bytes,)
        )
    return None


def _get(tx: Tx, job_id: JobId) -> Job | None:
    row = tx.execute(GET_JOB, (job_id.bytes,)).fetchone()
    return None if row is None else rows.job(row)


def _record(tx: Tx, transition: Transition, now: int) -> None:
    job_id = transition.id.bytes
    if (ended := transition.ended) is not None:
        worker = None if ended.worker is None else ended.worker.bytes
        end = now if ended.ended_at is None else micros(ended.ended_at)
        what = (ended.outcome, ended.error, ended.traceback, worker, ended.node)
        tx.execute(
            ADD_ATTEMPT,
            (
                job_id,
                ended.fence,
                ended.number,
                ended.generation,
                micros(ended.started_at),
                end,
                *what,
            ),
        )
        tx.execute(TRIM_ATTEMPTS, (job_id,))
    for line in transition.logs:
        place = (job_id, transition.fence, micros(line.at))
        tx.execute(ADD_LOG, (*place, line.level, line.logger, line.message))
    if "metadata" in transition.changes:
        tx.execute(DROP_METADATA, (job_id,))
        _add_metadata(tx, job_id, transition.changes["metadata"])


def _held_keys(tx: Tx, transitions: Sequence[Transition]) -> list[str]:
    """The serial keys that these jobs hold now, if anybody uses serial keys at all."""
    if tx.execute(ANY_KEY).fetchone() is None:
        return []
    ids = [t.id.bytes for t in transitions if t.changes["state"] is not State.RUNNING]
    return held_keys(tx, ids)


def held_keys(tx: Tx, ids: Sequence[bytes]) -> list[str]:
    """Return the serial keys that the jobs hold."""
    keys: list[str] = []
    start = 0
    for size in chunks(len(ids)):
        sql = HELD_KEYS.format(ids=",".join("?" * size))
        keys += [key for (key,) in tx.execute(sql, ids[start : start + size]).fetchall()]
        start += size
    return keys


def promote(tx: Tx, keys: Iterable[str]) -> int:
    """Each of these keys that nobody holds has gone to its next job, if one is blocked."""
    return sum(tx.execute(PROMOTE, (key,)).rowcount for key in keys)
