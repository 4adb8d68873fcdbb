"""Stage, beat, orphans, prune and the controls of queues, inside one write transaction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from piecework.core.job import FINAL, JobId, Retention
from piecework.ports import Beaten, Fate, Staged
from piecework.stores.sqlite import rows
from piecework.stores.sqlite.keys import held_keys, promote
from piecework.stores.sqlite.rows import JOB_COLUMNS, sql_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Job, WorkerId
    from piecework.ports import Beat, QueueChange
    from piecework.stores.sqlite.tx import Tx

__all__ = ["beat", "configure", "orphans", "prune", "retire", "stage"]

# ── stage ────────────────────────────────────────────────────────────────────────────────────

EXPIRED: Final = """
    SELECT id FROM piecework_job
    WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'blocked', 'available')
    AND expires_at <= ? ORDER BY expires_at LIMIT ?"""
EXPIRE: Final = """
    UPDATE piecework_job SET state = 'expired', finished_at = ?, serial_held = NULL,
        unique_held = CASE WHEN unique_scope = 'live' THEN NULL ELSE unique_held END
    WHERE id = ?"""
DUE: Final = """
    SELECT id, serial_key IS NULL OR serial_held IS NOT NULL, serial_key, -priority, due_at
    FROM piecework_job WHERE state = 'scheduled' AND due_at <= ? ORDER BY due_at LIMIT ?"""
MAKE_AVAILABLE: Final = """
    UPDATE piecework_job SET state = 'available'
    WHERE state = 'scheduled' AND due_at <= ?
    AND (serial_key IS NULL OR serial_held IS NOT NULL)
    AND rowid IN (SELECT rowid FROM piecework_job WHERE state = 'scheduled' AND due_at <= ?
        ORDER BY due_at LIMIT ?)"""
QUEUE_UP: Final = "UPDATE piecework_job SET state = 'blocked' WHERE id = ?"
NEXT_DUE: Final = """
    SELECT min(due_at) FROM piecework_job WHERE state = 'scheduled'
    UNION ALL SELECT min(expires_at) FROM piecework_job
    WHERE expires_at IS NOT NULL AND state IN ('scheduled', 'blocked', 'available')"""


ANY_AVAILABLE: Final = """
    SELECT EXISTS (SELECT 1 FROM piecework_job INDEXED BY piecework_job_available
            WHERE state = 'available' AND node IS NULL)
        OR EXISTS (SELECT 1 FROM piecework_job INDEXED BY piecework_job_bound
            WHERE state = 'available' AND node IS NOT NULL)"""


def stage(tx: Tx, limit: int, now: int) -> Staged:
    """As `Store.stage`.

    A blocked job always has a holder here, since one writer at a time sees everything: nothing
    can have committed too late to be seen.
    """
    upcoming = [at for (at,) in tx.execute(NEXT_DUE).fetchall() if at is not None]
    if not upcoming or min(upcoming) > now:
        return Staged(next_due=_seconds(upcoming, now), available=_any_available(tx))
    gone = [i for (i,) in tx.execute(EXPIRED, (now, limit)).fetchall()]
    keys = held_keys(tx, gone)
    for job_id in gone:
        tx.execute(EXPIRE, (now, job_id))
    promoted = promote(tx, keys)
    due = tx.execute(DUE, (now, limit)).fetchall()
    tx.execute(MAKE_AVAILABLE, (now, now, limit))
    waiting = sorted((row for row in due if not row[1]), key=lambda row: (row[3], row[4], row[0]))
    for job_id, _, key, *_ in waiting:
        tx.execute(QUEUE_UP, (job_id,))
        promoted += promote(tx, [key])
    upcoming = [at for (at,) in tx.execute(NEXT_DUE).fetchall() if at is not None]
    more = len(gone) == limit or len(due) == limit
    return Staged(len(due), len(gone), promoted, _seconds(upcoming, now), more)


def _any_available(tx: Tx) -> bool:
    (available,) = tx.execute(ANY_AVAILABLE).fetchone()
    return bool(available)


def _seconds(upcoming: list[int], now: int) -> float | None:
    return max(0.0, (min(upcoming) - now) / 1e6) if upcoming else None


# ── workers ──────────────────────────────────────────────────────────────────────────────────

BEAT: Final = """
    INSERT INTO piecework_worker
        (id, node, pid, queues, slots, running, started_at, beat_at, lease, stopping)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9)
    ON CONFLICT (id) DO UPDATE SET beat_at = max(beat_at, excluded.beat_at),
        slots = excluded.slots, running = excluded.running, stopping = excluded.stopping
    WHERE NOT lost"""
RUNNING: Final = """
    SELECT json_group_array(json_array(hex(id), fence, cancel_requested IS NOT NULL))
    FROM piecework_job WHERE state = 'running' AND worker = ?"""
DECLARE_LOST: Final = """
    UPDATE piecework_worker SET lost = 1 WHERE NOT lost AND beat_at + lease < ?"""
ORPHANS: Final = f"""
    SELECT {JOB_COLUMNS} FROM piecework_job WHERE state = 'running'
    AND worker NOT IN (SELECT id FROM piecework_worker WHERE NOT lost) LIMIT ?"""
FORGET: Final = """
    DELETE FROM piecework_worker WHERE lost AND beat_at + lease + 3600000000 < ?
    AND id NOT IN (SELECT worker FROM piecework_job WHERE state = 'running')"""
RETIRE: Final = "DELETE FROM piecework_worker WHERE id = ?"


def beat(tx: Tx, sign: Beat, now: int) -> Beaten:
    """As `Store.beat`."""
    queues = None if sign.queues is None else json.dumps(sign.queues)
    lease = sql_value(sign.lease, 0)
    what = (sign.worker.bytes, sign.node, sign.pid, queues, sign.slots, sign.running)
    alive = tx.execute(BEAT, (*what, now, lease, sign.stopping)).rowcount == 1
    (text,) = tx.execute(RUNNING, (sign.worker.bytes,)).fetchone()
    running = {JobId(UUID(i)): (fence, bool(cancel)) for i, fence, cancel in json.loads(text)}
    return Beaten(Fate.ALIVE if alive else Fate.LOST, running)


def orphans(tx: Tx, limit: int, now: int) -> list[Job]:
    """As `Store.orphans`. A lost worker's row stays an hour, so that its late beat is refused."""
    tx.execute(DECLARE_LOST, (now,))
    tx.execute(FORGET, (now,))
    return [rows.job(row) for row in tx.execute(ORPHANS, (limit,)).fetchall()]


