"""Apply transitions inside one write transaction: each whole, or refused; set-based inside."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from piecework.core.job import FINAL, WAITING, JobId, State
from piecework.ports import Refused
from piecework.stores.sqlite import rows
from piecework.stores.sqlite.keys import add_metadata, drop_metadata, held_keys, holder_of, promote
from piecework.stores.sqlite.rows import JOB_COLUMNS, micros, sql_value
from piecework.stores.sqlite.tx import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Job
    from piecework.core.lifecycle import Transition
    from piecework.stores.sqlite.tx import Tx

__all__ = ["apply"]

GET_JOB: Final = f"SELECT {JOB_COLUMNS} FROM piecework_job WHERE id = ?"
ANY_KEY: Final = "SELECT 1 FROM piecework_job WHERE serial_held IS NOT NULL LIMIT 1"
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
    "(SELECT 1 FROM piecework_job h WHERE h.serial_held = j.serial_key "
    # A key that another move of this batch has just freed belongs to those who wait for it.
    "OR (h.state = 'blocked' AND h.serial_key = j.serial_key AND h.id <> j.id)))"
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
    if len(refused) < len(transitions):  # a later move of the list may have changed their jobs
        refused = [replace(one, job=_get(tx, one.transition.id)) for one in refused]
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
    holder = holder_of(tx, job.kind, job.unique_key, now)
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
        drop_metadata(tx, job_id)
        add_metadata(tx, job_id, transition.changes["metadata"])


def _held_keys(tx: Tx, transitions: Sequence[Transition]) -> list[str]:
    """The serial keys that these jobs hold now, if anybody uses serial keys at all."""
    if tx.execute(ANY_KEY).fetchone() is None:
        return []
    ids = [t.id.bytes for t in transitions if t.changes["state"] is not State.RUNNING]
    return held_keys(tx, ids)
