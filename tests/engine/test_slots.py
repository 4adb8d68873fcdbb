"""Which jobs run, when, and how many at once."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from piecework import JobExpired, Piecework, Snooze, State
from tests.helpers import MakeApp, until, until_state


class Gauge:
    """How many run now, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


# ── slots ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["async", "thread"])
async def test_concurrency_is_reached_and_never_exceeded(app: Piecework, style: str) -> None:
    gauge = Gauge()

    async def in_task() -> None:
        with gauge:
            await asyncio.sleep(0.002)

    def in_thread() -> None:
        with gauge:
            time.sleep(0.002)

    handler: Any = app.handler(in_task if style == "async" else in_thread)
    await app.enqueue_many([handler.prepare() for _ in range(100)])
    await app.run_until_idle(concurrency=7)
    assert gauge.total == 100
    assert gauge.most == 7


async def test_a_slow_job_never_holds_up_fast_ones(app: Piecework) -> None:
    """A slot is refilled the moment it is free, not when its batch has ended."""
    let_go = asyncio.Event()
    done: list[int] = []

    @app.handler
    async def slow() -> None:
        await let_go.wait()

    @app.handler
    async def fast(n: int) -> None:
        done.append(n)

    async with app.worker(concurrency=2, poll=60, lease=600, beat=300):
        first = await slow.enqueue()
        handles = [await fast.enqueue(n) for n in range(60)]
        for handle in handles:
            await handle.result(timeout=5)
        assert (await first.get()).state is State.RUNNING
        let_go.set()
        await first.result(timeout=5)
    assert done == list(range(60))


async def test_a_job_claimed_ahead_of_a_slow_one_is_given_back_within_a_beat(
    sqlite_app: Piecework, sqlite_url: str
) -> None:
    """The guess at how soon a slot is free can be wrong; another worker may be idle."""
    mine, theirs = sqlite_app, Piecework(sqlite_url)
    started, let_go = asyncio.Event(), asyncio.Event()
    ran_on: list[str] = []

    def register(app: Piecework, name: str) -> Any:
        @app.handler
        async def slow() -> None:
            started.set()
            await let_go.wait()

        @app.handler
        async def fast() -> None:
            ran_on.append(name)

        return slow, fast

    slow, fast = register(mine, "mine")
    register(theirs, "theirs")
    async with mine.worker(concurrency=1, lease=0.6, beat=0.1) as worker:
        worker._seconds_per_job = 0.001
        first = await slow.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        second = await fast.enqueue()
        await until_state(second, "running")
        async with theirs.worker(concurrency=1):
            await second.result(timeout=5)
        let_go.set()
        await first.result(timeout=5)
    await theirs.close()
    assert ran_on == ["theirs"]
    assert (await second.get()).attempt == 1
    assert [attempt.outcome for attempt in await second.attempts()] == ["completed"]


async def test_a_kinds_concurrency_holds_in_a_worker_and_others_pass_it(
    app: Piecework, make_app: MakeApp
) -> None:
    gauge, others = Gauge(), Gauge()
    older = make_app(app._store)
    let_go = asyncio.Event()

    @app.handler(concurrency=2, aliases=["formerly"])
    async def limited() -> None:
        with gauge:
            await let_go.wait()

    @app.handler
    async def free() -> None:
        with others:
            await asyncio.sleep(0)

    held = [
        await (limited.enqueue() if n % 2 else older.kind("formerly").enqueue()) for n in range(6)
    ]
    passing = await app.enqueue_many([free.prepare() for _ in range(10)])
    async with app.worker(concurrency=5, poll=0.05):
        for handle in passing:
            await handle.result(timeout=5)
        await until(lambda: gauge.now == 2)
        let_go.set()
        for handle in held:
            await handle.result(timeout=5)
    assert gauge.total == 6
    assert gauge.most == 2, "an alias is the same kind"


async def test_higher_priority_runs_first_then_due_time_then_order_of_enqueue(
    app: Piecework,
) -> None:
    order: list[str] = []

    @app.handler
    async def work(name: str) -> None:
        order.append(name)

    early = datetime.now(UTC) - timedelta(hours=1)
    await work.enqueue("plain 1")
    await work.enqueue("plain 2")
    await work.using(priority=-5).enqueue("low")
    await work.using(priority=9).enqueue("high 1")
    await work.using(priority=9).enqueue("high 2")
    await work.using(at=early).enqueue("due earlier")
    await app.run_until_idle(concurrency=1)
    assert order == ["high 1", "high 2", "due earlier", "plain 1", "plain 2", "low"]


async def test_a_worker_of_named_queues_leaves_the_others_alone(app: Piecework) -> None:
    @app.handler
    async def work() -> None: ...

    mine, other = await work.using(queue="mine").enqueue(), await work.enqueue()
    late = await work.using(queue="made later").enqueue()
    async with app.worker(queues=["mine", "made later"]):
        await mine.result(timeout=5)
        await late.result(timeout=5)
    assert (await other.get()).state is State.AVAILABLE
    async with app.worker():
        await other.result(timeout=5)


