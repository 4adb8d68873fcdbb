"""Where the benchmark's files lie: at the path given and beside it, marked, and gone afterwards."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ForeignFile", "Place"]

_MARK: Final = 0x50576275
"""SQLite's application_id of a file that a benchmark made."""
_PARTS: Final = ("", "-bare", "-huey", "-full")
_COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


class ForeignFile(Exception):
    """A file that is not the benchmark's stands where it would write."""


class Place:
    """The files of one benchmark: `with Place(path) as place: place.fresh()`.

    ForeignFile, before anything is touched, where one of them is somebody else's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        for file in self._files():
            if file.exists() and not _is_ours(file):
                raise ForeignFile(
                    f"{file} exists and is no benchmark's file: give a path that is free"
                )
        if not path.parent.is_dir():
            raise ForeignFile(f"the folder {path.parent} does not exist: make it first")

    def __enter__(self) -> Self:
        """What an interrupted run left here is gone."""
        self.clear()
        return self

    def __exit__(self, *_: object) -> None:
        """So is what this one made."""
        self.clear()

    def fresh(self, part: str = "") -> Path:
        """Return the path of a new, empty database."""
        file = Path(f"{self._path}{part}")
        _remove(file)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(f"PRAGMA application_id = {_MARK}")
        return file

    def clear(self) -> None:
        """Remove every file of the benchmark's."""
        for file in self._files():
            _remove(file)

    def _files(self) -> Iterator[Path]:
        for part in _PARTS:
            yield Path(f"{self._path}{part}")


def url_of(file: Path) -> str:
    """Return the store URL of a file."""
    return f"sqlite:///{quote(str(file))}"


def _is_ours(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            (mark,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error:
        return False
    return bool(mark == _MARK)


def _remove(file: Path) -> None:
    for companion in _COMPANIONS:
        Path(f"{file}{companion}").unlink(missing_ok=True)
