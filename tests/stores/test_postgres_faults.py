"""What only PostgreSQL can do to us: bad statistics, other sessions, restarts, lost replies."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from piecework.core.errors import DuplicateJob, SchemaOutdated, StoreUnavailable
from piecework.core.job import State, WorkerId
from piecework.core.lifecycle import Completed, settle
from piecework.ports import Ask, Filter, Hint, QueueChange
from piecework.stores.postgres import PostgresStore
from piecework.stores.postgres import settings as store_settings
from piecework.stores.postgres.claiming import CLAIM_ANY
from piecework.stores.postgres.hints import channel
from piecework.stores.postgres.shapes import Shape, move_sql
from piecework.stores.postgres.tx import named
from piecework.testing import new_job
from tests.stores.cluster import Cluster, running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(durable=True) as cluster:
        yield cluster


class Place:
    """A namespace of its own, and a session beside the store's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"f{uuid4().hex[:12]}"
        self.stores: list[PostgresStore] = []

    def store(self, **options: Any) -> PostgresStore:
        store = PostgresStore(self.url, namespace=self.namespace, **options)
        self.stores.append(store)
        return store

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        connection: Any = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def sql(self, text: str, *params: Any) -> list[Any]:
        async with self.session() as connection:
            rows: list[Any] = await connection.fetch(named(text, self.namespace), *params)
            return rows

    async def terminate(self, purpose: str) -> int:
        """End the sessions of the store that are for this purpose."""
        return len(
            await self.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = $1",
                f"piecework {self.namespace} {purpose}",
            )
        )


@pytest.fixture
async def place(cluster: Cluster) -> AsyncIterator[Place]:
    place = Place(cluster.url)
    yield place
    for store in place.stores:
        await store.close()
    await place.sql(f'DROP SCHEMA IF EXISTS "{place.namespace}" CASCADE')


def ask(free: int, **wish: Any) -> Ask:
    return Ask(worker=WorkerId(uuid4()), node="node-1", free=free, **wish)


# ── claims ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("queues", [None, ("default", "other")])
async def test_bad_statistics_do_not_make_a_claim_larger(
    place: Place, queues: tuple[str, ...] | None
) -> None:
    """A planner that runs the locking subquery again for each row would claim them all (F25)."""
    store = place.store()
    await store.open()
    await place.sql("ALTER TABLE piecework.piecework_job SET (autovacuum_enabled = off)")
    await place.sql("ANALYZE piecework.piecework_job")  # it is empty, says the planner from now on
    await store.insert([new_job() for _ in range(3_000)])
    for wanted in (1, 7, 100):
        for _ in range(8):  # more often than a plan takes to become generic
            assert len(await store.claim(ask(wanted, queues=queues))) == wanted
    # ... and with a session that was told nothing about plans.
    async with place.session() as session:
        for _ in range(8):
            sql = named(CLAIM_ANY, place.namespace)
            assert len(await session.fetch(sql, None, uuid4(), "n", 5, 0)) == 5
    counts = await store.count()
    assert counts["default", State.RUNNING] == 8 * 108 + 40


async def test_plans_follow_indexes_with_stale_statistics(place: Place) -> None:
    """A plan made for an empty table must not scan or sort a full one (F25, F45)."""
    store = place.store()
    await store.open()
    await place.sql("ALTER TABLE piecework.piecework_job SET (autovacuum_enabled = off)")
    await place.sql("ANALYZE piecework.piecework_job")
    await store.insert([new_job() for _ in range(5_000)])
    shape = Shape(
        states=frozenset({State.RUNNING}),
        target=State.COMPLETED,
        columns=(("finished_at", "now"),),
        unless_cancelled=True,
    )
    ids = [uuid4() for _ in range(500)]
    connection: Any = await asyncpg.connect(
        place.url, server_settings=dict(store_settings.STEADY_PLANS)
    )
    for sql, params in (
        (CLAIM_ANY, [None, uuid4(), "n", 500, 500]),
        (move_sql(shape, promote=True), [None, ids, [1] * 500, ["running"] * 500]),
    ):
        rows = await connection.fetch(f"EXPLAIN {named(sql, place.namespace)}", *params)
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan on piecework_job" not in plan, plan
        assert re.search(r"Index Scan using piecework_job_(available|pkey)", plan), plan
        assert "piecework_job_running" not in plan, plan
    await connection.close()


