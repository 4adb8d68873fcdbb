"""What readers see: plain selects on connections of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from piecework.core.attempts import decode_error
from piecework.core.job import JobId, State, WorkerId
from piecework.ports import JobStatus, Node, QueueInfo
from piecework.stores.sqlite import rows
from piecework.stores.sqlite.rows import JOB_COLUMNS, from_micros, micros

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from piecework.core.job import Attempt, Job, LogLine
    from piecework.ports import Filter
    from piecework.stores.sqlite.tx import Tx

__all__ = ["attempts", "count", "find", "get", "logs", "nodes", "queues", "statuses"]

TEXT_WINDOW: Final = 10_000
COUNT: Final = "SELECT queue, state, count(*) FROM piecework_job GROUP BY queue, state"
ATTEMPTS: Final = """
    SELECT fence, number, generation, started_at, ended_at, outcome, error, traceback, worker, node
    FROM piecework_attempt WHERE job_id = ? ORDER BY fence"""
LOGS: Final = """
    SELECT fence, at, level, logger, message FROM piecework_log WHERE job_id = ? ORDER BY seq"""
LIVE_BY_QUEUE: Final = """
    SELECT queue, state, count(*), min(CASE WHEN state = 'available' THEN due_at END)
    FROM piecework_job WHERE state IN ('scheduled', 'blocked', 'available', 'running')
    GROUP BY queue, state"""
CONTROLS: Final = """
    SELECT name, paused, running_limit, rate_n, rate_window FROM piecework_queue
    WHERE paused OR running_limit IS NOT NULL OR rate_n IS NOT NULL"""
NODES: Final = """
    SELECT id, node, pid, queues, slots, running, started_at, beat_at, lease, stopping
    FROM piecework_worker WHERE NOT lost AND beat_at + lease >= ? ORDER BY started_at, id"""
_BATCH: Final = 500


def _by_ids(tx: Tx, columns: str, ids: Sequence[JobId]) -> list[Any]:
    found: list[Any] = []
    for start in range(0, len(ids), _BATCH):
        batch = [i.bytes for i in ids[start : start + _BATCH]]
        marks = ",".join("?" * len(batch))
        sql = f"SELECT {columns} FROM piecework_job WHERE id IN ({marks})"
        found += tx.execute(sql, batch).fetchall()
    return found


def get(tx: Tx, ids: Sequence[JobId]) -> list[Job]:
    """As `Reader.get`."""
    return [rows.job(row) for row in _by_ids(tx, JOB_COLUMNS, ids)]


def statuses(tx: Tx, ids: Sequence[JobId]) -> dict[JobId, JobStatus]:
    """As `Reader.statuses`."""
    return {
        JobId(UUID(bytes=i)): JobStatus(State(state), generation, attempt, progress)
        for i, state, generation, attempt, progress in _by_ids(
            tx, "id, state, generation, attempt, progress", ids
        )
    }


def find(tx: Tx, what: Filter, after: JobId | None, limit: int) -> list[Job]:
    """As `Reader.find`."""
    conditions, params = _conditions(what, after)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    sql = f"SELECT {JOB_COLUMNS} FROM piecework_job {where} ORDER BY id DESC LIMIT ?"
    if what.text is None:
        return [rows.job(row) for row in tx.execute(sql, (*params, limit)).fetchall()]
    found: list[Job] = []
    needle = what.text.casefold()
    for row in tx.execute(sql, (*params, TEXT_WINDOW)).fetchall():
        job = rows.job(row)
        if _matches(job, needle):
            found.append(job)
            if len(found) == limit:
                break
    return found


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
        conditions.append(condition)
        params.extend(values)

    for column, values in (
        ("state", [state.value for state in what.states]),
        ("kind", what.kinds),
        ("queue", what.queues),
    ):
        if values:
            add(f"{column} IN (SELECT value FROM json_each(?))", json.dumps([*values]))
    if what.ids is not None:
        add(f"id IN ({','.join('?' * len(what.ids))})", *(i.bytes for i in what.ids))
    if what.schedule is not None:
        add("schedule = ?", what.schedule)
    if what.parent is not None:
        add("parent = ?", what.parent.bytes)
    if what.since is not None:
        add("enqueued_at >= ?", micros(what.since))
    if what.until is not None:
        add("enqueued_at < ?", micros(what.until))
    if what.parked is not None:
        add("(state = 'scheduled' AND parked > 0) = ?", int(what.parked))
    if after is not None:
        add("id < ?", after.bytes)
    for key, value in what.metadata.items():
        add("id IN (SELECT job_id FROM piecework_metadata WHERE key = ? AND value = ?)", key, value)
    return conditions, params


def count(tx: Tx) -> dict[tuple[str, State], int]:
    """As `Reader.count`."""
    return {(queue, State(state)): n for queue, state, n in tx.execute(COUNT).fetchall()}


def attempts(tx: Tx, job_id: JobId) -> list[Attempt]:
    """As `Reader.attempts`."""
    return [rows.attempt(row) for row in tx.execute(ATTEMPTS, (job_id.bytes,)).fetchall()]


def logs(tx: Tx, job_id: JobId) -> list[tuple[int, LogLine]]:
    """As `Reader.logs`."""
    return [rows.log_line(row) for row in tx.execute(LOGS, (job_id.bytes,)).fetchall()]


def queues(tx: Tx) -> list[QueueInfo]:
    """As `Reader.queues`."""
    jobs: dict[str, dict[State, int]] = {}
    oldest: dict[str, int] = {}
    for queue, state, n, first in tx.execute(LIVE_BY_QUEUE).fetchall():
        jobs.setdefault(queue, {})[State(state)] = n
        if first is not None:
            oldest[queue] = first
    controls = {row[0]: row for row in tx.execute(CONTROLS).fetchall()}
    found: list[QueueInfo] = []
    for name in sorted({*jobs, *controls}):
        _, paused, limit, n, window = controls.get(name, (name, 0, None, None, None))
        found.append(
            QueueInfo(
                name=name,
                paused=bool(paused),
                limit=limit,
                rate=None if n is None else (n, window),
                jobs=jobs.get(name, {}),
                oldest=from_micros(oldest.get(name)),
            )
        )
    return found


def nodes(tx: Tx, now: int) -> list[Node]:
    """As `Reader.nodes`."""
    found: list[Node] = []
    for row in tx.execute(NODES, (now,)).fetchall():
        worker, node, pid, queues_, slots, running, started_at, beat_at, lease, stopping = row
        started, beat = from_micros(started_at), from_micros(beat_at)
        assert started is not None
        assert beat is not None
        found.append(
            Node(
                worker=WorkerId(UUID(bytes=worker)),
                node=node,
                pid=pid,
                queues=None if queues_ is None else tuple(json.loads(queues_)),
                slots=slots,
                running=running,
                started_at=started,
                beat_at=beat,
                lease=_lease(lease),
                stopping=bool(stopping),
            )
        )
    return found


def _lease(value: int) -> timedelta:
    lease = rows.duration(value)
    assert lease is not None
    return lease
