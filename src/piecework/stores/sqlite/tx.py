"""An open write transaction, ours or the caller's, and how to use it with few steps.

SQLite has one writer at a time, so what is read inside cannot change before the commit. A
statement that touches many rows is one step, because each step gives the interpreter lock away
and may wait milliseconds to get it back.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

__all__ = ["CHUNKS", "Cursor", "Tx", "chunks", "savepoint"]

CHUNKS: Final = (512, 128, 32, 8, 1)


class Cursor(Protocol):
    """What a statement gives back."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchall(self) -> Sequence[Any]:
        """Return the rows."""
        ...

    def fetchone(self) -> Any:
        """Return the next row or None."""
        ...


class Tx(Protocol):
    """An open transaction."""

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Cursor:
        """Run one statement."""
        ...


@contextmanager
def savepoint(tx: Tx) -> Generator[None, None, None]:
    """What happens inside is undone as one if it raises."""
    tx.execute("SAVEPOINT piecework_part")
    try:
        yield
    except BaseException as error:
        try:
            tx.execute("ROLLBACK TO piecework_part")
            tx.execute("RELEASE piecework_part")
        except Exception:  # noqa: BLE001 - a full disk has rolled everything back already
            raise error from None
        raise
    tx.execute("RELEASE piecework_part")


def chunks(count: int) -> Iterator[int]:
    """Split a count into few distinct sizes, so that their statements stay prepared."""
    for size in CHUNKS:
        while count >= size:
            yield size
            count -= size
