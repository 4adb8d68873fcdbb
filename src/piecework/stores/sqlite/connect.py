"""Open a file safely: refuse what is no database of ours, set durability, bring the schema."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework.core.errors import SchemaOutdated, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from piecework.stores.sqlite.tx import Cursor, Tx

__all__ = ["Connection", "Settings", "migrate", "open_reader", "open_writer", "translate"]

OLDEST_SQLITE: Final = (3, 38, 0)
_COLUMN: Final = re.compile(r"^ {4}([a-z_]+) [A-Z]", re.MULTILINE)
_TABLE: Final = re.compile(r"CREATE TABLE (piecework_\w+) \((.*?)\n\)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to open the file. `busy_seconds` is how long a write waits for another's transaction."""

    path: Path
    prefix: str = "piecework"
    busy_seconds: float = 30.0
    migrate: bool = True


class Connection:
    """A Tx over one sqlite3 connection; table names get the namespace's prefix."""

    __slots__ = ("_cache", "_prefix", "raw")

    def __init__(self, raw: sqlite3.Connection, prefix: str) -> None:
        self.raw = raw
        self._prefix = None if prefix == "piecework" else f"{prefix}_"
        self._cache: dict[str, str] = {}

    def execute(self, sql: str, params: Sequence[Any] | dict[str, Any] = ()) -> Cursor:
        """Run one statement."""
        return self.raw.execute(sql if self._prefix is None else self.named(sql), params)

    def named(self, sql: str) -> str:
        """Return the statement with the namespace's table names."""
        if self._prefix is None:
            return sql
        renamed = self._cache.get(sql)
        if renamed is None:
            renamed = self._cache[sql] = sql.replace("piecework_", self._prefix)
        return renamed


def open_writer(settings: Settings) -> Connection:
    """Return a connection that writes durably: WAL, synchronous FULL, the schema in place."""
    _check_place(settings.path)
    connection = _connect(settings)
    try:
        _use_wal(connection.raw, settings)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer's thread sees to it
        migrate(connection, settings)
        connection.execute("PRAGMA busy_timeout = 0")  # the writer waits where it may
    except BaseException:
        connection.raw.close()
        raise
    return connection


def open_reader(settings: Settings) -> Connection:
    """Return a connection that cannot write; the schema is in place already."""
    connection = _connect(settings)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(settings: Settings) -> Connection:
    path = settings.path
    try:
        if not path.exists():
            # Made here, not by SQLite, so that nobody else can ever read what jobs carry.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        raw = sqlite3.connect(
            path,
            timeout=settings.busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        # A text with broken UTF-8, put in by hand, must not stop a whole claim.
        raw.text_factory = _text
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.Error, OSError) as error:
        raise translate(error, settings) from error
    return Connection(raw, settings.prefix)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _check_place(path: Path) -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        raise StoreUnavailable(
            f"this Python has SQLite {sqlite3.sqlite_version}: Piecework needs {wanted} or newer"
        )
    if path.is_dir():
        raise StoreUnavailable(f"{path} is a folder: name a file in it, such as {path / 'jobs.db'}")
    folder = path.parent
    if not folder.is_dir():
        raise StoreUnavailable(f"the folder {folder} does not exist: make it first")
    if not os.access(folder, os.W_OK):
        raise StoreUnavailable(
            f"the folder {folder} is read-only: SQLite writes its log beside the file, "
            "so choose a folder this user may write to"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise StoreUnavailable(f"{path} is read-only: make it writable or choose another file")


def _use_wal(raw: sqlite3.Connection, settings: Settings) -> None:
    """Many processes may open a new file at once, and this switch does not wait by itself."""
    deadline = time.monotonic() + settings.busy_seconds
    while True:
        try:
            (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise translate(error, settings) from error
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise StoreUnavailable(
                f"{settings.path} cannot use write-ahead logging (it stays in mode {mode!r}): "
                "put it on a local disk, not on a network share"
            )
        return


def translate(error: BaseException, settings: Settings) -> StoreUnavailable:
    """Return what went wrong in words that say what to do."""
    text = str(error)
    path = settings.path
    if isinstance(error, StoreUnavailable):
        return error
    if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY_SNAPSHOT":
        return StoreUnavailable(
            f"somebody else has written to {path} since this transaction began by reading: roll it "
            'back and run it again, or begin it with "BEGIN IMMEDIATE"'
        )
    if "locked" in text or "busy" in text:
        return StoreUnavailable(
            f"{path} stayed busy for {settings.busy_seconds:g} s: another connection holds a write "
            "transaction open. Commit it first; to enqueue inside your own transaction use "
            "app.within(connection)"
        )
    if "not a database" in text or "malformed" in text:
        return StoreUnavailable(
            f"{path} is no intact SQLite database: choose another file ({text})"
        )
    if "full" in text:
        return StoreUnavailable(f"no space left for {path}: nothing of this was stored; free some")
    if "disk I/O" in text or "unable to open" in text or "readonly" in text:
        return StoreUnavailable(f"{path} cannot be written ({text}): check the disk and its rights")
    return StoreUnavailable(f"{path}: {text}")


# ── schema ───────────────────────────────────────────────────────────────────────────────────


def _scripts() -> list[tuple[int, str]]:
    folder = resources.files("piecework.stores") / "migrations" / "sqlite"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name[:4]), (folder / name).read_text("utf-8")) for name in names]


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines():
        if not pending and (not line or line.startswith("--")):
            continue
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def schema_version(tx: Tx, prefix: str) -> int | None:
    """Return the version of the tables, 0 where there are none, None where they are not ours."""
    like = prefix.replace("_", r"\_") + r"\_%"
    sql = r"SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ? ESCAPE '\'"
    tables = {name for (name,) in tx.execute(sql, (like,)).fetchall()}
    if not tables & {f"{prefix}_job", f"{prefix}_schema"}:
        return 0
    if f"{prefix}_schema" not in tables:
        return None
    try:
        (version,) = tx.execute("SELECT max(version) FROM piecework_schema").fetchone()
    except Exception:  # noqa: BLE001 - a table of that name, but of another shape
        return None
    return version if isinstance(version, int) else None


