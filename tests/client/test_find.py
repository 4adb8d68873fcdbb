"""Look at many jobs: find with its filters and pages, counts, queues, nodes, check."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from piecework import GiveUp, JobView, NaiveTime, Piecework, ScheduleInvalid, State
from piecework.testing import FakeClock

MakeApp = Callable[..., Piecework]


@pytest.fixture
def note(clocked: Piecework) -> Any:
    @clocked.handler
    async def note(text: str = "") -> str:
        return text

    return note


def texts(views: list[JobView]) -> list[str]:
    return [view.args["text"] for view in views]


# ── find ─────────────────────────────────────────────────────────────────────────────────────


async def test_without_filters_the_newest_fifty_come_first(clocked: Piecework, note: Any) -> None:
    assert await clocked.find() == []
    await clocked.enqueue_many([note.prepare(f"{n}") for n in range(60)])
    assert texts(await clocked.find()) == [f"{n}" for n in range(59, 9, -1)]
    assert texts(await clocked.find(limit=2)) == ["59", "58"]


async def test_pages_follow_each_other_by_the_last_one_seen(clocked: Piecework, note: Any) -> None:
    handles = await clocked.enqueue_many([note.prepare(f"{n}") for n in range(7)])
    pages: list[list[str]] = []
    after: JobView | None = None
    while page := await clocked.find(limit=3, after=after):
        pages.append(texts(page))
        after = page[-1]
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    for last in (handles[1], handles[1].id, str(handles[1].id)):
        assert texts(await clocked.find(after=last)) == ["0"]


async def test_pages_keep_to_the_filters(clocked: Piecework, note: Any) -> None:
    await clocked.enqueue_many([note.using(queue="ab"[n % 2]).prepare(f"{n}") for n in range(8)])
    first = await clocked.find(queue="a", limit=2)
    second = await clocked.find(queue="a", limit=9, after=first[-1])
    assert (texts(first), texts(second)) == (["6", "4"], ["2", "0"])


async def test_each_filter_keeps_what_fits(clocked: Piecework, note: Any) -> None:
    @clocked.handler
    async def other(text: str) -> None: ...

    a = note.using(queue="a", metadata={"tenant": "x", "zone": "1"}, delay=60)
    b = note.using(queue="b", metadata={"tenant": "x", "zone": "2"}, unique_key="Order-77")
    c = other.using(queue="c", metadata={"tenant": "y"}, name="Send Welcome", serial_key="SER")
    handles = await clocked.enqueue_many([a.prepare("a"), b.prepare("b"), c.prepare("c")])

    async def found(**what: Any) -> str:
        return "".join(texts(await clocked.find(**what)))

    assert await found(state="scheduled") == "a"
    assert await found(state=State.AVAILABLE) == "cb"
    assert await found(state=["scheduled", State.AVAILABLE]) == "cba"
    assert await found(state=State.RUNNING) == ""
    assert await found(kind="note") == "ba"
    assert await found(kind=other) == "c"
    assert await found(kind=["note", other]) == "cba"
    assert await found(kind="nothing") == ""
    assert await found(queue="a") == "a"
    assert await found(queue=("a", "c")) == "ca"
    assert await found(metadata={"tenant": "x"}) == "ba"
    assert await found(metadata={"tenant": "x", "zone": "2"}) == "b"
    assert await found(metadata={"tenant": "X"}) == ""
    assert await found(metadata={"other": "x"}) == ""
    assert await found(metadata={}) == "cba"
    assert await found(ids=[handles[0], handles[2].id]) == "ca"
    assert await found(ids=[str(handles[1].id), uuid4()]) == "b"
    assert await found(ids=handles[1]) == "b"
    assert await found(ids=[]) == ""
    assert await found(schedule="nightly") == ""
    assert await found(parent=handles[0]) == ""
    assert await found(parked=True) == ""
    assert await found(parked=False) == "cba"
    assert await found(text="order-77") == "b"
    assert await found(text="welcome") == "c"
    assert await found(text="ser") == "c"
    assert await found(text="OTHER") == "c"
    assert await found(text=str(handles[0].id)[-12:].upper()) == "a"
    assert await found(text="") == "cba"
    assert await found(text="%") == ""
    assert await found(kind="note", queue="b", metadata={"zone": "2"}, state="available") == "b"
    assert await found(kind="note", queue="c") == ""


async def test_the_kind_of_a_handler_class_can_be_looked_for(clocked: Piecework) -> None:
    @clocked.handler(kind="mail")
    class Mail:
        async def __call__(self, text: str) -> None: ...

    await clocked.kind("mail").enqueue({"text": "a"})
    assert texts(await clocked.find(kind=Mail)) == ["a"]


async def test_text_also_looks_into_errors(clocked: Piecework) -> None:
    @clocked.handler
    async def fail(text: str) -> None:
        raise GiveUp(f"The {text} is broken")

    await fail.enqueue("Printer")
    await fail.enqueue("Scanner")
    await clocked.run_until_idle()
    assert texts(await clocked.find(text="printer IS")) == ["Printer"]


async def test_text_also_looks_into_reasons(clocked: Piecework, note: Any) -> None:
    handle = await note.enqueue("b")
    await handle.cancel("No Paper")
    assert texts(await clocked.find(text="no paper")) == ["b"]


async def test_since_and_until_go_by_the_enqueue(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    start = clock.now()
    for text in "abc":
        await note.using(delay=1_000).enqueue(text)
        await clock.advance(10)
    ten, twenty = start + timedelta(seconds=10), start + timedelta(seconds=20)
    assert texts(await clocked.find(since=ten)) == ["c", "b"]
    assert texts(await clocked.find(until=ten)) == ["a"]
    assert texts(await clocked.find(since=ten, until=twenty)) == ["b"]
    assert texts(await clocked.find(until=datetime.max.replace(tzinfo=UTC))) == ["c", "b", "a"]


async def test_parked_jobs_are_found(clocked: Piecework, note: Any) -> None:
    parked = await clocked.kind("unknown").enqueue({"text": "p"})
    await note.using(delay=60).enqueue("waits")
    await clocked.run_until_idle()
    (view,) = await clocked.find(parked=True)
    assert (view.id, view.parked, view.state) == (parked.id, True, State.SCHEDULED)
    assert "unknown" in (view.reason or "")
    assert texts(await clocked.find(parked=False)) == ["waits"]


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ({"state": "done"}, ValueError),
        ({"since": datetime(2026, 1, 1)}, NaiveTime),
        ({"until": datetime(2026, 1, 1)}, NaiveTime),
        ({"since": "2026-01-01"}, TypeError),
        ({"limit": 0}, ValueError),
        ({"limit": -1}, ValueError),
        ({"after": "17"}, ValueError),
        ({"ids": ["17"]}, ValueError),
        ({"parent": "17"}, ValueError),
        ({"metadata": "a=b"}, TypeError),
        ({"metadata": {"a": 1}}, TypeError),
        ({"text": 5}, TypeError),
        ({"kind": 5}, TypeError),
        ({"queue": 5}, TypeError),
        ({"schedule": 5}, TypeError),
        ({"parked": "yes"}, TypeError),
        ({"status": "failed"}, TypeError),
    ],
    ids=str,
)
async def test_a_filter_that_cannot_be_meant_is_refused(
    app: Piecework, what: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await app.find(**what)


async def test_an_unknown_filter_names_those_there_are(app: Piecework) -> None:
    with pytest.raises(TypeError, match=r"'status'.*queue.*state"):
        await app.find(status="failed")
    with pytest.raises(TypeError, match="'status'"):
        await app.cancel_many(status="failed")


async def test_a_row_somebody_broke_by_hand_does_not_hide_the_others(
    sqlite_url: str, note: Any
) -> None:
    import sqlite3

    async with Piecework(sqlite_url) as app:
        handles = [await app.kind("k").enqueue({"text": text}) for text in "ab"]
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
            connection.execute(
                "UPDATE piecework_job SET progress = 'oops', args = '{', error = '[]' WHERE id = ?",
                (handles[0].id.bytes,),
            )
        connection.close()
        broken, fine = await handles[0].get(), await handles[1].get()
        assert {view.id for view in await app.find()} == {broken.id, fine.id}
        assert (broken.args, broken.progress) == ("{", None)
        assert await handles[0].progress() is None


# ── counts, queues, nodes, check ─────────────────────────────────────────────────────────────


async def test_counts_are_by_queue_and_state(clocked: Piecework, note: Any) -> None:
    await note.enqueue()
    await clocked.run_until_idle()
    await note.enqueue()
    await note.using(queue="mail", delay=60).enqueue()
    await note.using(queue="mail", delay=60).enqueue()
    await note.using(queue="mail", serial=True).enqueue()
    await note.using(queue="mail", serial=True).enqueue()
    assert await clocked.count() == {
        ("default", State.COMPLETED): 1,
        ("default", State.AVAILABLE): 1,
        ("mail", State.SCHEDULED): 2,
        ("mail", State.AVAILABLE): 1,
        ("mail", State.BLOCKED): 1,
    }


async def test_queues_are_listed_with_their_jobs_and_controls(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    assert await clocked.queues.list() == []
    await note.using(queue="b").enqueue()
    await clock.advance(5)
    await note.using(queue="b").enqueue()
    await note.using(queue="b", delay=60).enqueue()
    await clocked.queues.pause("c")
    await clocked.queues.limit("a", running=5, rate="100/min")
    a, b, c = await clocked.queues.list()
    assert (a.name, a.paused, a.limit, a.rate, a.jobs) == ("a", False, 5, (100, 60.0), {})
    assert (b.name, b.limit, b.rate) == ("b", None, None)
    assert dict(b.jobs) == {State.AVAILABLE: 2, State.SCHEDULED: 1}
    assert b.oldest == clock.now() - timedelta(seconds=5)
    assert (c.name, c.paused, c.oldest) == ("c", True, None)


async def test_a_paused_queue_waits_until_it_is_resumed(clocked: Piecework, note: Any) -> None:
    await clocked.queues.pause("mail")
    await clocked.queues.pause("mail")
    mail = await note.using(queue="mail").enqueue("a")
    free = await note.enqueue("b")
    await clocked.run_until_idle()
    assert (await mail.get()).state is State.AVAILABLE
    assert await free.result(timeout=5) == "b"
    await clocked.queues.resume("mail")
    await clocked.run_until_idle()
    assert await mail.result(timeout=5) == "a"


async def test_a_limit_changes_what_is_given_and_none_lifts_it(clocked: Piecework) -> None:
    async def controls() -> tuple[int | None, tuple[int, float] | None]:
        (queue,) = await clocked.queues.list()
        return queue.limit, queue.rate

    limit = clocked.queues.limit
    await limit("q", running=5, rate="10/30s")
    assert await controls() == (5, (10, 30.0))
    await limit("q", running=3)
    assert await controls() == (3, (10, 30.0))
    await limit("q", rate="1000/hour")
    assert await controls() == (3, (1000, 3600.0))
    await limit("q", running=None)
    assert await controls() == (None, (1000, 3600.0))
    await limit("q", running=1, rate=None)
    assert await controls() == (1, None)


async def test_a_rate_lets_only_so_many_start(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    await clocked.queues.limit("q", rate="2/min")
    await clocked.enqueue_many([note.using(queue="q").prepare(text) for text in "abcd"])
    done: list[int] = []
    for seconds in (0, 29, 1, 60):
        await clock.advance(seconds)
        await clocked.run_until_idle()
        done.append((await clocked.count()).get(("q", State.COMPLETED), 0))
    assert done == [2, 2, 3, 4]


@pytest.mark.parametrize(
    ("controls", "error"),
    [
        ({}, ValueError),
        ({"running": 0}, ValueError),
        ({"running": -1}, ValueError),
        ({"running": 2**31}, ValueError),
        ({"running": True}, TypeError),
        ({"running": 1.5}, TypeError),
        ({"running": "5"}, TypeError),
        ({"rate": "fast"}, ScheduleInvalid),
        ({"rate": ""}, ScheduleInvalid),
        ({"rate": "0/min"}, ScheduleInvalid),
        ({"rate": "-1/min"}, ScheduleInvalid),
        ({"rate": "5/0s"}, ScheduleInvalid),
        ({"rate": "5/fortnight"}, ScheduleInvalid),
        ({"rate": "1.5/s"}, ScheduleInvalid),
        ({"rate": 5}, TypeError),
        ({"running": 5, "rate": "fast"}, ScheduleInvalid),
    ],
    ids=str,
)
async def test_a_bad_limit_changes_nothing(
    app: Piecework, controls: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await app.queues.limit("q", **controls)
    assert await app.queues.list() == []


@pytest.mark.parametrize("name", ["", " ", "x" * 201, "a\nb", "a\ud800", None, 5])
async def test_a_queue_that_cannot_be_a_name_is_refused(app: Piecework, name: Any) -> None:
    queues = app.queues
    for change in (queues.pause, queues.resume, queues.clear):
        with pytest.raises((ValueError, TypeError), match="queue"):
            await change(name)
    with pytest.raises((ValueError, TypeError), match="queue"):
        await queues.limit(name, running=1)
    assert await queues.list() == []


async def test_clear_cancels_what_waits_and_reports_each_job(clocked: Piecework, note: Any) -> None:
    ended = await note.using(queue="q").enqueue()
    await clocked.run_until_idle()
    waiting = [
        await note.using(queue="q").enqueue(),
        await note.using(queue="q", delay=60).enqueue(),
        await note.using(queue="q", serial=True).enqueue(),
        await note.using(queue="q", serial=True).enqueue(),
    ]
    elsewhere = await note.enqueue()
    reports = await clocked.queues.clear("q")
    assert sorted(report.id for report in reports) == sorted(handle.id for handle in waiting)
    assert all(report.done for report in reports)
    views = [await handle.get() for handle in waiting]
    assert {(view.state, view.reason) for view in views} == {(State.CANCELLED, "queue cleared")}
    assert (await ended.get()).state is State.COMPLETED
    assert (await elsewhere.get()).state is State.AVAILABLE
    assert await clocked.queues.clear("q") == []


async def test_nodes_are_the_live_workers(app: Piecework) -> None:
    assert await app.nodes() == []
    async with app.worker(queues=["a", "b"], concurrency=7, node="web-1", lease=20):
        (node,) = await app.nodes()
        assert (node.node, node.pid, node.queues) == ("web-1", os.getpid(), ("a", "b"))
        assert (node.slots, node.running, node.stopping) == (7, 0, False)
        assert node.lease == timedelta(seconds=20)
        assert node.started_at <= node.beat_at
        async with app.worker(node="web-2"):
            assert [(node.node, node.queues) for node in await app.nodes()] == [
                ("web-1", ("a", "b")),
                ("web-2", None),
            ]
    assert await app.nodes() == []


async def test_check_tells_of_a_healthy_store(app: Piecework) -> None:
    findings = await app.check()
    assert findings
    assert {finding.level for finding in findings} <= {"ok", "warning"}
    assert all(finding.topic and finding.text for finding in findings)
