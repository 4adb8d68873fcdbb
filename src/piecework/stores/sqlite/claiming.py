"""Claim inside one write transaction: what is available, allowed and fits, and no more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from piecework.stores._admission import PASSED_OVER, Candidate, QueueCap, pick, refill
from piecework.stores.sqlite.rows import claimed, from_micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Claimed
    from piecework.ports import Ask
    from piecework.stores.sqlite.tx import Tx

__all__ = ["claim"]

# One row of JSON: each row fetched is a step, and each step may wait for the interpreter lock.
# rows.claimed reads these columns by position.
_COLUMNS: Final = """json_group_array(json_array(rowid, crashes = 0 AND max_attempts - attempt > 1,
    kind, queue, hex(id), fence, args, attempt, max_attempts, crashes, max_crashes, generation,
    name, timeout, metadata, schedule, tick, count, parked, result_ttl, -priority, due_at))"""
# An infinite time limit, put in by hand, would have no JSON.
_INNER: Final = """rowid, crashes, max_attempts, attempt, kind, queue, id, fence, args, max_crashes,
    generation, name, max(0, min(timeout, 1e10)) AS timeout, metadata, schedule, tick, count,
    parked, result_ttl, priority, due_at"""
_LIVE: Final = "(expires_at IS NULL OR expires_at > :now)"
_ORDER: Final = "ORDER BY priority DESC, due_at, id LIMIT :want"
ANY_QUEUE: Final = f"""
    SELECT {_COLUMNS} FROM (SELECT {_INNER} FROM piecework_job INDEXED BY piecework_job_available
    WHERE state = 'available' AND node IS NULL AND {_LIVE} {_ORDER})"""
ONE_QUEUE: Final = f"""
    SELECT {_COLUMNS} FROM (SELECT {_INNER} FROM piecework_job INDEXED BY piecework_job_lane
    WHERE state = 'available' AND node IS NULL AND queue = :queue AND {_LIVE} {_ORDER})"""
BOUND: Final = f"""
    SELECT {_COLUMNS} FROM (SELECT {_INNER} FROM piecework_job INDEXED BY piecework_job_bound
    WHERE state = 'available' AND node = :node
    AND (:queues IS NULL OR queue IN (SELECT value FROM json_each(:queues)))
    AND queue NOT IN (SELECT value FROM json_each(:closed)) AND {_LIVE} {_ORDER})"""
ANY_BOUND: Final = "SELECT 1 FROM piecework_job WHERE state = 'available' AND node = ? LIMIT 1"
CLAIM: Final = """
    UPDATE piecework_job SET state = 'running', fence = fence + 1, attempt = attempt + 1,
        worker = ?, ran_on = ?, started_at = ?
    WHERE rowid IN (SELECT value FROM json_each(?))"""
IS_LOST: Final = "SELECT 1 FROM piecework_worker WHERE id = ? AND lost"
CONTROLS: Final = """
    SELECT name, paused, running_limit, rate_n, rate_window, tokens, refilled_at
    FROM piecework_queue
    WHERE paused OR running_limit IS NOT NULL OR rate_n IS NOT NULL"""
COUNT_RUNNING: Final = """
    SELECT count(*) FROM piecework_job WHERE state = 'running' AND queue = ?"""
SPEND: Final = "UPDATE piecework_queue SET tokens = ?, refilled_at = ? WHERE name = ?"
OPEN_LANES: Final = """
    WITH RECURSIVE lane (queue) AS (
        SELECT min(queue) FROM piecework_job WHERE state = 'available' AND node IS NULL
        UNION ALL
        SELECT (SELECT min(queue) FROM piecework_job
                WHERE state = 'available' AND node IS NULL AND queue > lane.queue)
        FROM lane WHERE lane.queue IS NOT NULL)
    SELECT queue FROM lane WHERE queue IS NOT NULL"""


class _Control(NamedTuple):
    name: str
    paused: int
    limit: int | None
    rate_n: int | None
    rate_window: float | None
    tokens: float
    refilled_at: int


def claim(tx: Tx, ask: Ask, now: int) -> list[Claimed]:
    """As `Store.claim`."""
    if ask.free + ask.ahead <= 0 or tx.execute(IS_LOST, (ask.worker.bytes,)).fetchone():
        return []  # a worker that was declared lost begins anew under a new id
    controls = [_Control(*row) for row in tx.execute(CONTROLS).fetchall()]
    controls = [c for c in controls if ask.queues is None or c.name in ask.queues]
    caps = {c.name: _cap(tx, c, now) for c in controls}
    rows = _candidates(tx, ask, now, caps)
    if not rows:
        return []
    chosen = _pick(rows, ask, caps) if caps or ask.rooms else _take(rows, ask)
    if not chosen:
        return []
    ids = json.dumps([row[0] for row in chosen])
    tx.execute(CLAIM, (ask.worker.bytes, ask.node, now, ids))
    for control in controls:
        if control.rate_n is not None:
            _spend(tx, control, now, sum(row[3] == control.name for row in chosen))
    return [claimed(row) for row in chosen]


def _take(rows: list[Any], ask: Ask) -> list[Any]:
    """The first fill the free slots; of the rest only those that can afford a crash."""
    return rows[: ask.free] + [row for row in rows[ask.free :] if row[1]]


def _pick(rows: list[Any], ask: Ask, caps: dict[str, QueueCap]) -> list[Any]:
    light = [Candidate(row[0], row[2], row[3], bool(row[1])) for row in rows]
    chosen = {candidate.id for candidate in pick(light, ask, caps)}
    return [row for row in rows if row[0] in chosen]


def _candidates(tx: Tx, ask: Ask, now: int, caps: dict[str, QueueCap]) -> list[Any]:
    """Rows in the order of claiming, enough to fill what was asked."""
    depth = PASSED_OVER if ask.rooms else 1
    want = (ask.free + ask.ahead) * depth
    params = {"now": now, "want": want}
    closed = {name for name, cap in caps.items() if cap.closed}
    if ask.queues is None and not caps:
        parts = [_load(tx.execute(ANY_QUEUE, params))]
    else:
        lanes: Sequence[str] = ask.queues if ask.queues is not None else _open_lanes(tx)

        def of(lane: str) -> int:
            """More rows than a limited queue has room for would be read in vain."""
            room = cap.room if (cap := caps.get(lane)) else None
            return want if room is None else min(want, room * depth)

        parts = [
            _load(tx.execute(ONE_QUEUE, {**params, "queue": lane, "want": of(lane)}))
            for lane in dict.fromkeys(lanes)
            if lane not in closed
        ]
    if tx.execute(ANY_BOUND, (ask.node,)).fetchone():
        queues = None if ask.queues is None else json.dumps(ask.queues)
        bound = {**params, "node": ask.node, "queues": queues, "closed": json.dumps([*closed])}
        parts.append(_load(tx.execute(BOUND, bound)))
    parts = [part for part in parts if part]
    if len(parts) == 1:
        return parts[0]
    rows = [row for part in parts for row in part]
    rows.sort(key=lambda row: (row[20], row[21], row[4]))
    return rows[:want] if not caps else rows


def _load(cursor: Any) -> list[Any]:
    (text,) = cursor.fetchone()
    rows: list[Any] = json.loads(text)
    return rows


def _open_lanes(tx: Tx) -> list[str]:
    return [queue for (queue,) in tx.execute(OPEN_LANES).fetchall()]


def _cap(tx: Tx, control: _Control, now: int) -> QueueCap:
    if control.paused:
        return QueueCap(running=0)
    running = tokens = None
    if control.limit is not None:
        (count,) = tx.execute(COUNT_RUNNING, (control.name,)).fetchone()
        running = max(0, control.limit - count)
    if control.rate_n is not None:
        tokens = int(_tokens(control, now))
    return QueueCap(running=running, tokens=tokens)


def _tokens(control: _Control, now: int) -> float:
    assert control.rate_n is not None
    assert control.rate_window is not None
    since, instant = from_micros(control.refilled_at), from_micros(now)
    assert since is not None
    assert instant is not None
    return refill(control.tokens, since, instant, control.rate_n, control.rate_window)


def _spend(tx: Tx, control: _Control, now: int, taken: int) -> None:
    if taken:
        left = _tokens(control, now) - taken
        tx.execute(SPEND, (left, max(now, control.refilled_at), control.name))