def retire(tx: Tx, worker: WorkerId) -> None:
    """As `Store.retire`."""
    tx.execute(RETIRE, (worker.bytes,))


# ── retention ────────────────────────────────────────────────────────────────────────────────

OLD: Final = """
    SELECT id FROM piecework_job WHERE state = ? AND finished_at IS NOT NULL AND finished_at <= ?
    AND prune_at IS NULL ORDER BY finished_at LIMIT ?"""
OUTLIVED: Final = """
    SELECT id FROM piecework_job WHERE prune_at IS NOT NULL AND prune_at <= ?
    AND finished_at IS NOT NULL ORDER BY prune_at LIMIT ?"""
DELETE: Final = """
    DELETE FROM piecework_job WHERE id = ?
    AND state IN ('completed', 'failed', 'cancelled', 'expired')"""
DELETE_REST: Final = tuple(
    f"DELETE FROM piecework_{table} WHERE job_id = ?" for table in ("metadata", "attempt", "log")
)


def prune(tx: Tx, what: Retention | Sequence[JobId], limit: int, now: int) -> list[JobId]:
    """As `Store.prune`."""
    if isinstance(what, Retention):
        ids = _outlived(tx, what, limit, now)
    else:
        ids = [job_id.bytes for job_id in what[:limit]]
    gone: list[JobId] = []
    for job_id in ids:
        if tx.execute(DELETE, (job_id,)).rowcount:
            for sql in DELETE_REST:
                tx.execute(sql, (job_id,))
            gone.append(JobId(UUID(bytes=job_id)))
    return gone


def _outlived(tx: Tx, retention: Retention, limit: int, now: int) -> list[bytes]:
    ids: list[bytes] = [i for (i,) in tx.execute(OUTLIVED, (now, limit)).fetchall()]
    for state in sorted(FINAL):
        keep = retention.of(state)
        if keep is not None and len(ids) < limit:
            old = (state.value, now - sql_value(keep, 0), limit - len(ids))
            ids += [i for (i,) in tx.execute(OLD, old).fetchall()]
    return ids


# ── controls ─────────────────────────────────────────────────────────────────────────────────

MAKE_QUEUE: Final = "INSERT OR IGNORE INTO piecework_queue (name) VALUES (?)"
SET_PAUSED: Final = "UPDATE piecework_queue SET paused = ? WHERE name = ?"
SET_LIMIT: Final = "UPDATE piecework_queue SET running_limit = ? WHERE name = ?"
SET_RATE: Final = """
    UPDATE piecework_queue SET rate_n = ?, rate_window = ?, tokens = ?, refilled_at = ?
    WHERE name = ? AND (rate_n IS NOT ?1 OR rate_window IS NOT ?2)"""


def configure(tx: Tx, changes: Sequence[QueueChange], now: int) -> None:
    """As `Store.configure`. A new rate begins with a full bucket; the same one keeps its level."""
    for change in changes:
        name: Any = change.name
        tx.execute(MAKE_QUEUE, (name,))
        if change.paused != "unset":
            tx.execute(SET_PAUSED, (int(change.paused), name))
        if change.running != "unset":
            tx.execute(SET_LIMIT, (change.running, name))
        if change.rate != "unset":
            n, window = change.rate or (None, None)
            tx.execute(SET_RATE, (n, window, n or 0, now, name))
