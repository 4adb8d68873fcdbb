"""An app whose clock the test holds, on each store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework import Piecework
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore
from piecework.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def clocked(url: str, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Piecework]:
    """An app that lives by `clock`."""
    memory = url == "memory://"
    store = MemoryStore(clock) if memory else SqliteStore(tmp_path / "clocked.db", clock=clock)
    async with Piecework(store=store) as app:
        yield app
