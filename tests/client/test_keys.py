"""Unique and serial keys as an enqueue sees them: scopes, policies, order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from piecework import DuplicateJob, Piecework, State
from piecework.testing import FakeClock


@pytest.fixture
def note(clocked: Piecework) -> Any:
    @clocked.handler
    async def note(text: str = "") -> str:
        return text

    return note


@pytest.fixture
def other(clocked: Piecework) -> Any:
    @clocked.handler
    async def other(text: str = "") -> str:
        return text

    return other


async def stored(app: Piecework) -> int:
    return sum((await app.count()).values())


# ── scopes ───────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_held_while_its_job_lives(clocked: Piecework, note: Any) -> None:
    first = await note.using(unique_key="k").enqueue("a")
    second = await note.using(unique_key="k").enqueue("a")
    elsewhere = await note.using(unique_key="l").enqueue("a")
    assert (first.created, second.created, elsewhere.created) == (True, False, True)
    assert second == first
    await clocked.run_until_idle()
    third = await note.using(unique_key="k").enqueue("a")
    assert third.created
    assert third != first


async def test_a_key_belongs_to_its_kind(note: Any, other: Any) -> None:
    first = await note.using(unique_key="k").enqueue()
    second = await other.using(unique_key="k").enqueue()
    assert first != second
    assert second.created


@pytest.mark.parametrize("blank", [None, "", "  "])
async def test_a_blank_key_is_none(note: Any, blank: str | None) -> None:
    options: dict[str, Any] = {"unique_key": blank, "unique": "forever", "serial_key": blank}
    first = await note.using(**options).enqueue("a")
    second = await note.using(**options).enqueue("a")
    view = await second.get()
    assert second.created
    assert first != second
    assert (view.unique_key, view.serial_key, view.state) == (None, None, State.AVAILABLE)


async def test_a_key_forever_is_held_until_the_row_goes(clocked: Piecework, note: Any) -> None:
    first = await note.using(unique_key="k", unique="forever").enqueue("a")
    await clocked.run_until_idle()
    assert await note.using(unique_key="k").enqueue("a") == first
    assert await first.delete()
    again = await note.using(unique_key="k").enqueue("a")
    assert again.created


async def test_a_key_for_a_window_is_held_until_it_has_passed(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    window = note.using(unique_key="k", unique=timedelta(minutes=10))
    first = await window.enqueue("a")
    await clocked.run_until_idle()
    await clock.advance(599)
    assert await window.enqueue("a") == first
    await clock.advance(1)
    again = await window.enqueue("a")
    assert again.created


async def test_a_kinds_key_may_come_from_the_args_and_have_a_scope_at_the_enqueue(
    clocked: Piecework,
) -> None:
    @clocked.handler(unique_key=lambda text: text or None)
    async def keyed(text: str) -> None: ...

    forever = keyed.using(unique="forever")
    first = await forever.enqueue("a")
    await clocked.run_until_idle()
    assert await forever.enqueue("a") == first
    assert (await first.get()).unique_key == "a"
    nothing = [await forever.enqueue("") for _ in range(2)]
    assert [handle.created for handle in nothing] == [True, True]


async def test_the_enqueues_own_key_wins_over_the_kinds(clocked: Piecework) -> None:
    @clocked.handler(unique_key="kind", serial_key="kind")
    async def keyed() -> None: ...

    own = await (await keyed.using(unique_key="own", serial_key="own").enqueue()).get()
    none = await (await keyed.using(unique_key=None, serial=False).enqueue()).get()
    assert (own.unique_key, own.serial_key) == ("own", "own")
    assert (none.unique_key, none.serial_key) == (None, None)


# ── policies ─────────────────────────────────────────────────────────────────────────────────


async def test_a_duplicate_with_other_args_warns_and_changes_nothing(
    clocked: Piecework, note: Any
) -> None:
    first = await note.using(unique_key="k").enqueue("a")
    with pytest.warns(UserWarning, match="other args") as seen:
        await note.using(unique_key="k").enqueue("b")
    assert (await first.get()).args == {"text": "a"}
    assert str(first.id) in str(seen[0].message)


async def test_raise_names_the_holder_and_stores_nothing(clocked: Piecework, note: Any) -> None:
    first = await note.using(unique_key="k").enqueue("a")
    with pytest.raises(DuplicateJob) as caught:
        await note.using(unique_key="k", on_duplicate="raise").enqueue("a")
    assert (caught.value.kind, caught.value.unique_key, caught.value.job_id) == (
        "note",
        "k",
        first.id,
    )
    with pytest.raises(DuplicateJob):
        await clocked.enqueue_many(
            [
                note.prepare("x"),
                note.using(unique_key="l").prepare("y"),
                note.using(unique_key="k", on_duplicate="raise").prepare("a"),
                note.prepare("z"),
            ]
        )
    assert await stored(clocked) == 1


async def test_raise_also_sees_a_duplicate_inside_the_same_call(
    clocked: Piecework, note: Any
) -> None:
    job = note.using(unique_key="k", on_duplicate="raise").prepare("a")
    with pytest.raises(DuplicateJob):
        await clocked.enqueue_many([job, job])
    assert await stored(clocked) == 0
    assert (await clocked.enqueue(job)).created


async def test_duplicates_inside_one_call_share_the_first(clocked: Piecework, note: Any) -> None:
    job = note.using(unique_key="k").prepare("a")
    handles = await clocked.enqueue_many([note.prepare("x"), job, job, note.prepare("y"), job])
    assert [handle.created for handle in handles] == [True, True, False, True, False]
    assert handles[1] == handles[2] == handles[4]
    assert await stored(clocked) == 3


async def test_replace_gives_a_waiting_job_the_new_args_and_times(
    clocked: Piecework, note: Any, clock: FakeClock
) -> None:
    first = await note.using(
        unique_key="k", delay=60, priority=1, metadata={"a": "1"}, expires_in=90
    ).enqueue("old")
    second = await note.using(
        unique_key="k",
        on_duplicate="replace",
        delay=120,
        priority=2,
        metadata={"b": "2"},
        expires_in=130,
        queue="elsewhere",
    ).enqueue("new")
    view = await first.get()
    assert (second == first, second.created) == (True, False)
    assert (view.args, view.priority, view.metadata) == ({"text": "new"}, 2, {"b": "2"})
    assert view.due_at == clock.now() + timedelta(seconds=120)
    assert view.expires_at == clock.now() + timedelta(seconds=130)
    assert view.queue == "default"
    assert [job.id for job in await clocked.find(metadata={"b": "2"})] == [first.id]
    assert await clocked.find(metadata={"a": "1"}) == []


async def test_replace_makes_a_later_job_due_now(clocked: Piecework, note: Any) -> None:
    first = await note.using(unique_key="k", delay=60).enqueue("old")
    await note.using(unique_key="k", on_duplicate="replace").enqueue("new")
    await clocked.run_until_idle()
    assert await first.result(timeout=5) == "new"


async def test_replace_leaves_a_job_that_has_started_alone(clocked: Piecework) -> None:
    seen: list[dict[str, Any]] = []

    @clocked.handler
    async def slow(text: str) -> None:
        with pytest.warns(UserWarning, match="other args"):
            handle = await slow.using(unique_key="k", on_duplicate="replace").enqueue("new")
        seen.append((await handle.get()).args)

    await slow.using(unique_key="k").enqueue("old")
    await clocked.run_until_idle()
    assert seen == [{"text": "old"}]
    assert await stored(clocked) == 1


async def test_replace_inside_one_call_keeps_the_last(clocked: Piecework, note: Any) -> None:
    job = note.using(unique_key="k", on_duplicate="replace")
    handles = await clocked.enqueue_many([job.prepare("a"), job.prepare("b"), job.prepare("c")])
    assert [handle.created for handle in handles] == [True, False, False]
    assert (await handles[0].get()).args == {"text": "c"}


# ── serial keys ──────────────────────────────────────────────────────────────────────────────


async def test_a_serial_key_lets_one_job_run_at_a_time_in_order(clocked: Piecework) -> None:
    log: list[str] = []

    @clocked.handler
    async def mark(text: str) -> None:
        log.append(f"+{text}")
        await clocked.count()
        log.append(f"-{text}")

    handles = [await mark.using(serial_key="s").enqueue(text) for text in "abc"]
    states = [(await handle.get()).state for handle in handles]
    assert states == [State.AVAILABLE, State.BLOCKED, State.BLOCKED]
    await clocked.run_until_idle()
    assert log == ["+a", "-a", "+b", "-b", "+c", "-c"]


async def test_serial_is_short_for_the_queues_name(clocked: Piecework, note: Any) -> None:
    default = await (await note.using(serial=True).enqueue()).get()
    named = await (await note.using(serial=True, queue="mail").enqueue()).get()
    off = await (await note.using(serial=False, queue="mail").enqueue()).get()
    assert (default.serial_key, named.serial_key, off.serial_key) == ("default", "mail", None)
    assert (named.state, off.state) == (State.AVAILABLE, State.AVAILABLE)


async def test_serial_keys_are_one_namespace_over_all_queues(note: Any, other: Any) -> None:
    await note.using(serial_key="s", queue="a").enqueue()
    second = await other.using(serial_key="s", queue="b", priority=9).enqueue()
    assert (await second.get()).state is State.BLOCKED


async def test_a_future_job_holds_no_serial_key(note: Any) -> None:
    later = await note.using(serial_key="s", delay=60).enqueue()
    now = await note.using(serial_key="s").enqueue()
    assert (await later.get()).state is State.SCHEDULED
    assert (await now.get()).state is State.AVAILABLE