@pytest.mark.parametrize("listen", [True, False])
@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
async def test_claimers_of_a_limited_queue_count_after_the_lock(
    place: Place, level: str, *, listen: bool
) -> None:
    """In one statement both count what was true before the lock: 6 ran under a limit of 3 (I14).

    Nor may a stricter default of the database's make them count what they saw before.
    """
    await place.sql(f"ALTER DATABASE postgres SET default_transaction_isolation = '{level}'")
    stores = [place.store(listen=listen) for _ in range(4)]
    await stores[0].open()
    await stores[0].configure([QueueChange(name="default", running=3)])
    await stores[0].insert([new_job() for _ in range(300)])
    most = 0
    stop = asyncio.Event()

    async def watch() -> None:
        nonlocal most
        count = "SELECT count(*) FROM piecework.piecework_job WHERE state = 'running'"
        async with place.session() as session:
            while not stop.is_set():
                running = await session.fetchval(named(count, place.namespace))
                most = max(most, running)

    async def work(store: PostgresStore) -> int:
        done = 0
        for _ in range(40):
            taken = await store.claim(ask(5))
            done += len(taken)
            assert await store.apply([settle(t, Completed("1"), ended=None) for t in taken]) == []
        return done

    watching = asyncio.create_task(watch())
    done = await asyncio.gather(*(work(store) for store in stores))
    stop.set()
    await watching
    await place.sql("ALTER DATABASE postgres RESET default_transaction_isolation")
    assert sum(done) >= 100
    assert 0 < most <= 3


async def test_a_claim_passes_over_what_others_have_locked(place: Place) -> None:
    """A transaction of the user's that cancels a job must hold up nobody."""
    store = place.store()
    first, second = await store.insert([new_job(), new_job()])
    async with place.session() as session, session.transaction():
        lock = named(
            "SELECT FROM piecework.piecework_job WHERE id = $1 FOR UPDATE", place.namespace
        )
        await session.fetch(lock, first.id)
        assert [taken.id for taken in await store.claim(ask(5))] == [second.id]
        limited = ask(5, rooms={"work": 5})
        assert await asyncio.wait_for(store.claim(limited), 2) == []
    assert [taken.id for taken in await store.claim(limited)] == [first.id]


# ── transactions of the caller's ─────────────────────────────────────────────────────────────


async def test_a_job_shares_the_fate_of_the_callers_transaction(place: Place) -> None:
    """Commit leaves both, rollback neither; a savepoint undoes its own part (I2)."""
    store = place.store()
    await store.open()
    async with place.session() as session:
        for keep in (True, False):
            transaction = session.transaction()
            await transaction.start()
            bound = await store.bind(session)
            (made,) = await bound.insert([new_job(unique_key="k", metadata={"a": "b"})])
            assert made.created
            assert await store.get([made.id]) == []
            await (transaction.commit() if keep else transaction.rollback())
            assert len(await store.get([made.id])) == keep
            if keep:
                await store.claim(ask(1))
                await place.sql("UPDATE piecework.piecework_job SET unique_held = NULL")


async def test_nothing_of_ours_breaks_the_callers_transaction(place: Place) -> None:
    """A duplicate, a bad expiry, an unstorable text: theirs goes on (I2)."""
    store = place.store()
    (holder,) = await store.insert([new_job(unique_key="k")])
    async with place.session() as session, session.transaction():
        bound = await store.bind(session)
        assert not (await bound.insert([new_job(unique_key="k")]))[0].created
        with pytest.raises(DuplicateJob):
            await bound.insert([new_job(), new_job(unique_key="k", on_duplicate="raise")])
        with pytest.raises(ValueError, match="cannot store"):
            await bound.insert([new_job(args="a\0b")])
        (made,) = await bound.insert([new_job()])
        assert await session.fetchval("SELECT 1") == 1
    assert {job.id for job in await store.find(Filter(), after=None, limit=9)} == {
        holder.id,
        made.id,
    }


