"""The SQLite store passes the suite that every store passes, and goes along with the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from piecework.stores.sqlite import SqliteStore
from piecework.testing import FakeClock, StoreConformance, make_machine


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    async def store(self, clock: FakeClock, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "jobs.db", clock=clock)
        yield store
        await store.close()


@asynccontextmanager
async def fresh(clock: FakeClock) -> AsyncIterator[SqliteStore]:
    with TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "jobs.db", clock=clock)
        yield store
        await store.close()


TestHistories = make_machine(fresh).TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
