"""Stage, beat, orphans, prune and the controls of queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.core.job import FINAL, Retention
from piecework.ports import Beaten, Fate, Staged
from piecework.stores.postgres import rows
from piecework.stores.postgres.rows import JOB_COLUMNS, micros
from piecework.stores.postgres.tx import NOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import Job, JobId, WorkerId
    from piecework.ports import Beat, QueueChange
    from piecework.stores.postgres.tx import Tx

__all__ = ["beat", "configure", "orphans", "prune", "retire", "stage"]

# ── stage ────────────────────────────────────────────────────────────────────────────────────

STAGE: Final = """
SELECT due, expired, promoted, next_due, looked FROM piecework.piecework_stage($1, $2, $3)"""


async def stage(tx: Tx, limit: int, after: str) -> tuple[Staged, str]:
    """As `Store.stage`; of the blocked jobs' keys it looks at some, those after `after`.

    Returns the key to go on with.
    """
    due, expired, promoted, next_due, looked = (await tx.stamped(STAGE, limit, after))[0]
    more = limit in (due, expired)
    return Staged(due, expired, promoted, next_due, more), looked


# ── workers ──────────────────────────────────────────────────────────────────────────────────

BEAT: Final = f"""
WITH {NOW}, sign AS (
    INSERT INTO piecework.piecework_worker AS w
        (id, node, pid, queues, slots, running, started_at, beat_at, lease, stopping)
    SELECT $2, $3, $4, $5, $6, $7, t.now, t.now, $8, $9 FROM t
    ON CONFLICT (id) DO UPDATE SET beat_at = greatest(w.beat_at, excluded.beat_at),
        slots = excluded.slots, running = excluded.running, stopping = excluded.stopping
    WHERE NOT w.lost
    RETURNING id
)
SELECT j.id, j.fence, j.cancel_requested IS NOT NULL, alive.yes
FROM (SELECT EXISTS (SELECT FROM sign) AS yes) alive
LEFT JOIN piecework.piecework_job j ON j.state = 'running' AND j.worker = $2"""
# The update decides: what it declares lost is lost, and a beat that comes too late waits for it.
ORPHANS: Final = f"""
WITH RECURSIVE {NOW}, gone AS (
    UPDATE piecework.piecework_worker w SET lost = true FROM t
    WHERE NOT w.lost AND w.beat_at + w.lease * interval '1 microsecond' < t.now
    RETURNING w.id
), owner (id) AS (
    (SELECT j.worker FROM piecework.piecework_job j
     WHERE j.state = 'running' ORDER BY j.worker LIMIT 1)
    UNION ALL
    SELECT (SELECT j.worker FROM piecework.piecework_job j
            WHERE j.state = 'running' AND j.worker > owner.id ORDER BY j.worker LIMIT 1)
    FROM owner WHERE owner.id IS NOT NULL
), dead AS MATERIALIZED (
    SELECT owner.id FROM owner
    WHERE owner.id IS NOT NULL AND (owner.id IN (SELECT id FROM gone) OR NOT EXISTS (
        SELECT FROM piecework.piecework_worker w WHERE w.id = owner.id AND NOT w.lost))
)
SELECT {JOB_COLUMNS} FROM dead
JOIN piecework.piecework_job j ON j.state = 'running' AND j.worker = dead.id LIMIT $2"""
FORGET: Final = f"""
WITH {NOW}
DELETE FROM piecework.piecework_worker w USING t
WHERE w.lost AND w.beat_at + w.lease * interval '1 microsecond' + interval '1 hour' < t.now
AND NOT EXISTS (
    SELECT FROM piecework.piecework_job j WHERE j.state = 'running' AND j.worker = w.id)"""
RETIRE: Final = "DELETE FROM piecework.piecework_worker WHERE id = $1"


async def beat(tx: Tx, sign: Beat) -> Beaten:
    """As `Store.beat`."""
    found = await tx.stamped(
        BEAT,
        sign.worker,
        sign.node,
        sign.pid,
        None if sign.queues is None else list(sign.queues),
        sign.slots,
        sign.running,
        micros(sign.lease),
        sign.stopping,
    )
    fate = Fate.ALIVE if found[0][3] else Fate.LOST
    running = {row[0]: (row[1], row[2]) for row in found if row[0] is not None}
    return Beaten(fate, running)


async def orphans(tx: Tx, limit: int) -> list[Job]:
    """As `Store.orphans`."""
    return [rows.job(row) for row in await tx.stamped(ORPHANS, limit)]


async def forget(tx: Tx) -> None:
    """A lost worker's row stays for an hour, so that its late beat is refused."""
    await tx.stamped(FORGET)


