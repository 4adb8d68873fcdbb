"""Claim in one round trip: what is available, allowed and fits, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.stores._admission import PASSED_OVER
from piecework.stores.postgres.rows import CLAIMED_COLUMNS, claimed
from piecework.stores.postgres.tx import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.core.job import Claimed
    from piecework.ports import Ask
    from piecework.stores.postgres.tx import Tx

__all__ = ["claim", "claim_controlled"]

_CANDIDATE: Final = """j.id, j.priority, j.due_at,
        j.crashes = 0 AND j.max_attempts - j.attempt > 1 AS affordable"""
_LIVE: Final = "(j.expires_at IS NULL OR j.expires_at > (SELECT now FROM t))"
_ORDER: Final = "ORDER BY j.priority DESC, j.due_at, j.id LIMIT $4::bigint + $5::bigint"

# Materialised, or the planner may run the locking subquery again for each row it joins, and claim
# more than was asked (F25).
_CLAIM: Final = f"""
WITH {NOW}, gate AS MATERIALIZED (
    SELECT EXISTS (
        SELECT FROM piecework.piecework_queue q
        WHERE q.paused OR q.running_limit IS NOT NULL OR q.rate_n IS NOT NULL) AS controlled,
    EXISTS (
        SELECT FROM piecework.piecework_worker w WHERE w.id = $2 AND w.lost) AS lost
), free AS MATERIALIZED (
    {{free}}
), bound AS MATERIALIZED (
    SELECT {_CANDIDATE} FROM piecework.piecework_job j
    WHERE j.state = 'available' AND j.node = $3 AND {{bound}} {_LIVE}
    AND (SELECT NOT controlled AND NOT lost FROM gate)
    {_ORDER} FOR UPDATE OF j SKIP LOCKED
), pick AS MATERIALIZED (
    SELECT c.id, c.affordable,
        row_number() OVER (ORDER BY c.priority DESC, c.due_at, c.id) AS place
    FROM (SELECT * FROM free UNION ALL SELECT * FROM bound) c
), taken AS (
    UPDATE piecework.piecework_job AS j
    SET state = 'running', fence = j.fence + 1, attempt = j.attempt + 1,
        worker = $2, ran_on = $3, started_at = t.now
    FROM pick, t
    WHERE j.id = pick.id AND pick.place <= $4::bigint + $5::bigint
    AND (pick.place <= $4::bigint OR pick.affordable)
    RETURNING {CLAIMED_COLUMNS}, pick.place
)
SELECT taken.*, gate.controlled FROM gate LEFT JOIN taken ON true ORDER BY taken.place"""

CLAIM_ANY: Final = _CLAIM.format(
    bound="",
    free=f"""
    SELECT {_CANDIDATE} FROM piecework.piecework_job j
    WHERE j.state = 'available' AND j.node IS NULL AND {_LIVE}
    AND (SELECT NOT controlled AND NOT lost FROM gate)
    {_ORDER} FOR UPDATE OF j SKIP LOCKED""",
)
CLAIM_LANES: Final = _CLAIM.format(
    bound="j.queue = ANY ($6::text[]) AND",
    free=f"""
    SELECT top.* FROM unnest($6::text[]) AS lane (name) CROSS JOIN LATERAL (
        SELECT {_CANDIDATE} FROM piecework.piecework_job j
        WHERE j.state = 'available' AND j.node IS NULL AND j.queue = lane.name AND {_LIVE}
        AND (SELECT NOT controlled AND NOT lost FROM gate)
        {_ORDER} FOR UPDATE OF j SKIP LOCKED) top""",
)
CLAIM_CONTROLLED: Final = f"""
SELECT {CLAIMED_COLUMNS}
FROM piecework.piecework_claim($1, $2, $3, $4, $5, $6, $7, $8, {PASSED_OVER}) j
ORDER BY j.priority DESC, j.due_at, j.id"""


async def claim(tx: Tx, ask: Ask) -> list[Claimed] | None:
    """As `Store.claim`; None, and nothing done, where a queue has controls or a kind a room."""
    if ask.rooms:
        return None
    common = (ask.worker, ask.node, ask.free, ask.ahead)
    if ask.queues is None:
        rows = await tx.stamped(CLAIM_ANY, *common)
    else:
        rows = await tx.stamped(CLAIM_LANES, *common, list(dict.fromkeys(ask.queues)))
    first = rows[0]
    if first[0] is None:
        return None if first[-1] else []
    make: Callable[[Any], Claimed] = claimed
    return [make(row) for row in rows]


async def claim_controlled(tx: Tx, ask: Ask) -> list[Claimed]:
    """As `Store.claim`, whatever limits there are."""
    rows = await tx.stamped(
        CLAIM_CONTROLLED,
        ask.worker,
        ask.node,
        ask.free,
        ask.ahead,
        None if ask.queues is None else list(dict.fromkeys(ask.queues)),
        list(ask.rooms) if ask.rooms else None,
        [max(0, room) for room in ask.rooms.values()] if ask.rooms else None,
    )
    return [claimed(row) for row in rows]
