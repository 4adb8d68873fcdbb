"""The memory store passes the shipped suite, and goes along with the model."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from piecework.stores.memory import MemoryStore
from piecework.testing import FakeClock, StoreConformance, make_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestMemoryStore(StoreConformance):
    many_keys = 100_000

    @pytest.fixture
    async def store(self, clock: FakeClock) -> MemoryStore:
        return MemoryStore(clock)


@asynccontextmanager
async def fresh(clock: FakeClock) -> AsyncIterator[MemoryStore]:
    yield MemoryStore(clock)


TestHistories = make_machine(fresh).TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
