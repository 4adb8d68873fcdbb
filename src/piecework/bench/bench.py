"""What every measurement is given: how much, where, and whom to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from piecework.bench.place import url_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from piecework.bench.place import Place
    from piecework.bench.scale import Scale

__all__ = ["Bench"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """`place` is None for memory://; `tell` is told what is being done just now."""

    scale: Scale
    place: Place | None
    peers: bool
    tell: Callable[[str], None]

    def store(self, part: str = "") -> str:
        """Return the URL of a new, empty store."""
        return "memory://" if self.place is None else url_of(self.place.fresh(part))

    @staticmethod
    def url(file: Path) -> str:
        """Return the store URL of a file."""
        return url_of(file)

    def file(self, part: str = "-bare") -> Path:
        """Return the path of a new, empty SQLite file for a yardstick."""
        assert self.place is not None
        return self.place.fresh(part)
