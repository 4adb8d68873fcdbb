"""Who holds a unique key, whose turn a serial key is, and what metadata can be searched for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from piecework.stores.sqlite import rows
from piecework.stores.sqlite.rows import JOB_COLUMNS
from piecework.stores.sqlite.tx import chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from piecework.core.job import Job
    from piecework.stores.sqlite.tx import Tx

__all__ = ["add_metadata", "drop_metadata", "held_keys", "holder_of", "promote"]

FIND_HOLDER: Final = f"""
    SELECT unique_scope = 'until' AND unique_until <= ?, {JOB_COLUMNS}
    FROM piecework_job WHERE kind = ? AND unique_held = ?"""
FREE_UNIQUE: Final = "UPDATE piecework_job SET unique_held = NULL WHERE id = ?"
ADD_METADATA: Final = "INSERT OR IGNORE INTO piecework_metadata (key, value, job_id) VALUES (?,?,?)"
DROP_METADATA: Final = "DELETE FROM piecework_metadata WHERE job_id = ?"
HELD_KEYS: Final = """
    SELECT DISTINCT serial_held FROM piecework_job
    WHERE serial_held IS NOT NULL AND id IN ({ids})"""
PROMOTE: Final = """
    UPDATE piecework_job SET state = 'available', serial_held = serial_key
    WHERE id = (
        SELECT id FROM piecework_job WHERE state = 'blocked' AND serial_key = ?1
        ORDER BY priority DESC, due_at, id LIMIT 1)
    AND NOT EXISTS (SELECT 1 FROM piecework_job WHERE serial_held = ?1)"""


def holder_of(tx: Tx, kind: str, key: str, now: int) -> Job | None:
    """Return the job that holds the unique key now; a window that has passed frees it."""
    row = tx.execute(FIND_HOLDER, (now, kind, key)).fetchone()
    if row is None:
        return None
    lapsed, *columns = row
    holder = rows.job(columns)
    if lapsed:
        tx.execute(FREE_UNIQUE, (holder.id.bytes,))
        return None
    return holder


def add_metadata(tx: Tx, job_id: bytes, metadata: Mapping[str, str] | None) -> None:
    """The job is found by these fields."""
    for key, value in (metadata or {}).items():
        tx.execute(ADD_METADATA, (key, value, job_id))


def drop_metadata(tx: Tx, job_id: bytes) -> None:
    """The job is found by no field."""
    tx.execute(DROP_METADATA, (job_id,))


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
