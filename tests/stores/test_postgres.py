"""The PostgreSQL store passes the suite that every store passes, with hints and without."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from piecework.stores.postgres import PostgresStore
from piecework.testing import FakeClock, StoreConformance, make_machine
from tests.stores.cluster import running

TABLES = ("job", "metadata", "attempt", "log", "worker", "queue")
EMPTY = "TRUNCATE " + ", ".join(f"{{0}}.piecework_{name}" for name in TABLES)
HISTORIES = int(os.environ.get("HISTORIES", "25"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a server whose data may go."""
    if given := os.environ.get("PIECEWORK_TEST_POSTGRES"):
        yield given
        return
    with running() as cluster:
        yield cluster.url


class Fresh:
    """One namespace that is emptied between tests: faster than to make one for each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"t{uuid4().hex[:12]}"
        self.made = False

    @asynccontextmanager
    async def store(self, clock: FakeClock | None, **options: bool) -> AsyncIterator[PostgresStore]:
        if self.made:
            await self.sql(EMPTY.format(self.namespace))
        self.made = True
        store = PostgresStore(self.url, clock=clock, namespace=self.namespace, **options)
        await store.open()
        yield store
        await store.close()

    async def sql(self, text: str) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(text)
        await connection.close()


@pytest.fixture(scope="session")
def fresh(server: str) -> Fresh:
    return Fresh(server)


class TestPostgresStore(StoreConformance):
    @pytest.fixture
    async def store(self, clock: FakeClock, fresh: Fresh) -> AsyncIterator[PostgresStore]:
        async with fresh.store(clock) as store:
            yield store


class TestPostgresStoreThatDoesNotListen(StoreConformance):
    @pytest.fixture
    async def store(self, clock: FakeClock, fresh: Fresh) -> AsyncIterator[PostgresStore]:
        async with fresh.store(clock, listen=False) as store:
            yield store


@pytest.mark.parametrize("listen", [True, False])
def test_histories_go_along_with_the_model(fresh: Fresh, listen: bool) -> None:  # noqa: FBT001 - a parameter of the test
    @asynccontextmanager
    async def store(clock: FakeClock) -> AsyncIterator[PostgresStore]:
        async with fresh.store(clock, listen=listen) as store:
            yield store

    few = settings(max_examples=HISTORIES, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(make_machine(store), settings=few)