async def retire(tx: Tx, worker: WorkerId) -> None:
    """As `Store.retire`."""
    await tx.fetch(RETIRE, worker)


# ── retention ────────────────────────────────────────────────────────────────────────────────

OLD: Final = f"""
WITH {NOW}
SELECT j.id FROM piecework.piecework_job j
WHERE j.state = $2 AND j.finished_at IS NOT NULL AND j.prune_at IS NULL
AND j.finished_at <= (SELECT now FROM t) - $3::bigint * interval '1 microsecond'
ORDER BY j.finished_at LIMIT $4 FOR UPDATE OF j SKIP LOCKED"""
OUTLIVED: Final = f"""
WITH {NOW}
SELECT j.id FROM piecework.piecework_job j
WHERE j.prune_at IS NOT NULL AND j.finished_at IS NOT NULL AND j.prune_at <= (SELECT now FROM t)
ORDER BY j.prune_at LIMIT $2 FOR UPDATE OF j SKIP LOCKED"""
DELETE: Final = """
WITH gone AS (
    DELETE FROM piecework.piecework_job j WHERE j.id = ANY ($1)
    AND j.state IN ('completed', 'failed', 'cancelled', 'expired') RETURNING j.id
), metadata AS (
    DELETE FROM piecework.piecework_metadata m USING gone WHERE m.job_id = gone.id
), attempts AS (
    DELETE FROM piecework.piecework_attempt a USING gone WHERE a.job_id = gone.id
), logs AS (
    DELETE FROM piecework.piecework_log l USING gone WHERE l.job_id = gone.id
)
SELECT id FROM gone"""


async def prune(tx: Tx, what: Retention | Sequence[JobId], limit: int) -> list[JobId]:
    """As `Store.prune`, inside a transaction."""
    if isinstance(what, Retention):
        ids = await _outlived(tx, what, limit)
    else:
        ids = list(what[:limit])
    if not ids:
        return []
    return [job_id for (job_id,) in await tx.fetch(DELETE, ids)]


async def _outlived(tx: Tx, retention: Retention, limit: int) -> list[Any]:
    ids = [job_id for (job_id,) in await tx.stamped(OUTLIVED, limit)]
    for state in sorted(FINAL):
        keep = retention.of(state)
        if keep is not None and len(ids) < limit:
            old = await tx.stamped(OLD, state.value, micros(keep), limit - len(ids))
            ids += [job_id for (job_id,) in old]
    return ids


# ── controls ─────────────────────────────────────────────────────────────────────────────────

MAKE_QUEUE: Final = """
INSERT INTO piecework.piecework_queue (name) VALUES ($1) ON CONFLICT DO NOTHING"""
SET_PAUSED: Final = "UPDATE piecework.piecework_queue SET paused = $2 WHERE name = $1"
SET_LIMIT: Final = "UPDATE piecework.piecework_queue SET running_limit = $2 WHERE name = $1"
SET_RATE: Final = f"""
WITH {NOW}
UPDATE piecework.piecework_queue q
SET rate_n = $3, rate_window = $4, tokens = coalesce($3, 0), refilled_at = t.now
FROM t WHERE q.name = $2
AND (q.rate_n IS DISTINCT FROM $3::bigint OR q.rate_window IS DISTINCT FROM $4::float8)"""


async def configure(tx: Tx, changes: Sequence[QueueChange]) -> None:
    """As `Store.configure`. A new rate begins with a full bucket; the same one keeps its level."""
    # In one order, as claims lock them; of one queue, in the order given.
    for change in sorted(changes, key=lambda change: change.name):
        await tx.fetch(MAKE_QUEUE, change.name)
        if change.paused != "unset":
            await tx.fetch(SET_PAUSED, change.name, change.paused)
        if change.running != "unset":
            await tx.fetch(SET_LIMIT, change.name, change.running)
        if change.rate != "unset":
            n, window = change.rate or (None, None)
            await tx.stamped(SET_RATE, change.name, n, window)
