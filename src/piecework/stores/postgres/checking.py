"""What an operator should know about the server and its settings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from piecework.ports import Finding

if TYPE_CHECKING:
    from piecework.ports import Clock
    from piecework.stores.postgres.settings import Settings
    from piecework.stores.postgres.tx import Tx

__all__ = ["findings"]

SETTINGS: Final = """
SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN (
    'server_version', 'server_encoding', 'autovacuum', 'fsync', 'synchronous_commit',
    'max_connections', 'track_counts')"""
STATE: Final = """
SELECT clock_timestamp(), pg_is_in_recovery(),
    (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
    (SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8
     FROM pg_catalog.pg_stat_activity WHERE backend_xmin IS NOT NULL),
    (SELECT max(version) FROM piecework.piecework_schema),
    pg_total_relation_size('piecework.piecework_job')"""
LONG_SECONDS: Final = 300
CLOCK_SECONDS: Final = 5


async def findings(tx: Tx, settings: Settings, clock: Clock) -> list[Finding]:
    """As `Store.check`."""
    given: dict[str, Any] = dict(await tx.fetch(SETTINGS))
    began = time.perf_counter()
    now, standby, clients, oldest, version, size = await tx.one(STATE)
    latency = time.perf_counter() - began
    away = abs((now - clock.now()).total_seconds()) if tx.at is None else 0.0
    most = int(given["max_connections"])
    found = [
        Finding("ok", "server", f"PostgreSQL {given['server_version']} at {settings.shown}"),
        Finding(
            "ok", "schema", f"{settings.namespace}, version {version}, jobs take {size:,} bytes"
        ),
        Finding(
            "warning" if latency > 0.02 else "ok", "latency", f"{latency * 1000:.1f} ms a statement"
        ),
        Finding(
            "warning" if away > CLOCK_SECONDS else "ok",
            "clock",
            f"{away:.1f} s between the server's and this machine's; the server's counts",
        ),
        Finding(
            "warning" if clients > 0.8 * most else "ok",
            "connections",
            f"{clients} of {most} are in use",
        ),
    ]
    if standby:
        found.append(Finding("error", "standby", "the server only reads: name the primary"))
    if given["server_encoding"] != "UTF8":
        found.append(
            Finding("error", "encoding", f"{given['server_encoding']}: create it with UTF8")
        )
    for name, wanted, level, why in (
        ("autovacuum", "on", "error", "dead rows would slow every claim down"),
        ("track_counts", "on", "error", "autovacuum cannot work without it"),
        ("fsync", "on", "warning", "a power cut would destroy the database"),
        ("synchronous_commit", "on", "warning", "a crash loses what was acknowledged last"),
    ):
        if given[name] != wanted and given[name] not in {"remote_write", "remote_apply"}:
            text = f"is {given[name]}, not {wanted}: {why}"
            found.append(Finding("warning" if level == "warning" else "error", name, text))
    if oldest is not None and oldest > LONG_SECONDS:
        text = f"one has been open for {oldest:.0f} s: vacuum cannot remove dead rows meanwhile"
        found.append(Finding("warning", "transactions", text))
    return found