async def test_a_connection_without_a_transaction_is_refused(place: Place) -> None:
    """Each statement would commit alone, and a rollback undo nothing."""
    store = place.store()
    async with place.session() as session:
        with pytest.raises(ValueError, match="transaction"):
            await (await store.bind(session)).insert([new_job()])


async def test_what_commits_too_late_to_be_seen_is_promoted(place: Place) -> None:
    """A blocked job of a long transaction, whose holder ends meanwhile (I8, L1)."""
    store = place.store()
    (head,) = await store.insert([new_job(serial_key="s")])
    async with place.session() as session, session.transaction():
        bound = await store.bind(session)
        (late,) = await bound.insert([new_job(serial_key="s")])
        (taken,) = await store.claim(ask(1))
        assert taken.id == head.id
        assert await store.apply([settle(taken, Completed("1"), ended=None)]) == []
    assert (await store.get([late.id]))[0].state is State.BLOCKED
    assert (await store.stage(limit=10)).promoted == 1
    assert [one.id for one in await store.claim(ask(5))] == [late.id]


async def test_ends_and_newcomers_of_one_key_lose_no_turn(place: Place) -> None:
    """Without a stage: each newcomer is seen by the end, or sees it (I8)."""
    makers, store = place.store(), place.store()
    await store.open()
    left = 150

    async def make() -> None:
        for _ in range(left):
            await makers.insert([new_job(serial_key="s")])

    making = asyncio.create_task(make())
    async with asyncio.timeout(20):
        while left:
            for taken in await store.claim(ask(5)):
                left -= 1
                assert await store.apply([settle(taken, Completed("1"), ended=None)]) == []
    await making


# ── hints ────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def listening(store: PostgresStore) -> AsyncIterator[asyncio.Queue[Hint]]:
    heard: asyncio.Queue[Hint] = asyncio.Queue()

    async def listen() -> None:
        async for hint in store.hints():
            heard.put_nowait(hint)

    task = asyncio.create_task(listen())
    await asyncio.wait_for(heard.get(), 5)  # it tells what may have been missed before it listened
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_another_process_is_heard_at_once(place: Place) -> None:
    """A hint goes from store to store, within a moment of the commit."""
    here, there = place.store(), place.store()
    await there.open()
    async with listening(here) as heard:
        await there.insert([new_job()])
        assert (await asyncio.wait_for(heard.get(), 2)).what == {"work"}


async def test_a_transaction_of_the_callers_is_heard_at_its_commit(place: Place) -> None:
    here, there = place.store(), place.store()
    await there.open()
    async with listening(here) as heard, place.session() as session:
        async with session.transaction():
            await (await there.bind(session)).insert([new_job()])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(heard.get(), 0.1)
        assert (await asyncio.wait_for(heard.get(), 2)).what == {"work"}


async def test_a_terminated_listener_comes_back_and_catches_up(place: Place) -> None:
    """It listens anew, tells what may have been missed, and does not spin (F19, L4)."""
    here, there = place.store(), place.store()
    await there.open()
    async with listening(here) as heard:
        for _ in range(2):
            assert await place.terminate("listen") == 1
            assert "work" in (await asyncio.wait_for(heard.get(), 5)).what  # missed, perhaps
            await there.configure([QueueChange(name="q", paused=True)])
            while "control" not in (await asyncio.wait_for(heard.get(), 5)).what:
                pass
        assert await place.terminate("listen") == 1


async def test_a_foreign_notification_is_no_hint(place: Place) -> None:
    """Anybody may notify: it is parsed strictly (S11)."""
    here = place.store()
    async with listening(here) as heard:
        async with place.session() as session:
            for text in ("", "x" * 7_000, "zzz:", "\u2603", ":::", "w:stranger"):
                await session.fetch("SELECT pg_notify($1, $2)", channel(place.namespace), text)
        assert (await asyncio.wait_for(heard.get(), 2)).what == {"work"}
        assert heard.empty()


async def test_notifications_are_debounced(place: Place) -> None:
    """The first at once, then at most one in 5 ms: they are commits, too (F28)."""
    store = place.store()
    await store.insert([new_job()])
    voice = store._lanes.here().voice
    before, began = voice.sent, asyncio.get_running_loop().time()
    await asyncio.gather(*(store.insert([new_job()]) for _ in range(500)))
    took = asyncio.get_running_loop().time() - began
    assert 1 <= voice.sent - before <= took / 0.005 + 2


