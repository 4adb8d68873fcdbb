"""The store fails, at any call, before or after it did what was asked: no handler runs twice."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from piecework import Piecework, Retry, Run, Snooze, State, StoreUnavailable
from piecework.engine import loop as loop_module
from piecework.engine import settler as settler_module
from piecework.ports import Hint
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore
from tests.helpers import Around, MakeApp, outcomes, until, until_state

QUICK: dict[str, Any] = {"lease": 3, "beat": 0.05, "poll": 0.02}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("loop", "chores", "reports"):
        monkeypatch.setattr(f"piecework.engine.{module}.backoff", lambda failures: 0.005)


class Failing(Around):
    """Fails call number `nth` of those in `watched`: before it is made, or after."""

    def __init__(self, store: Any, nth: int, *, after: bool, watched: frozenset[str]) -> None:
        super().__init__(store)
        self.nth, self.after, self.watched = nth, after, watched
        self.seen = 0
        self.hit: str | None = None

    async def around(self, name: str, call: Any) -> Any:
        if name not in self.watched:
            return await call()
        self.seen += 1
        if self.seen != self.nth:
            return await call()
        self.hit = name
        if self.after:
            await call()
        raise StoreUnavailable(f"injected at {name}")


@pytest.fixture(params=["memory", "sqlite"])
async def inner(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    store: Any = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db")
    yield store
    await store.close()


def handlers(app: Piecework, runs: Counter[Any]) -> dict[str, Any]:
    """One for each way to end; each counts its starts by (name, attempt)."""

    @app.handler(kind="completes")
    async def completes(run: Run) -> str:
        runs["completes", run.attempt] += 1
        await run.progress(1)
        await run.save("part")
        run.log.info("line")
        return "done"

    @app.handler(kind="retries", retry=Retry(base=0), max_attempts=3)
    async def retries(run: Run) -> str:
        runs["retries", run.attempt] += 1
        if run.attempt < 2:
            raise ValueError("first")
        return "second"

    @app.handler(kind="fails", max_attempts=1)
    async def fails(run: Run) -> None:
        runs["fails", run.attempt] += 1
        raise ValueError("for good")

    @app.handler(kind="snoozes")
    async def snoozes(run: Run) -> str:
        runs["snoozes", runs["snoozes", 1]] += 0
        runs["snoozes", 1] += 1
        if runs["snoozes", 1] < 2:
            raise Snooze(0)
        return "after"

    return {
        "completes": completes,
        "retries": retries,
        "fails": fails,
        "snoozes": snoozes,
    }


WANTED = {
    "completes": (State.COMPLETED, ["completed"]),
    "retries": (State.COMPLETED, ["failed", "completed"]),
    "fails": (State.FAILED, ["failed"]),
    "snoozes": (State.COMPLETED, ["snoozed", "completed"]),
}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_whichever_call_fails_every_job_ends_once(inner: Any, when: str) -> None:
    """F21: call N fails, for N = 1, 2, ... until a run in which nothing failed any more."""
    watched = frozenset({"claim", "apply", "stage", "orphans", "prune", "retire"})
    hits: Counter[str] = Counter()
    for nth in range(1, 200):
        store = Failing(inner, nth, after=when == "after", watched=watched)
        app = store.app()
        runs: Counter[Any] = Counter()
        made = {name: await h.enqueue() for name, h in handlers(app, runs).items()}
        async with asyncio.timeout(20):
            async with app.worker(**QUICK) as worker:
                for handle in made.values():
                    await until_state(handle, "completed", "failed", "cancelled")
                assert worker.settler.refused == 0
        for name, handle in made.items():
            state, attempts = WANTED[name]
            assert ((await handle.get()).state, await outcomes(handle)) == (state, attempts)
            assert (await handle.get()).crashes == 0
        assert runs["completes", 1] == runs["retries", 1] == runs["retries", 2] == 1
        assert runs["fails", 1] == 1
        assert runs["snoozes", 1] == 2
        progress = await made["completes"].progress()
        assert progress is not None
        assert (progress.done, progress.partial) == (1, "part")
        if store.hit is None:
            break
        hits[store.hit] += 1
    else:
        raise AssertionError("there was no end to it")
    assert hits["claim"] >= 1
    assert hits["apply"] >= 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_enqueue_whose_reply_was_lost_is_the_same_job_when_repeated(
    inner: Any, when: str
) -> None:
    """I2."""
    store = Failing(inner, 1, after=when == "after", watched=frozenset({"insert"}))
    app = store.app()

    @app.handler
    async def work(n: int) -> None: ...

    mine = uuid4()
    with pytest.raises(StoreUnavailable):
        await work.using(id=mine).enqueue(1)
    handle = await work.using(id=mine).enqueue(1)
    assert handle.id == mine
    assert handle.created is (when == "before")
    assert len(await app.find()) == 1


async def test_outcomes_wait_for_the_store_and_nothing_is_run_again(
    inner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is away while runs end: the outcomes are written when it is back."""

    class Away(Around):
        away = False

        async def around(self, name: str, call: Any) -> Any:
            if self.away and name != "get":
                raise StoreUnavailable("away")
            return await call()

    store = Away(inner)
    app = store.app()
    runs: list[int] = []
    started, let_go = asyncio.Barrier(6), asyncio.Event()

    @app.handler
    async def work(n: int) -> int:
        runs.append(n)
        await started.wait()
        await let_go.wait()
        return n

    handles = [await work.enqueue(n) for n in range(5)]
    with caplog.at_level(logging.WARNING):
        async with app.worker(lease=60, beat=0.02, poll=0.02) as worker:
            await asyncio.wait_for(started.wait(), 5)
            store.away = True
            let_go.set()
            await until(lambda: worker.busy == 0)
            await until(lambda: len(worker.settler) == 5)
            await until(lambda: "cannot beat" in caplog.text)
            store.away = False
            for n, handle in enumerate(handles):
                assert await handle.result(timeout=5) == n
    assert sorted(runs) == list(range(5))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("settle:")]) == 1, "said once"


