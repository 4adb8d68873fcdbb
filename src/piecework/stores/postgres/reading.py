"""What readers see: plain selects on connections of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.core.attempts import decode_error
from piecework.core.job import State
from piecework.ports import JobStatus, Node, QueueInfo
from piecework.stores.postgres import rows
from piecework.stores.postgres.rows import JOB_COLUMNS
from piecework.stores.postgres.tx import NOW

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from piecework.core.job import Attempt, Job, JobId, LogLine
    from piecework.ports import Filter
    from piecework.stores.postgres.tx import Tx

__all__ = ["attempts", "count", "find", "get", "logs", "nodes", "queues", "statuses"]

TEXT_WINDOW: Final = 10_000
TEXT_PAGE: Final = 1_000
GET: Final = f"SELECT {JOB_COLUMNS} FROM piecework.piecework_job j WHERE j.id = ANY ($1)"
STATUSES: Final = """
SELECT id, state, generation, attempt, progress FROM piecework.piecework_job WHERE id = ANY ($1)"""
COUNT: Final = "SELECT queue, state, count(*) FROM piecework.piecework_job GROUP BY queue, state"
ATTEMPTS: Final = """
SELECT fence, number, generation, started_at, ended_at, outcome, error, traceback, worker, node
FROM piecework.piecework_attempt WHERE job_id = $1 ORDER BY fence"""
LOGS: Final = """
SELECT fence, at, level, logger, message FROM piecework.piecework_log
WHERE job_id = $1 ORDER BY seq"""
LIVE_BY_QUEUE: Final = """
SELECT queue, state, count(*), min(due_at) FILTER (WHERE state = 'available')
FROM piecework.piecework_job WHERE state IN ('scheduled', 'blocked', 'available', 'running')
GROUP BY queue, state"""
CONTROLS: Final = """
SELECT name, paused, running_limit, rate_n, rate_window FROM piecework.piecework_queue
WHERE paused OR running_limit IS NOT NULL OR rate_n IS NOT NULL"""
NODES: Final = f"""
WITH {NOW}
SELECT w.id, w.node, w.pid, w.queues, w.slots, w.running, w.started_at, w.beat_at, w.lease,
    w.stopping
FROM piecework.piecework_worker w, t
WHERE NOT w.lost AND w.beat_at + w.lease * interval '1 microsecond' >= t.now
ORDER BY w.started_at, w.id"""
HAS_METADATA: Final = """EXISTS (
    SELECT FROM piecework.piecework_metadata m
    WHERE hashtextextended(m.key, 0) = hashtextextended({0}, 0)
    AND hashtextextended(m.value, 0) = hashtextextended({1}, 0)
    AND m.key = {0} AND m.value = {1} AND m.job_id = j.id)"""


async def get(tx: Tx, ids: Sequence[JobId]) -> list[Job]:
    """As `Reader.get`."""
    return [rows.job(row) for row in await tx.fetch(GET, list(ids))]


async def statuses(tx: Tx, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
    """As `Reader.statuses`."""
    return {
        job_id: JobStatus(State(state), generation, attempt, progress)
        for job_id, state, generation, attempt, progress in await tx.fetch(STATUSES, list(ids))
    }


async def find(tx: Tx, what: Filter, after: JobId | None, limit: int) -> list[Job]:
    """As `Reader.find`."""
    if what.text is None:
        return await _page(tx, what, after, limit)
    found: list[Job] = []
    needle = what.text.casefold()
    for _ in range(TEXT_WINDOW // TEXT_PAGE):
        page = await _page(tx, what, after, TEXT_PAGE)
        found += [job for job in page if _matches(job, needle)]
        if len(found) >= limit or len(page) < TEXT_PAGE:
            break
        after = page[-1].id
    return found[:limit]


async def _page(tx: Tx, what: Filter, after: JobId | None, limit: int) -> list[Job]:
    conditions, params = _conditions(what, after)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    params.append(limit)
    sql = (
        f"SELECT {JOB_COLUMNS} FROM piecework.piecework_job j {where} "
        f"ORDER BY j.id DESC LIMIT ${len(params)}"
    )
    return [rows.job(row) for row in await tx.fetch(sql, *params)]


def _matches(job: Job, needle: str) -> bool:
    error = decode_error(job.error)
    texts = (
        str(job.id),
        job.name,
        job.kind,
        job.unique_key,
        job.serial_key,
        job.reason,
        str(error) if error else None,
    )
    return any(text is not None and needle in text.casefold() for text in texts)


def _conditions(what: Filter, after: JobId | None) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    params: list[Any] = []

    def add(condition: str, *values: Any) -> None:
        places = [f"${place}" for place, _ in enumerate(values, start=len(params) + 1)]
        conditions.append(condition.format(*places))
        params.extend(values)

    for column, values in (
        ("state", [state.value for state in what.states]),
        ("kind", what.kinds),
        ("queue", what.queues),
    ):
        if values:
            add(f"j.{column} = ANY ({{0}}::text[])", list(values))
    if what.ids is not None:
        add("j.id = ANY ({0}::uuid[])", list(what.ids))
    if what.schedule is not None:
        add("j.schedule = {0}", what.schedule)
    if what.parent is not None:
        add("j.parent = {0}", what.parent)
    if what.since is not None:
        add("j.enqueued_at >= {0}", what.since)
    if what.until is not None:
        add("j.enqueued_at < {0}", what.until)
    if what.parked is not None:
        add("(j.state = 'scheduled' AND j.parked > 0) = {0}", what.parked)
    if after is not None:
        add("j.id < {0}", after)
    for key, value in what.metadata.items():
        add(HAS_METADATA, key, value)
    return conditions, params


async def count(tx: Tx) -> dict[tuple[str, State], int]:
    """As `Reader.count`."""
    return {(queue, State(state)): n for queue, state, n in await tx.fetch(COUNT)}


async def attempts(tx: Tx, job_id: JobId) -> list[Attempt]:
    """As `Reader.attempts`."""
    return [rows.attempt(row) for row in await tx.fetch(ATTEMPTS, job_id)]


async def logs(tx: Tx, job_id: JobId) -> list[tuple[int, LogLine]]:
    """As `Reader.logs`."""
    return [rows.log_line(row) for row in await tx.fetch(LOGS, job_id)]


async def queues(tx: Tx) -> list[QueueInfo]:
    """As `Reader.queues`."""
    jobs: dict[str, dict[State, int]] = {}
    oldest: dict[str, datetime] = {}
    for queue, state, n, first in await tx.fetch(LIVE_BY_QUEUE):
        jobs.setdefault(queue, {})[State(state)] = n
        if first is not None:
            oldest[queue] = first
    controls = {row[0]: row for row in await tx.fetch(CONTROLS)}
    found: list[QueueInfo] = []
    for name in sorted({*jobs, *controls}):
        _, paused, limit, n, window = controls.get(name, (name, False, None, None, None))
        found.append(
            QueueInfo(
                name=name,
                paused=paused,
                limit=limit,
                rate=None if n is None else (n, window),
                jobs=jobs.get(name, {}),
                oldest=oldest.get(name),
            )
        )
    return found


async def nodes(tx: Tx) -> list[Node]:
    """As `Reader.nodes`."""
    return [rows.node(row) for row in await tx.stamped(NODES)]