# ── faults ───────────────────────────────────────────────────────────────────────────────────


async def test_a_lost_reply_of_an_insert_and_a_settle(place: Place) -> None:
    """The commit happened, the answer did not come: it takes effect once (I2, I5, F21)."""
    store = place.store()
    await store.open()
    lose_next_reply(store)
    new = new_job(unique_key="k", on_duplicate="raise")
    (answer,) = await store.insert([new])
    assert answer.id == new.id
    (taken,) = await store.claim(ask(5))
    lose_next_reply(store)
    refused = await store.apply([settle(taken, Completed("1"), ended=None)])
    assert [(one.job.state, one.job.fence) for one in refused if one.job] == [
        (State.COMPLETED, taken.fence)
    ]
    assert (await store.count()) == {("default", State.COMPLETED): 1}


def lose_next_reply(store: PostgresStore) -> None:
    """The connection breaks just after the next statement was committed."""
    pool = store._lanes.here().lane.work
    acquire = pool.acquire

    async def broken() -> Any:
        connection = await acquire()
        pool.acquire = acquire  # type: ignore[method-assign]
        return _Broken(connection)

    pool.acquire = broken  # type: ignore[method-assign]


class _Broken:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, *args: Any) -> Any:
        await self._connection.fetch(*args)
        self._connection.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of it")


async def test_terminated_sessions_are_replaced(place: Place) -> None:
    """Whoever works next does not notice (F18)."""
    store = place.store()
    await store.insert([new_job()])
    for _ in range(3):
        assert await place.terminate("work") >= 1
        await asyncio.sleep(0.05)
        await store.insert([new_job()])
    assert (await store.count())["default", State.AVAILABLE] == 4


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
async def test_a_restart_of_the_server_during_use(place: Place, cluster: Cluster, how: str) -> None:
    """Nothing acknowledged is lost, and all go on by themselves (I1, F18)."""
    store = place.store(patience_seconds=20)
    await store.open()
    acknowledged: list[Any] = []
    stop = asyncio.Event()

    async def produce() -> None:
        while not stop.is_set():
            new = new_job()
            await store.insert([new])
            acknowledged.append(new.id)

    async with listening(store) as heard:
        producing = asyncio.create_task(produce())
        await asyncio.sleep(0.2)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, restart, cluster, how)
        before = len(acknowledged)
        async with asyncio.timeout(20):
            while len(acknowledged) < before + 5:
                assert not producing.done(), producing.exception()
                await asyncio.sleep(0.02)
        stop.set()
        await producing
        while not heard.empty():
            heard.get_nowait()
        other = place.store()
        async with asyncio.timeout(10):
            while heard.empty():  # the listener is back
                await other.insert([new_job()])
                await asyncio.sleep(0.1)
    assert {job.id for job in await store.get(acknowledged)} == set(acknowledged)


def restart(cluster: Cluster, how: str) -> None:
    if how == "kill":
        cluster.kill()
    else:
        cluster.stop(how)
    cluster.start()


async def test_ids_go_beyond_32_and_53_bits(place: Place) -> None:
    """Sequences and counters have 64 bits everywhere (F26)."""
    store = place.store()
    (made,) = await store.insert([new_job()])
    for beyond in (2**31 - 2, 2**53 + 1):
        await place.sql(
            f"ALTER TABLE piecework.piecework_log ALTER COLUMN seq RESTART WITH {beyond}"
        )
        await place.sql(
            "UPDATE piecework.piecework_job SET fence = $1, attempt = 0, state = 'available'",
            beyond,
        )
        (taken,) = await store.claim(ask(1))
        assert (taken.id, taken.fence) == (made.id, beyond + 1)
        assert await store.apply([settle(taken, Completed("1"), ended=None)]) == []


