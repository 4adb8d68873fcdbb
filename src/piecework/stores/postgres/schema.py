"""Bring the schema: numbered scripts, applied by one process at a time."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from piecework.core.errors import SchemaOutdated, StoreUnavailable

if TYPE_CHECKING:
    from piecework.stores.postgres.settings import Settings
    from piecework.stores.postgres.tx import Tx

__all__ = ["migrate", "refuse", "schema_version"]

# The schema's version, and the oldest release's schema whose workers may run on it.
WORKS_FROM: Final = {1: 1}

TABLES: Final = """
    SELECT c.relname, array_agg(a.attname::text) FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = $1 AND c.relname LIKE 'piecework\\_%' AND c.relkind IN ('r', 'p')
    GROUP BY c.relname"""
VERSION: Final = """
    SELECT version, works_from FROM piecework.piecework_schema ORDER BY version DESC LIMIT 1"""
TURN: Final = "SELECT pg_advisory_xact_lock(hashtextextended('piecework ' || $1, 0))"
HAS_SCHEMA: Final = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1"
APPLIED: Final = "INSERT INTO piecework.piecework_schema (version, works_from) VALUES ($1, $2)"

_TABLE: Final = re.compile(r"CREATE TABLE piecework\.(piecework_\w+) \((.*?)\n\)", re.DOTALL)
_COLUMN: Final = re.compile(r"^ {4}([a-z_]+) [a-z]", re.MULTILINE)


class _Found(NamedTuple):
    version: int
    works_from: int


@cache
def _scripts() -> tuple[tuple[int, str], ...]:
    folder = resources.files("piecework.stores") / "migrations" / "postgres"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple((int(name[:4]), (folder / name).read_text("utf-8")) for name in names)


async def schema_version(tx: Tx, settings: Settings) -> _Found:
    """Return the version of the tables, 0 where there are none. Raises for another program's."""
    tables: dict[str, Any] = dict(await tx.fetch(TABLES, settings.namespace))
    if not tables.keys() & {"piecework_job", "piecework_schema"}:
        return _Found(0, 0)
    if not {"version", "works_from"} <= set(tables.get("piecework_schema", ())):
        raise _foreign(settings, "piecework_schema")
    row = await tx.one(VERSION)
    if row is None:
        raise _foreign(settings, "piecework_schema")
    for _, script in _scripts():
        for table, body in _TABLE.findall(script):
            if not set(_COLUMN.findall(body)) <= set(tables.get(table, ())):
                raise _foreign(settings, table)
    return _Found(row[0], row[1])


async def migrate(tx: Tx, settings: Settings) -> None:
    """The tables are those of this release, or of a later one that still serves it.

    Inside a transaction of its own. Raises SchemaOutdated or StoreUnavailable.
    """
    newest = _scripts()[-1][0]
    found = await schema_version(tx, settings)
    if not _is_behind(found, newest, settings):
        return
    await tx.fetch(TURN, settings.namespace)
    found = await schema_version(tx, settings)  # another process may have been first
    if not _is_behind(found, newest, settings):
        return
    if await tx.one(HAS_SCHEMA, settings.namespace) is None:
        await tx.run(f'CREATE SCHEMA "{settings.namespace}"')
    for number, script in _scripts():
        if number > found.version:
            await tx.run(script)
            await tx.fetch(APPLIED, number, WORKS_FROM[number])


def _is_behind(found: _Found, newest: int, settings: Settings) -> bool:
    refuse(found.version, found.works_from, newest, settings)
    return found.version < newest


def refuse(version: int, works_from: int, newest: int, settings: Settings) -> None:
    """Raise SchemaOutdated for a schema that this release cannot work with."""
    if version > newest and works_from > newest:
        raise SchemaOutdated(
            f"{settings.shown} has schema {version}, this release knows {newest}: "
            "upgrade piecework to the release that made it"
        )
    if version < newest and not settings.migrate:
        raise SchemaOutdated(
            f"{settings.shown} has schema {version}, this release needs {newest} and "
            "migrate=off forbids to change it: open it once without that option"
        )


def _foreign(settings: Settings, table: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{settings.shown} has a table {table} in schema {settings.namespace!r} that is not "
        'Piecework\'s: use other names with Piecework(..., namespace="...")'
    )