async def test_a_job_bound_to_a_node_runs_only_there(app: Piecework) -> None:
    @app.handler
    async def work() -> None: ...

    bound = await work.using(node="web-1").enqueue()
    free = await work.enqueue()
    async with app.worker(node="web-2"):
        await free.result(timeout=5)
        assert (await bound.get()).state is State.AVAILABLE
        async with app.worker(node="web-1"):
            await bound.result(timeout=5)
    assert ((await bound.get()).node, (await free.get()).node) == ("web-1", "web-2")


async def test_a_worker_refuses_settings_that_cannot_be_meant(app: Piecework) -> None:
    refused: tuple[dict[str, Any], ...] = (
        {"concurrency": 0},
        {"queues": []},
        {"lease": 0},
        {"lease": 10, "beat": 6},
        {"poll": -1},
        {"shutdown_timeout": -1},
        {"node": ""},
        {"queues": ["a\nb"]},
    )
    for bad in refused:
        with pytest.raises(ValueError, match=r"."):
            async with app.worker(**bad):
                raise AssertionError("not reached")


async def test_nodes_shows_the_live_workers(app: Piecework) -> None:
    let_go, started = asyncio.Event(), asyncio.Event()

    @app.handler
    async def work() -> None:
        started.set()
        await let_go.wait()

    assert await app.nodes() == []
    async with app.worker(
        node="web-1", queues=["a", "b"], concurrency=3, lease=0.6, beat=0.05
    ) as worker:
        handle = await work.using(queue="a").enqueue()
        await asyncio.wait_for(started.wait(), 5)

        async def busy() -> bool:
            return (await app.nodes())[0].running == 1

        await until(busy)
        (node,) = await app.nodes()
        assert (node.worker, node.node, node.queues, node.slots) == (
            worker.id,
            "web-1",
            ("a", "b"),
            3,
        )
        assert node.started_at <= node.beat_at
        assert not node.stopping
        let_go.set()
        await handle.result(timeout=5)
    assert await app.nodes() == []


# ── time ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_delayed_job_starts_when_it_is_due_not_before_and_not_at_the_next_poll(
    app: Piecework,
) -> None:
    @app.handler
    async def work() -> None: ...

    async with app.worker(poll=60):
        handle = await work.using(delay=0.2).enqueue()
        assert (await handle.get()).state is State.SCHEDULED
        await handle.result(timeout=5)
    view = await handle.get()
    assert view.started_at is not None
    assert timedelta(0) <= view.started_at - view.due_at < timedelta(seconds=2)


async def test_a_job_that_did_not_start_in_time_expires(app: Piecework) -> None:
    ran: list[int] = []

    @app.handler
    async def work(n: int) -> None:
        ran.append(n)

    stale = await work.using(expires_in=0.02, queue="closed").enqueue(1)
    async with app.worker(queues=["other"]):
        view = await until_state(stale, "expired")
    assert view.finished_at is not None
    with pytest.raises(JobExpired):
        await stale.result(timeout=1)
    fresh = await work.using(expires_in=60, queue="closed").enqueue(2)
    await app.run_until_idle()
    assert ran == [2]
    assert (await fresh.get()).state is State.COMPLETED


async def test_a_retry_does_not_expire(app: Piecework) -> None:
    """Expired means: had not started by then."""

    @app.handler(expires_in=0.1, retry=lambda run, error: 0.2)
    async def work() -> str:
        if not tries:
            tries.append(1)
            raise ValueError
        return "second"

    tries: list[int] = []
    handle = await work.enqueue()
    async with app.worker():
        assert await handle.result(timeout=5) == "second"


async def test_run_until_idle_leaves_what_is_due_later_and_runs_what_is_enqueued_meanwhile(
    app: Piecework,
) -> None:
    order: list[int] = []

    @app.handler
    async def chain(n: int) -> None:
        order.append(n)
        if n:
            await chain.enqueue(n - 1)

    @app.handler
    async def later() -> None:
        raise Snooze(3600)

    await chain.enqueue(20)
    snoozed = await later.enqueue()
    delayed = await chain.using(delay=3600).enqueue(99)
    await app.run_until_idle()
    assert order == list(range(20, -1, -1))
    assert (await snoozed.get()).state is State.SCHEDULED
    assert (await delayed.get()).state is State.SCHEDULED
    await app.run_until_idle()


async def test_a_worker_can_be_waited_for_again_and_again(app: Piecework) -> None:
    @app.handler
    async def work(n: int) -> int:
        return n

    async with app.worker() as worker:
        for n in range(3):
            handle = await work.enqueue(n)
            await worker.run_until_idle()
            assert (await handle.get()).result == n


# ── serial keys ──────────────────────────────────────────────────────────────────────────────


async def test_a_serial_key_runs_one_at_a_time_in_order_and_others_in_parallel(
    app: Piecework,
) -> None:
    gauges = {"a": Gauge(), "b": Gauge()}
    both = Gauge()
    order: list[tuple[str, int]] = []

    @app.handler(serial_key=lambda key: key)
    async def work(key: str, n: int) -> None:
        with gauges[key], both:
            order.append((key, n))
            await asyncio.sleep(0.001)

    await app.enqueue_many([work.prepare(key, n) for n in range(15) for key in "ab"])
    await app.run_until_idle(concurrency=10)
    for key in "ab":
        assert [n for k, n in order if k == key] == list(range(15))
        assert gauges[key].most == 1
    assert both.most == 2