def migrate(tx: Tx, settings: Settings, *, inside: bool = False) -> None:
    """The tables are those of this release; `inside` a caller's transaction, without our own.

    Raises SchemaOutdated for a newer schema, or an older one with migrate=off, and
    StoreUnavailable for tables of another shape.
    """
    scripts = _scripts()
    newest = scripts[-1][0]
    version = schema_version(tx, settings.prefix)
    if version != newest:
        _refuse(version, newest, settings)
        if not inside:
            tx.execute("BEGIN IMMEDIATE")
        try:
            version = schema_version(tx, settings.prefix)  # another process may have been first
            _refuse(version, newest, settings)
            for number, script in scripts:
                if version is not None and number > version:
                    for statement in _statements(script):
                        tx.execute(statement)
                    applied = (number, time.time_ns() // 1000)
                    tx.execute("INSERT INTO piecework_schema VALUES (?, ?)", applied)
        except BaseException:
            if not inside:
                tx.execute("ROLLBACK")
            raise
        if not inside:
            tx.execute("COMMIT")
    _check_shape(tx, settings, scripts)


def _refuse(version: int | None, newest: int, settings: Settings) -> None:
    if version is None:
        raise _foreign(settings, f"{settings.prefix}_schema")
    if version > newest:
        raise SchemaOutdated(
            f"{settings.path} has schema {version}, this release knows {newest}: "
            "upgrade piecework to the release that made it"
        )
    if version < newest and not settings.migrate:
        raise SchemaOutdated(
            f"{settings.path} has schema {version}, this release needs {newest} and "
            "?migrate=off forbids to change it: open it once without that option"
        )


def _foreign(settings: Settings, table: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{settings.path} has a table {table} that is not Piecework's: "
        'choose another file, or other names with Piecework(..., namespace="...")'
    )


def _check_shape(tx: Tx, settings: Settings, scripts: list[tuple[int, str]]) -> None:
    for _, script in scripts:
        for table, body in _TABLE.findall(script):
            name = table.replace("piecework_", f"{settings.prefix}_", 1)
            there = {row[1] for row in tx.execute(f"PRAGMA table_info({name})").fetchall()}
            if not set(_COLUMN.findall(body)) <= there:
                raise _foreign(settings, name)
