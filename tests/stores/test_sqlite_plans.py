"""No statement of the SQLite store reads the whole table, whatever the figures say (F25)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from piecework.core.job import State
from piecework.stores.sqlite import applying, claiming, keys, reading, upkeep
from piecework.stores.sqlite.connect import Settings, open_writer
from piecework.stores.sqlite.rows import JOB_COLUMNS

# Counting everything, exactly, is what `app.count()` is for; `app.queues.list()` counts the live.
READS_ALL = {"COUNT", "LIVE_BY_QUEUE"}


def statements() -> Iterator[tuple[str, str]]:
    for module in (applying, claiming, keys, reading, upkeep):
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, str) and name not in READS_ALL:
                sql = value.replace("{ids}", "?,?")
                if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)", sql):
                    yield f"{module.__name__.rpartition('.')[2]}.{name}", sql
    newest = "SELECT {} FROM piecework_job ORDER BY id DESC LIMIT ?"
    yield "find newest", newest.format(JOB_COLUMNS)
    for target in State:
        columns = (("fence", False), ("reason", True))
        parts = applying._update_parts(
            frozenset({State.RUNNING}), target, columns, unless_cancelled=True
        )
        yield f"apply to {target}", applying._update_sql(parts, 8)


@pytest.fixture(scope="module", params=["fresh", "analysed empty", "analysed full"])
def connection(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    """With no figures, with figures of an empty table, and with those of a full one."""
    path: Path = tmp_path_factory.mktemp("plans") / "jobs.db"
    raw = open_writer(Settings(path=path)).raw
    if request.param == "analysed full":
        raw.execute(
            """INSERT INTO piecework_job (id, kind, queue, state, max_attempts, max_crashes,
                   enqueued_at, due_at, finished_at, args)
               WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
               SELECT randomblob(16), 'k', 'q' || i % 3,
                   CASE WHEN i % 10 THEN 'completed' ELSE 'available' END, 5, 3, i, i,
                   CASE WHEN i % 10 THEN i END, '{}' FROM n"""
        )
    if request.param != "fresh":
        raw.execute("ANALYZE")
    yield raw
    raw.close()


@pytest.mark.parametrize(("name", "sql"), list(statements()))
def test_a_statement_goes_through_an_index(
    connection: sqlite3.Connection, name: str, sql: str
) -> None:
    marks = dict.fromkeys(re.findall(r":([a-z]+)", sql), 1)
    count = max([len(re.findall(r"\?(?!\d)", sql)), *map(int, re.findall(r"\?(\d+)", sql))])
    plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", marks or (1,) * count).fetchall()
    details = [detail for *_, detail in plan]
    assert not [each for each in details if reads_all(each)] or name == "find newest", details
    assert not [each for each in details if "ORDER BY" in each and "claiming" in name], details


def reads_all(detail: str) -> bool:
    """Whether a step goes through every row, or through every finished one."""
    scan = re.match(r"SCAN (piecework_(job|log|attempt|metadata)|j|h)\b", detail)
    live = re.search(
        r"piecework_job_(available|lane|bound|running|due|expiry|blocked|turn)", detail
    )
    return scan is not None and live is None


@pytest.mark.parametrize("held", ["unique_held", "serial_held"])
def test_the_schema_itself_refuses_a_second_holder_of_a_key(tmp_path: Path, held: str) -> None:
    """The last guard of I8 and I10: whatever code asks first, two rows cannot hold one key."""
    raw = open_writer(Settings(path=tmp_path / "jobs.db")).raw
    insert = "INSERT INTO piecework_job ({}, id, kind, queue, state, max_attempts, max_crashes, "
    insert += "enqueued_at, due_at, args) VALUES (?, randomblob(16), 'k', 'q', 'running', 5, 3, 1, "
    insert = insert.format(held) + "1, '{}')"
    raw.execute(insert, ("key",))
    raw.execute(insert, (None,))
    raw.execute(insert, ("other",))
    with pytest.raises(sqlite3.IntegrityError, match=held):
        raw.execute(insert, ("key",))
    raw.close()