async def test_serial_is_short_for_the_queues_name(app: Piecework) -> None:
    @app.handler
    async def work() -> None: ...

    first = await work.using(queue="mail", serial=True).enqueue()
    second = await work.using(queue="mail", serial=True).enqueue()
    views = [await first.get(), await second.get()]
    assert [view.serial_key for view in views] == ["mail", "mail"]
    assert [view.state for view in views] == [State.AVAILABLE, State.BLOCKED]
    with pytest.raises(ValueError, match="not both"):
        await work.using(queue="mail", serial=True, serial_key="x").enqueue()
    none = await work.using(serial_key="x").using(serial=False).enqueue()
    assert (await none.get()).serial_key is None


async def test_a_head_that_waits_for_its_retry_holds_the_line(app: Piecework) -> None:
    order: list[int] = []

    @app.handler(serial_key="line", retry=lambda run, error: 0.05)
    async def work(n: int) -> None:
        order.append(n)
        if order == [0]:
            raise ValueError

    handles = [await work.enqueue(n) for n in range(3)]
    async with app.worker():
        for handle in handles:
            await handle.result(timeout=5)
    assert order == [0, 0, 1, 2]


async def test_a_cancel_in_the_middle_of_the_line_lets_the_next_through(app: Piecework) -> None:
    ran: list[int] = []

    @app.handler(serial_key="line")
    async def work(n: int) -> None:
        ran.append(n)

    handles = [await work.enqueue(n) for n in range(4)]
    assert await handles[0].cancel()
    assert await handles[2].cancel()
    await app.run_until_idle()
    assert ran == [1, 3]


# ── controls of queues ───────────────────────────────────────────────────────────────────────


async def test_a_paused_queue_gives_nothing_and_what_runs_goes_on(app: Piecework) -> None:
    started, let_go = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @app.handler(queue="q")
    async def work(n: int) -> None:
        started.set()
        await let_go.wait()
        ran.append(n)

    async with app.worker(concurrency=1, poll=0.05):
        first, second = await work.enqueue(1), await work.enqueue(2)
        await asyncio.wait_for(started.wait(), 5)
        await app.queues.pause("q")
        let_go.set()
        await first.result(timeout=5)
        for _ in range(3):
            await app.run_until_idle()
        assert (await second.get()).state is State.AVAILABLE
        assert ran == [1]
        await app.queues.resume("q")
        await second.result(timeout=5)


async def test_a_limit_over_the_fleet_is_exact(sqlite_app: Piecework, sqlite_url: str) -> None:
    gauge = Gauge()
    apps = [sqlite_app, Piecework(sqlite_url)]

    def register(app: Piecework) -> Any:
        @app.handler(queue="q")
        async def work() -> None:
            with gauge:
                await asyncio.sleep(0.003)

        return work

    handlers = [register(app) for app in apps]
    await sqlite_app.queues.limit("q", running=3)
    handles = await sqlite_app.enqueue_many([handlers[0].prepare() for _ in range(40)])
    async with apps[0].worker(poll=0.05), apps[1].worker(poll=0.05):
        for handle in handles:
            await handle.result(timeout=10)
    await apps[1].close()
    assert gauge.total == 40
    assert gauge.most <= 3
    await sqlite_app.queues.limit("q", running=None)
    assert await sqlite_app.queues.list() == []


async def test_a_rate_is_a_bucket_that_refills_evenly(app: Piecework) -> None:
    """I14: claims in any span T are at most n + n · T / window."""
    starts: list[float] = []

    @app.handler(queue="q")
    async def work() -> None:
        starts.append(time.monotonic())

    await app.queues.limit("q", rate="5/0.5s")
    handles = await app.enqueue_many([work.prepare() for _ in range(9)])
    async with app.worker(poll=0.02):
        for handle in handles:
            await handle.result(timeout=10)
    for i, start in enumerate(starts):
        for j in range(i, len(starts)):
            assert j - i + 1 <= 5 + 5 * (starts[j] - start + 0.05) / 0.5 + 1e-6
    assert starts[-1] - starts[0] > 0.25


async def test_a_limit_lifted_or_raised_takes_effect_at_once(make_app: MakeApp) -> None:
    app = make_app()
    gauge = Gauge()
    let_go = asyncio.Event()

    @app.handler(queue="q")
    async def work() -> None:
        with gauge:
            await let_go.wait()

    await app.queues.limit("q", running=1)
    async with app.worker(poll=60):
        handles = await app.enqueue_many([work.prepare() for _ in range(4)])
        await until(lambda: gauge.now == 1)
        await app.queues.limit("q", running=2)
        await until(lambda: gauge.now == 2)
        await app.queues.limit("q", running=None)
        await until(lambda: gauge.now == 4)
        let_go.set()
        for handle in handles:
            await handle.result(timeout=5)