async def test_a_shutdown_while_the_store_is_away_gives_up_after_a_lease(inner: Any) -> None:
    class Away(Around):
        away = False

        async def around(self, name: str, call: Any) -> Any:
            if self.away and name not in ("get", "open"):
                raise StoreUnavailable("away")
            return await call()

    store = Away(inner)
    app = store.app()
    started = asyncio.Event()

    @app.handler
    async def work() -> str:
        started.set()
        await asyncio.sleep(0)
        store.away = True
        return "unheard"

    worker = app.make_worker(lease=0.3, beat=0.05, shutdown_timeout=1)
    await worker.start()
    handle = await work.enqueue()
    await asyncio.wait_for(started.wait(), 5)
    await asyncio.wait_for(worker.stop(), 5)
    store.away = False
    assert (await handle.get()).state is State.RUNNING, "the lease will tell"


async def test_a_claim_whose_reply_was_lost_is_given_back_at_the_second_beat(inner: Any) -> None:
    store = Failing(inner, 1, after=True, watched=frozenset())
    app = store.app()

    @app.handler(max_attempts=1)
    async def work() -> str:
        return "ran"

    async with app.worker(lease=60, beat=0.05, poll=0.02) as worker:
        store.watched, store.seen = frozenset({"claim"}), 0
        handle = await work.enqueue()
        assert await handle.result(timeout=5) == "ran"
        assert worker.settler.refused == 0
    view = await handle.get()
    assert (view.attempt, view.crashes) == (1, 0)
    assert store.hit == "claim"


