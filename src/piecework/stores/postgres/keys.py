"""Who holds a unique key, and whose turn a serial key is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from piecework.stores.postgres import rows
from piecework.stores.postgres.rows import JOB_COLUMNS
from piecework.stores.postgres.tx import NOW

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from piecework.core.job import Job
    from piecework.stores.postgres.tx import Tx

__all__ = ["holder_of", "look_again", "promote"]

FIND_HOLDER: Final = f"""
WITH {NOW}
SELECT {JOB_COLUMNS}, t.now, j.unique_scope = 'until' AND j.unique_until <= t.now
FROM t LEFT JOIN piecework.piecework_job j ON j.kind = $2 AND j.unique_held = $3"""
FREE_UNIQUE: Final = """
UPDATE piecework.piecework_job SET unique_held = NULL WHERE id = $1 AND unique_held = $2"""
PROMOTE: Final = "SELECT piecework.piecework_promote($1)"
LOOK_AGAIN: Final = "SELECT piecework.piecework_look_again($1)"


async def holder_of(tx: Tx, kind: str, key: str) -> tuple[Job | None, datetime]:
    """Return the job that holds the unique key now, and now; a passed window frees the key."""
    (row,) = await tx.stamped(FIND_HOLDER, kind, key)
    now, lapsed = row[-2:]
    if row[0] is None:
        return None, now
    if lapsed:
        await tx.fetch(FREE_UNIQUE, row[0], key)
        return None, now
    return rows.job(row), now


async def promote(tx: Tx, keys: Iterable[str]) -> int:
    """Each of these keys that nobody holds has gone to its next job, if one is blocked."""
    ordered = sorted(keys)
    if not ordered:
        return 0
    promoted: int = (await tx.one(PROMOTE, ordered))[0]
    return promoted


async def look_again(tx: Tx, keys: Iterable[str]) -> int:
    """As `promote`, after waiting for whoever is ending a holder at this moment."""
    promoted: int = (await tx.one(LOOK_AGAIN, sorted(keys)))[0]
    return promoted
