"""The options of an enqueue: what each does, and what is refused with nothing stored."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypedDict
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from piecework import NaiveTime, Piecework, Run, State
from piecework.testing import FakeClock

LONG = "x" * 201
SOON = datetime(2099, 1, 1, tzinfo=UTC)


class Bad(TypedDict):
    options: dict[str, Any]
    error: type[Exception]
    says: str


def bad(options: dict[str, Any], error: type[Exception], says: str) -> Bad:
    return Bad(options=options, error=error, says=says)


BAD: dict[str, Bad] = {
    "unknown": bad({"dealy": 1}, TypeError, "unknown option 'dealy'"),
    "delay and at": bad({"delay": 1, "at": SOON}, ValueError, "delay= or at="),
    "negative delay": bad({"delay": -1}, ValueError, "at least 0"),
    "negative timedelta": bad({"delay": timedelta(seconds=-1)}, ValueError, "at least 0"),
    "NaN delay": bad({"delay": math.nan}, ValueError, "finite"),
    "infinite delay": bad({"delay": math.inf}, ValueError, "finite"),
    "endless delay": bad({"delay": 1e10}, ValueError, "100 years"),
    "text delay": bad({"delay": "5"}, TypeError, "seconds or a timedelta"),
    "true delay": bad({"delay": True}, TypeError, "seconds or a timedelta"),
    "no delay": bad({"delay": None}, TypeError, "seconds or a timedelta"),
    "naive at": bad({"at": datetime(2099, 1, 1)}, NaiveTime, "no time zone"),
    "number at": bad({"at": 1_700_000_000}, TypeError, "aware datetime"),
    "no at": bad({"at": None}, TypeError, "aware datetime"),
    "at beyond UTC": bad(
        {"at": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12)))}, ValueError, "beyond"
    ),
    "at the end of time": bad({"at": datetime.max.replace(tzinfo=UTC)}, ValueError, "too late"),
    "both expiries": bad({"expires_in": 1, "expires_at": SOON}, ValueError, "not both"),
    "naive expiry": bad({"expires_at": datetime(2099, 1, 1)}, NaiveTime, "no time zone"),
    "negative expiry": bad({"expires_in": -1}, ValueError, "at least 0"),
    "NaN expiry": bad({"expires_in": math.nan}, ValueError, "finite"),
    "expiry at once": bad({"expires_in": 0}, ValueError, "expire"),
    "expiry before a delay": bad({"delay": 60, "expires_in": 60}, ValueError, "expire"),
    "expiry before at": bad({"at": SOON, "expires_at": SOON}, ValueError, "expire"),
    "expiry in before at": bad({"at": SOON, "expires_in": 60}, ValueError, "expire"),
    "expiry at before delay": bad(
        {"delay": timedelta(days=36_000), "expires_at": datetime(2031, 1, 1, tzinfo=UTC)},
        ValueError,
        "expire",
    ),
    "expiry in the past": bad(
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, ValueError, "expire"
    ),
    "no queue": bad({"queue": None}, TypeError, "queue must be a str"),
    "blank queue": bad({"queue": "  "}, ValueError, "empty"),
    "long queue": bad({"queue": LONG}, ValueError, "201 characters"),
    "NUL in queue": bad({"queue": "a\x00b"}, ValueError, "control character"),
    "surrogate in queue": bad({"queue": "a\ud800"}, ValueError, "lone surrogate"),
    "long name": bad({"name": LONG}, ValueError, "201 characters"),
    "line break in name": bad({"name": "a\nb"}, ValueError, "control character"),
    "number as name": bad({"name": 5}, TypeError, "name must be a str"),
    "long node": bad({"node": LONG}, ValueError, "201 characters"),
    "escape in node": bad({"node": "a\x1b"}, ValueError, "control character"),
    "text priority": bad({"priority": "1"}, TypeError, "priority must be an int"),
    "true priority": bad({"priority": True}, TypeError, "priority must be an int"),
    "high priority": bad({"priority": 2**31}, ValueError, "between"),
    "low priority": bad({"priority": -(2**31)}, ValueError, "between"),
    "no attempts": bad({"max_attempts": 0}, ValueError, "between 1"),
    "half attempts": bad({"max_attempts": 1.5}, TypeError, "max_attempts must be an int"),
    "negative timeout": bad({"timeout": -1}, ValueError, "between 0"),
    "zero timeout": bad({"timeout": 0}, ValueError, "more than 0"),
    "NaN timeout": bad({"timeout": math.nan}, ValueError, "between 0"),
    "infinite timeout": bad({"timeout": math.inf}, ValueError, "between 0"),
    "text timeout": bad({"timeout": "5"}, TypeError, "timeout must be"),
    "long unique key": bad({"unique_key": LONG}, ValueError, "201 characters"),
    "NUL in unique key": bad({"unique_key": "a\x00"}, ValueError, "control character"),
    "number as unique key": bad({"unique_key": 7}, TypeError, "unique_key must be a str"),
    "unique without a key": bad({"unique": "forever"}, ValueError, "give unique_key"),
    "unknown scope": bad({"unique_key": "k", "unique": "ever"}, ValueError, "give"),
    "number as scope": bad({"unique_key": "k", "unique": 60}, ValueError, "timedelta"),
    "no window": bad({"unique_key": "k", "unique": timedelta(0)}, ValueError, "longer"),
    "negative window": bad(
        {"unique_key": "k", "unique": timedelta(seconds=-1)}, ValueError, "at least 0"
    ),
    "endless window": bad({"unique_key": "k", "unique": timedelta.max}, ValueError, "100 years"),
    "unknown policy": bad({"unique_key": "k", "on_duplicate": "skip"}, ValueError, "replace"),
    "long serial key": bad({"serial_key": LONG}, ValueError, "201 characters"),
    "number as serial key": bad({"serial_key": 7}, TypeError, "serial_key must be a str"),
    "serial and serial key": bad({"serial_key": "a", "serial": True}, ValueError, "not both"),
    "text serial": bad({"serial": "yes"}, TypeError, "serial must be"),
    "text metadata": bad({"metadata": "a=b"}, TypeError, "flat mapping"),
    "number in metadata": bad({"metadata": {"a": 1}}, TypeError, "must be a str"),
    "nested metadata": bad({"metadata": {"a": {"b": "c"}}}, TypeError, "must be a str"),
    "long metadata": bad({"metadata": {"a": "x" * 401}}, ValueError, "401 characters"),
    "long metadata key": bad({"metadata": {LONG: "x"}}, ValueError, "201 characters"),
    "much metadata": bad(
        {"metadata": {str(n): "x" for n in range(101)}}, ValueError, "at most 100"
    ),
    "NUL in metadata": bad({"metadata": {"a": "\x00"}}, ValueError, "control character"),
    "no id": bad({"id": "17"}, ValueError, "no job id"),
    "number as id": bad({"id": 17}, ValueError, "no job id"),
}


@pytest.fixture
def note(clocked: Piecework) -> Any:
    @clocked.handler
    async def note(text: str = "") -> str:
        return text

    return note


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
async def test_a_bad_option_is_refused_and_nothing_is_stored(app: Piecework, case: Bad) -> None:
    @app.handler
    async def note(text: str) -> None: ...

    with pytest.raises(case["error"], match=case["says"]):
        await note.using(**case["options"]).enqueue("a")
    with pytest.raises(case["error"], match=case["says"]):
        await app.enqueue(note.prepare("a"), **case["options"])
    with pytest.raises(case["error"], match=case["says"]):
        await app.kind("unknown here").using(**case["options"]).enqueue({})
    assert await app.count() == {}


async def test_an_expiry_is_also_judged_where_options_come_from_two_places(
    app: Piecework,
) -> None:
    """Each place alone is fine; only together they cannot be meant."""

    @app.handler
    async def note(text: str) -> None: ...

    with pytest.raises(ValueError, match="expir"):
        await app.enqueue(note.using(expires_in=30).prepare("a"), delay=60)
    with pytest.raises(ValueError, match="expir"):
        await app.enqueue(note.using(delay=60).prepare("a"), expires_in=30)
    assert await app.count() == {}


async def test_what_expired_between_prepare_and_enqueue_is_refused_with_all_others(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    late = note.using(expires_at=clock.now() + timedelta(seconds=60)).prepare("late")
    await clock.advance(60)
    with pytest.raises(ValueError, match="expir"):
        await clocked.enqueue_many([note.prepare("fine"), late])
    assert await clocked.count() == {}


async def test_an_expiry_that_has_passed_is_refused_also_for_a_start_in_the_past(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    now = clock.now()
    hour, second = timedelta(hours=1), timedelta(seconds=1)
    late = note.using(at=now - hour, expires_at=now + second).prepare("late")
    await clock.advance(2)
    with pytest.raises(ValueError, match="expir"):
        await clocked.enqueue(late)
    assert await clocked.count() == {}


async def test_without_options_a_job_is_due_at_once(note: Any, clock: FakeClock) -> None:
    view = await (await note.enqueue("a")).get()
    assert (view.state, view.queue, view.priority, view.max_attempts) == (
        State.AVAILABLE,
        "default",
        0,
        5,
    )
    assert view.due_at == view.enqueued_at == clock.now()
    nothing = (view.name, view.node, view.expires_at, view.timeout, view.unique_key)
    assert nothing == (None, None, None, None, None)
    assert (view.serial_key, view.parent, view.schedule, view.tick) == (None, None, None, None)
    assert (view.metadata, view.generation, view.attempt, view.crashes) == ({}, 1, 0, 0)
    assert (view.started_at, view.finished_at, view.cancel_requested) == (None, None, None)


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(minutes=1.5)])
async def test_a_delay_counts_from_the_enqueue(note: Any, clock: FakeClock, delay: Any) -> None:
    view = await (await note.using(delay=delay).enqueue()).get()
    assert (view.state, view.due_at) == (State.SCHEDULED, clock.now() + timedelta(seconds=90))


async def test_no_delay_at_all_is_now(note: Any) -> None:
    assert (await (await note.using(delay=0).enqueue()).get()).state is State.AVAILABLE


async def test_an_instant_is_stored_in_utc_whatever_its_zone(note: Any, clock: FakeClock) -> None:
    at = datetime(2026, 7, 1, 12, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    handle = await note.using(at=at, expires_at=at + timedelta(hours=1)).enqueue()
    view = await handle.get()
    assert view.due_at == at
    assert view.due_at.utcoffset() == timedelta(0)
    assert view.expires_at == at + timedelta(hours=1)
    assert view.expires_at.utcoffset() == timedelta(0)


async def test_an_instant_in_the_past_is_due_at_once(note: Any, clock: FakeClock) -> None:
    at = clock.now() - timedelta(days=400)
    view = await (await note.using(at=at).enqueue()).get()
    assert (view.state, view.due_at) == (State.AVAILABLE, at)


async def test_an_expiry_counts_from_the_enqueue_and_not_from_the_start(
    note: Any, clock: FakeClock
) -> None:
    view = await (await note.using(delay=60, expires_in=90).enqueue()).get()
    assert view.expires_at == clock.now() + timedelta(seconds=90)


async def test_a_kinds_own_expiry_counts_from_the_start(
    clocked: Piecework, clock: FakeClock
) -> None:
    @clocked.handler(expires_in=30)
    async def fleeting() -> None: ...

    view = await (await fleeting.using(delay=60).enqueue()).get()
    given = await (await fleeting.using(delay=60, expires_in=61).enqueue()).get()
    assert view.expires_at == clock.now() + timedelta(seconds=90)
    assert given.expires_at == clock.now() + timedelta(seconds=61)


async def test_what_has_not_started_by_its_expiry_never_does(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    late = await note.using(expires_in=60).enqueue("late")
    early = await note.using(expires_in=61).enqueue("early")
    await clock.advance(60)
    await clocked.run_until_idle()
    assert (await late.get()).state is State.EXPIRED
    assert await early.result(timeout=5) == "early"


async def test_plain_options_are_stored_as_they_are(note: Any) -> None:
    handle = await note.using(
        queue="mail",
        name="Send welcome",
        priority=-7,
        max_attempts=9,
        timeout=timedelta(minutes=2),
        metadata={"tenant": "a", "blank": ""},
        node="web-1",
        serial_key="s",
        unique_key="u",
    ).enqueue("a")
    view = await handle.get()
    assert (view.queue, view.name, view.priority, view.node) == (
        "mail",
        "Send welcome",
        -7,
        "web-1",
    )
    assert (view.max_attempts, view.timeout) == (9, 120.0)
    assert view.metadata == {"tenant": "a", "blank": ""}
    assert (view.serial_key, view.unique_key) == ("s", "u")


async def test_the_widest_allowed_values_fit_the_store(note: Any) -> None:
    name = "é" * 200
    handle = await note.using(
        queue=name,
        name=name,
        node=name,
        unique_key=name,
        serial_key=name,
        priority=2**31 - 1,
        max_attempts=2**31 - 1,
        delay=timedelta(days=36_525),
        metadata={f"{n:0200}": "𝄞" * 400 for n in range(100)},
    ).enqueue()
    view = await handle.get()
    assert (view.queue, view.name, view.node, view.unique_key, view.serial_key) == (name,) * 5
    assert (view.priority, view.max_attempts) == (2**31 - 1, 2**31 - 1)
    assert len(view.metadata) == 100
    low = await (await note.using(priority=-(2**31) + 1).enqueue()).get()
    assert low.priority == -(2**31) + 1


async def test_options_of_the_kind_hold_where_the_enqueue_says_nothing(
    clocked: Piecework,
) -> None:
    @clocked.handler(
        queue="orders", priority=3, max_attempts=2, timeout=60, metadata={"a": "kind", "b": "kind"}
    )
    async def ship() -> None: ...

    kinds = await (await ship.enqueue()).get()
    own = await (await ship.using(queue="q", priority=0, timeout=None, metadata={}).enqueue()).get()
    assert (kinds.queue, kinds.priority, kinds.max_attempts, kinds.timeout) == ("orders", 3, 2, 60)
    assert kinds.metadata == {"a": "kind", "b": "kind"}
    assert (own.queue, own.priority, own.max_attempts, own.timeout) == ("q", 0, 2, None)
    assert own.metadata == {}


async def test_metadata_is_copied_at_the_door(clocked: Piecework, note: Any) -> None:
    metadata = {"a": "1"}
    job = note.using(metadata=metadata).prepare()
    metadata["a"] = "2"
    assert (await (await clocked.enqueue(job)).get()).metadata == {"a": "1"}


async def test_an_id_of_the_callers_is_taken_and_seen_again_is_the_same_job(
    clocked: Piecework, note: Any
) -> None:
    own = uuid4()
    first = await note.using(id=own).enqueue("a")
    again = await note.using(id=str(own)).enqueue("a")
    assert first.id == again.id == own
    assert (first.created, again.created) == (True, False)
    assert sum((await clocked.count()).values()) == 1


async def test_an_id_seen_with_other_args_warns_and_keeps_the_first(
    clocked: Piecework, note: Any
) -> None:
    own = uuid4()
    await note.using(id=own).enqueue("a")
    with pytest.warns(UserWarning, match="other args"):
        again = await note.using(id=own).enqueue("b")
    assert (await again.get()).args == {"text": "a"}


async def test_an_id_of_a_job_that_ended_does_not_run_again(clocked: Piecework, note: Any) -> None:
    own = uuid4()
    await note.using(id=own).enqueue("a")
    await clocked.run_until_idle()
    again = await note.using(id=own).enqueue("a")
    assert not again.created
    assert (await again.get()).state is State.COMPLETED


async def test_ids_are_uuid7_in_the_order_of_the_enqueues(clocked: Piecework, note: Any) -> None:
    handles = [await note.enqueue(str(n)) for n in range(20)]
    handles += await clocked.enqueue_many([note.prepare(str(n)) for n in range(20)])
    ids: list[UUID] = [handle.id for handle in handles]
    assert {i.version for i in ids} == {7}
    assert ids == sorted(ids)


async def test_a_higher_priority_runs_first(clocked: Piecework) -> None:
    ran: list[str] = []

    @clocked.handler
    async def mark(text: str) -> None:
        ran.append(text)

    await clocked.enqueue_many(
        [
            mark.prepare("a"),
            mark.using(priority=5).prepare("b"),
            mark.using(priority=-1).prepare("c"),
            mark.using(priority=5).prepare("d"),
        ]
    )
    await clocked.run_until_idle(concurrency=1)
    assert ran == ["b", "d", "a", "c"]


async def test_a_job_bound_to_another_node_waits_for_it(clocked: Piecework, note: Any) -> None:
    handle = await note.using(node="elsewhere").enqueue()
    await clocked.run_until_idle()
    assert (await handle.get()).state is State.AVAILABLE
    async with clocked.worker(node="elsewhere") as worker:
        await worker.run_until_idle()
    view = await handle.get()
    assert (view.state, view.node) == (State.COMPLETED, "elsewhere")


async def test_max_attempts_and_timeout_of_the_enqueue_reach_the_run(clocked: Piecework) -> None:
    @clocked.handler
    async def show(run: Run) -> list[Any]:
        return [run.max_attempts, run.name, run.queue, run.metadata, run.deadline is not None]

    options: dict[str, Any] = {"max_attempts": 2, "name": "n", "queue": "q", "timeout": 9}
    handle = await show.using(**options, metadata={"a": "b"}).enqueue()
    await clocked.run_until_idle()
    assert await handle.result(timeout=5) == [2, "n", "q", {"a": "b"}, True]
