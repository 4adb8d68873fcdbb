"""Apply transitions: each whole, or refused; one statement for each shape of them."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from piecework.core.job import NOW as AT_ONCE
from piecework.core.job import State
from piecework.ports import Refused
from piecework.stores.postgres import rows
from piecework.stores.postgres.keys import holder_of, promote
from piecework.stores.postgres.recording import record
from piecework.stores.postgres.rows import JOB_COLUMNS
from piecework.stores.postgres.shapes import Shape, move_sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Job, JobId
    from piecework.core.lifecycle import Transition
    from piecework.stores.postgres.tx import Tx

__all__ = ["Applied", "Plan", "apply", "apply_alone", "plan"]

GET_JOBS: Final = f"SELECT {JOB_COLUMNS} FROM piecework.piecework_job j WHERE j.id = ANY ($1)"
TAKE_UNIQUE: Final = """
    UPDATE piecework.piecework_job SET unique_held = unique_key
    WHERE id = $1 AND unique_held IS DISTINCT FROM unique_key"""


class Plan(NamedTuple):
    """The transitions by shape, and whether one statement without a transaction will do."""

    shapes: list[tuple[Shape, list[int]]]
    alone: bool


class Applied(NamedTuple):
    """What was refused, and how many blocked jobs were promoted."""

    refused: list[Refused]
    promoted: int


def plan(transitions: Sequence[Transition]) -> Plan:
    """Group what one statement can do; several moves of one job stay apart, in their order."""
    seen: set[JobId] = set()
    shapes: dict[Any, list[int]] = defaultdict(list)
    extras = False
    for index, move in enumerate(transitions):
        state = move.changes["state"]
        # Two jobs of one key must not both find it free in one statement.
        apart = (
            move.id in seen
            or move.take_unique
            or (state is State.AVAILABLE and State.RUNNING not in move.states)
        )
        seen.add(move.id)
        extras = extras or bool(move.ended or move.logs or "metadata" in move.changes)
        columns = tuple([(name, _form(v)) for name, v in move.changes.items() if name != "state"])
        shape = Shape(move.states, state, columns, move.unless_cancelled)
        shapes[shape, index if apart else -1].append(index)
    grouped = [(shape, group) for (shape, _), group in shapes.items()]
    alone = len(grouped) == 1 and not extras and not transitions[0].take_unique
    return Plan(grouped, alone)


def _form(value: Any) -> str:
    if value is None:
        return "null"
    if value is AT_ONCE:
        return "now"
    if isinstance(value, timedelta):
        return "for"
    return "at" if isinstance(value, datetime) else "value"


async def apply_alone(tx: Tx, transitions: Sequence[Transition], shape: Shape) -> Applied:
    """Apply transitions of one shape in one statement, turns of serial keys included."""
    sql = move_sql(shape, promote=True)
    row = (await tx.stamped(sql, *_columns(transitions, shape)))[0]
    count, ids, promoted = row
    if count == len(transitions):
        return Applied([], promoted or 0)
    done: set[JobId] = set(ids or ())
    missing = [move for move in transitions if move.id not in done]
    return Applied(await _refused(tx, missing), promoted or 0)


async def apply(tx: Tx, transitions: Sequence[Transition], planned: Plan) -> Applied:
    """As `Store.apply`, inside an open transaction."""
    refused: dict[int, JobId | None] = {}
    keys: set[str] = set()
    for shape, group in planned.shapes:
        first = group[0]
        if transitions[first].take_unique:
            refused |= await _take_unique(tx, transitions[first], first, shape, keys)
        else:
            refused |= await _move(tx, transitions, group, shape, keys)
    await record(tx, [move for index, move in enumerate(transitions) if index not in refused])
    promoted = await promote(tx, keys)
    left_out = sorted(refused)
    answers = await _refused(tx, [transitions[index] for index in left_out])
    return Applied(
        [
            answer if holder is None else Refused(answer.transition, answer.job, holder)
            for answer, holder in zip(answers, map(refused.get, left_out), strict=True)
        ],
        promoted,
    )


async def _move(
    tx: Tx,
    transitions: Sequence[Transition],
    group: Sequence[int],
    shape: Shape,
    keys: set[str],
) -> dict[int, JobId | None]:
    """Apply those of one shape; return the places of those that are refused."""
    moves = [transitions[index] for index in group]
    row = (await tx.stamped(move_sql(shape, promote=False), *_columns(moves, shape)))[0]
    count, ids, freed = row
    keys.update(freed or ())
    if count == len(moves):
        return {}
    done: set[JobId] = set(ids or ())
    return {index: None for index in group if transitions[index].id not in done}


async def _refused(tx: Tx, moves: Sequence[Transition]) -> list[Refused]:
    """The refused, each with its job as it is after all the others."""
    if not moves:
        return []
    jobs = {job.id: job for job in await _get(tx, [move.id for move in moves])}
    return [Refused(move, jobs.get(move.id)) for move in moves]


async def _take_unique(
    tx: Tx, move: Transition, index: int, shape: Shape, keys: set[str]
) -> dict[int, JobId | None]:
    """Apply a move that takes its job's unique key; return its place if it is refused."""
    found = await _get(tx, [move.id])
    job = found[0] if found else None
    if job is None or job.unique_key is None:
        return {index: None}
    holder, now = await holder_of(tx, job.kind, job.unique_key)
    if holder is not None and holder.id != job.id:
        return {index: holder.id}
    row = (await tx.stamped(move_sql(shape, promote=False), *_columns([move], shape)))[0]
    if row[0] == 0:
        return {index: None}
    keys.update(row[2] or ())
    if job.unique_until is None or job.unique_until > now:
        await tx.fetch(TAKE_UNIQUE, job.id)
    return {}


async def _get(tx: Tx, ids: Sequence[JobId]) -> list[Job]:
    return [rows.job(row) for row in await tx.fetch(GET_JOBS, ids)]


def _columns(moves: Sequence[Transition], shape: Shape) -> list[list[Any]]:
    """The parameters of the shape's statement: an array for each column of the input."""
    columns: list[list[Any]] = [[move.id for move in moves], [move.fence for move in moves]]
    if len(shape.states) == 1:
        (state,) = shape.states
        columns.append([state.value] * len(moves))
    for name, form in shape.columns:
        values: list[Any] = [move.changes.get(name) for move in moves]
        if form == "for":
            values = [rows.micros(value) for value in values]
        elif name == "metadata" and form == "value":
            values = [rows.metadata_text(value) for value in values]
        if form not in {"null", "now"}:
            columns.append(values)
    return columns
