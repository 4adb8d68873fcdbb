"""The memory store passes the shipped suite."""

from __future__ import annotations

import pytest

from piecework.stores.memory import MemoryStore
from piecework.testing import FakeClock, StoreConformance


class TestMemoryStore(StoreConformance):
    many_keys = 100_000

    @pytest.fixture
    async def store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock)