async def test_a_job_whose_claim_is_still_under_way_is_not_given_back(inner: Any) -> None:
    """F06: two beats can be told at once after a blocked loop, before the claim's own answer."""

    class Slow(Around):
        def __init__(self, store: Any) -> None:
            super().__init__(store)
            self.claimed, self.let_go = asyncio.Event(), asyncio.Event()

        async def around(self, name: str, call: Any) -> Any:
            answer = await call()
            if name == "claim" and answer:
                self.claimed.set()
                await self.let_go.wait()
            return answer

    store = Slow(inner)
    app = store.app()
    runs: list[int] = []

    @app.handler
    async def work(run: Run) -> int:
        runs.append(run.fence)
        return run.fence

    async with app.worker(lease=60, beat=0.02) as worker:
        handle = await work.enqueue()
        await asyncio.wait_for(store.claimed.wait(), 5)
        beats = store.times("beat")
        await until(lambda: store.times("beat") >= beats + 4)
        assert (await handle.get()).fence == 1
        store.let_go.set()
        assert await handle.result(timeout=5) == 1
        assert worker.settler.refused == 0
    assert runs == [1]


async def test_an_outcome_no_store_can_hold_is_split_from_its_batch(inner: Any) -> None:
    class Choosy(Around):
        async def apply(self, transitions: Any) -> Any:
            if any(move.changes.get("result") == '"poison"' for move in transitions):
                raise ValueError("this text cannot be stored")
            return await self.inner.apply(transitions)

    store = Choosy(inner)
    app = store.app()
    runs: list[str] = []

    @app.handler
    async def work(text: str) -> str:
        runs.append(text)
        return text

    texts = ["a", "b", "poison", "c", "d"]
    handles = await app.enqueue_many([work.prepare(text) for text in texts])
    await app.run_until_idle()
    states = [(await handle.get()).state for handle in handles]
    assert states == [State.COMPLETED if text != "poison" else State.FAILED for text in texts]
    view = await handles[2].get()
    assert view.attempt == 1
    assert view.error == "Unstorable: its outcome cannot be stored: see the worker's log"
    assert sorted(runs) == sorted(texts)


async def test_without_any_hints_polling_finds_everything(inner: Any) -> None:
    """L4: hints may all be lost, or end, or fail."""

    class Silent(Around):
        how = 0

        async def hints(self) -> AsyncIterator[Hint]:
            self.how += 1
            match self.how % 3:
                case 0:
                    return
                case 1:
                    raise RuntimeError("no hints today")
                case _:
                    await asyncio.sleep(0.01)
            yield Hint(frozenset())

    store = Silent(inner)
    app = store.app()

    @app.handler
    async def work() -> str:
        return "ran"

    @app.handler
    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    async with app.worker(**QUICK):
        first, second = await work.enqueue(), await work.using(delay=0.05).enqueue()
        third = await waits.enqueue()
        assert await first.result(timeout=5) == "ran"
        assert await second.result(timeout=5) == "ran"
        await asyncio.wait_for(started.wait(), 5)
        await third.cancel()
        await until_state(third, "cancelled")
    assert store.how > 3


async def test_a_store_that_cannot_be_opened_is_said_where_the_worker_starts(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app(f"sqlite:///{tmp_path}/no/such/folder/jobs.db")
    with pytest.raises(StoreUnavailable, match="does not exist"):
        async with app.worker():
            raise AssertionError("not reached")


async def test_a_loop_outlives_whatever_its_tick_raises(caplog: pytest.LogCaptureFixture) -> None:
    """L7: and when it last did its work can be seen from outside."""
    ticks: list[int] = []

    async def tick() -> float:
        ticks.append(1)
        if len(ticks) in (2, 3):
            raise ZeroDivisionError
        if len(ticks) == 4:
            raise StoreUnavailable("away")
        return 0.0

    loop = loop_module.Loop("test", tick)
    assert loop.failures == 0
    with caplog.at_level(logging.INFO):
        task = asyncio.create_task(loop.run())
        await until(lambda: len(ticks) > 6)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert loop.last_success is not None
    assert loop.failures == 0
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "test failed; trying again"
    assert lines[-1] == "test works again after 3 failures"
    assert len(lines) == 2, "said once, not a thousand times"


async def test_settled_outcomes_come_in_batches(inner: Any) -> None:
    store = Around(inner)
    app = store.app()

    @app.handler
    async def work() -> None: ...

    await app.enqueue_many([work.prepare() for _ in range(500)])
    await app.run_until_idle()
    assert store.times("apply") < 60
    assert settler_module.BATCH >= 100
