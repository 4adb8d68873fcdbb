"""What applied transitions leave beside the job's row: attempts, log lines, metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.stores.postgres.tx import NOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.lifecycle import Transition
    from piecework.stores.postgres.tx import Tx

__all__ = ["record"]

KEEP_ATTEMPTS: Final = 100
ADD_ATTEMPTS: Final = f"""
WITH {NOW}
INSERT INTO piecework.piecework_attempt (job_id, fence, number, generation, started_at, ended_at,
    outcome, error, traceback, worker, node)
SELECT u.job_id, u.fence, u.number, u.generation, u.started_at, coalesce(u.ended_at, t.now),
    u.outcome, u.error, u.traceback, u.worker, u.node
FROM t, unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[],
    $7::timestamptz[], $8::text[], $9::text[], $10::text[], $11::uuid[], $12::text[])
    AS u (job_id, fence, number, generation, started_at, ended_at, outcome, error, traceback,
          worker, node)
ON CONFLICT (job_id, fence) DO NOTHING"""
TRIM_ATTEMPTS: Final = f"""
DELETE FROM piecework.piecework_attempt a USING unnest($1::uuid[]) AS u (job_id)
WHERE a.job_id = u.job_id AND a.fence <= (
    SELECT b.fence FROM piecework.piecework_attempt b WHERE b.job_id = u.job_id
    ORDER BY b.fence DESC LIMIT 1 OFFSET {KEEP_ATTEMPTS})"""
ADD_LOGS: Final = """
INSERT INTO piecework.piecework_log (job_id, fence, at, level, logger, message)
SELECT u.job_id, u.fence, u.at, u.level, u.logger, u.message
FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[])
    WITH ORDINALITY AS u (job_id, fence, at, level, logger, message, place)
ORDER BY u.place"""
DROP_METADATA: Final = "DELETE FROM piecework.piecework_metadata WHERE job_id = ANY ($1)"
ADD_METADATA: Final = """
INSERT INTO piecework.piecework_metadata (job_id, key, value)
SELECT u.job_id, u.key, u.value
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS u (job_id, key, value)"""


async def record(tx: Tx, moves: Sequence[Transition]) -> None:
    """The rows that go with these moves, which have taken effect, are written."""
    if ended := [(move.id, move.ended) for move in moves if move.ended is not None]:
        values = [
            (
                job_id,
                one.fence,
                one.number,
                one.generation,
                one.started_at,
                one.ended_at,
                one.outcome,
                one.error,
                one.traceback,
                one.worker,
                one.node,
            )
            for job_id, one in ended
        ]
        await tx.stamped(ADD_ATTEMPTS, *_arrays(values))
        # Each attempt took a fence of its own: a low fence cannot have a long history.
        if many := [job_id for job_id, one in ended if one.fence > KEEP_ATTEMPTS]:
            await tx.fetch(TRIM_ATTEMPTS, many)
    lines = [
        (move.id, move.fence, line.at, line.level, line.logger, line.message)
        for move in moves
        for line in move.logs
    ]
    if lines:
        await tx.fetch(ADD_LOGS, *_arrays(lines))
    if changed := [move for move in moves if "metadata" in move.changes]:
        await tx.fetch(DROP_METADATA, [move.id for move in changed])
        pairs = [
            (move.id, key, value)
            for move in changed
            for key, value in (move.changes.get("metadata") or {}).items()
        ]
        if pairs:
            await tx.fetch(ADD_METADATA, *_arrays(pairs))


def _arrays(values: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*values, strict=True)]