async def test_two_processes_that_migrate_at_once(place: Place) -> None:
    """One makes the tables, the others find them (F48)."""
    stores = [place.store() for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    rows = await place.sql("SELECT version FROM piecework.piecework_schema")
    assert [row[0] for row in rows] == [1]


async def test_a_newer_schema_is_refused_unless_it_says_that_it_serves_us(place: Place) -> None:
    """One release's workers run on the next one's schema (F48)."""
    await place.store().open()
    await place.sql("INSERT INTO piecework.piecework_schema VALUES (1000, 1)")
    await place.store().open()
    await place.sql("UPDATE piecework.piecework_schema SET works_from = 999 WHERE version = 1000")
    with pytest.raises(SchemaOutdated, match="upgrade piecework"):
        await place.store().open()


async def test_migrate_off_makes_no_tables(place: Place) -> None:
    with pytest.raises(SchemaOutdated, match="migrate=off"):
        await place.store(migrate=False).insert([new_job()])


async def test_tables_of_another_program_are_left_alone(place: Place) -> None:
    await place.sql(f'CREATE SCHEMA "{place.namespace}"')
    await place.sql("CREATE TABLE piecework.piecework_job (x int)")
    with pytest.raises(StoreUnavailable, match="not Piecework's"):
        await place.store().open()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://postgres@/nowhere?host={folder}", "create it"),
        ("postgresql://nobody@/postgres?host={folder}", "check the user"),
        ("postgresql://postgres@no-such-host.invalid/postgres", "check the host"),
        ("postgresql://postgres:secret@127.0.0.1:1/postgres", "start it"),
        ("postgresql://postgres@/postgres?host={folder}/none", "start it"),
    ],
)
async def test_an_unreachable_database_says_what_to_do(
    cluster: Cluster, url: str, says: str
) -> None:
    """In one line, at once, and without the password."""
    store = PostgresStore(url.format(folder=cluster.folder))
    with pytest.raises(StoreUnavailable, match=says) as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) + repr(store)


async def test_a_user_without_rights_is_told(place: Place) -> None:
    await place.sql(f"CREATE ROLE {place.namespace} LOGIN")
    url = place.url.replace("postgres@", f"{place.namespace}@")
    store = PostgresStore(url, namespace=place.namespace)
    with pytest.raises(StoreUnavailable, match="GRANT CREATE"):
        await store.open()
    await store.close()
    await place.sql(f"DROP ROLE {place.namespace}")


async def test_an_unstorable_text_is_the_callers_error(place: Place) -> None:
    """Not the store's: nobody tries it again (F13), and the connection is still good."""
    store = place.store()
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(ValueError, match="cannot store"):
            await store.insert([new_job(args=bad)])
    with pytest.raises(ValueError, match="cannot store"):
        await store.insert([new_job(unique_key="k" * 500_000)])
    assert (await store.insert([new_job()]))[0].created


async def test_namespaces_stand_side_by_side(place: Place) -> None:
    other = Place(place.url)
    first, second = place.store(), other.store()
    await first.insert([new_job()])
    assert await second.count() == {}
    assert await first.claim(ask(1))
    await second.close()
    await other.sql(f'DROP SCHEMA "{other.namespace}" CASCADE')


def test_each_event_loop_has_its_own_connections(cluster: Cluster) -> None:
    """A store may be used from one asyncio.run after the other, and leaves nothing open."""
    place = Place(cluster.url)
    store = place.store()
    for _ in range(3):
        asyncio.run(_insert_one(store))
    left = asyncio.run(
        place.sql(
            "SELECT FROM pg_stat_activity WHERE application_name LIKE $1",
            f"piecework {place.namespace}%",
        )
    )
    assert left == []
    assert asyncio.run(store.count()) == {("default", State.AVAILABLE): 3}
    asyncio.run(place.sql(f'DROP SCHEMA "{place.namespace}" CASCADE'))


async def _insert_one(store: PostgresStore) -> None:
    await store.insert([new_job()])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_the_parents_connections_alone(cluster: Cluster) -> None:
    """The child opens its own, and its end closes none of the parent's (F52)."""
    place = Place(cluster.url)
    store = place.store()
    with asyncio.Runner() as runner:
        runner.run(_insert_one(store))
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(store,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        runner.run(_insert_one(store))
        assert runner.run(store.count()) == {("default", State.AVAILABLE): 3}
        runner.run(place.sql(f'DROP SCHEMA "{place.namespace}" CASCADE'))


def _in_child(store: PostgresStore) -> None:
    asyncio._set_running_loop(None)
    asyncio.run(_insert_one(store))
