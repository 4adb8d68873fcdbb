"""The SQLite store passes the suite that every store passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework.stores.sqlite import SqliteStore
from piecework.testing import FakeClock, StoreConformance


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    async def store(self, clock: FakeClock, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "jobs.db", clock=clock)
        yield store
        await store.close()
