"""Who may be claimed, and what a rate allows: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.core.job import WorkerId
from piecework.ports import Ask
from piecework.stores._admission import PASSED_OVER, Candidate, QueueCap, pick, refill

START = datetime(2026, 1, 5, 9, tzinfo=UTC)


def ask(free: int, ahead: int = 0, **rooms: int) -> Ask:
    return Ask(worker=WorkerId(UUID(int=1)), node="n", free=free, ahead=ahead, rooms=rooms)


def row(number: int, kind: str = "a", queue: str = "q", *, affordable: bool = True) -> Candidate:
    return Candidate(number, kind, queue, affordable)


def ids(rows: list[Any]) -> list[Any]:
    return [one.id for one in rows]


def test_the_first_free_are_any_and_those_ahead_must_afford_a_crash() -> None:
    rows = [row(1, affordable=False), row(2, affordable=False), row(3), row(4), row(5)]
    assert ids(pick(rows, ask(1), {})) == [1]
    assert ids(pick(rows, ask(1, 2), {})) == [1, 3, 4]
    assert ids(pick(rows, ask(0, 1), {})) == [3]
    assert ids(pick(rows, ask(0), {})) == []
    assert ids(pick(rows, ask(9, 9), {})) == [1, 2, 3, 4, 5]


def test_nothing_is_looked_at_when_nothing_is_asked_or_enough_was_found() -> None:
    looked: list[int] = []

    def rows() -> Any:
        for number in range(9):
            looked.append(number)
            yield row(number)

    assert pick(rows(), ask(0), {}) == []
    assert looked == []
    assert len(pick(rows(), ask(2), {})) == 2
    assert looked == [0, 1]


def test_no_kind_gets_more_than_its_room() -> None:
    rows = [row(n, kind) for n, kind in enumerate("abcabcabc")]
    assert ids(pick(rows, ask(9, a=1, b=0), {})) == [0, 2, 5, 8]
    assert ids(pick(rows, ask(9, a=-1), {})) == [1, 2, 4, 5, 7, 8]


def test_no_queue_gets_more_than_its_cap() -> None:
    rows = [row(n, queue=queue) for n, queue in enumerate("pqpqpq")]
    caps = {"p": QueueCap(running=1), "q": QueueCap(tokens=2.5), "r": QueueCap(running=0)}
    assert ids(pick(rows, ask(9), caps)) == [0, 1, 3]
    assert ids(pick(rows, ask(9), {"p": QueueCap()})) == [0, 1, 2, 3, 4, 5]


def test_a_kind_without_room_uses_nothing_of_the_queues_cap() -> None:
    rows = [row(1, "full"), row(2, "full"), row(3, "ok")]
    assert ids(pick(rows, ask(9, full=0), {"q": QueueCap(running=1)})) == [3]


@pytest.mark.parametrize("wish", [{"free": 2, "a": 0}, {"free": 0, "ahead": 2}])
def test_only_so_many_rows_are_passed_over(wish: dict[str, int]) -> None:
    def rows(count: int) -> list[Candidate]:
        return [*(row(n, affordable=False) for n in range(count)), row(-1, "b")]

    assert ids(pick(rows(PASSED_OVER * 2 - 1), ask(**wish), {})) == [-1]
    assert ids(pick(rows(PASSED_OVER * 2), ask(**wish), {})) == []


def test_rows_of_a_full_queue_are_not_counted_as_passed_over() -> None:
    rows = [*(row(n, queue="full") for n in range(500)), row(-1)]
    assert ids(pick(rows, ask(1), {"full": QueueCap(running=0)})) == [-1]


@pytest.mark.parametrize(
    ("cap", "room"),
    [
        (QueueCap(), None),
        (QueueCap(running=3), 3),
        (QueueCap(tokens=2.999), 2),
        (QueueCap(tokens=2.9999999999), 3),
        (QueueCap(running=3, tokens=7), 3),
        (QueueCap(running=3, tokens=0.5), 0),
        (QueueCap(running=-1), -1),
    ],
)
def test_a_cap_is_the_least_of_slots_and_whole_tokens(cap: QueueCap, room: int | None) -> None:
    assert cap.room == room
    assert cap.closed == (room is not None and room <= 0)


def test_a_bucket_fills_evenly_and_holds_at_most_n() -> None:
    def after(seconds: float, tokens: float = 0.0) -> float:
        return refill(tokens, START, START + timedelta(seconds=seconds), 6, 60)

    assert [after(wait) for wait in (0, 5, 10, 60, 600)] == [0, 0.5, 1, 6, 6]
    assert after(5, 1.5) == 2
    assert after(0, 9) == 6


def test_a_clock_that_steps_back_neither_adds_nor_takes_tokens() -> None:
    assert refill(1.5, START, START - timedelta(days=1), 6, 60) == 1.5


@given(
    n=st.integers(1, 20),
    window=st.sampled_from([0.1, 1.0, 7.0, 60.0, 3600.0]),
    steps=st.lists(st.tuples(st.floats(-5, 30), st.integers(0, 10)), max_size=60),
)
def test_claims_in_any_span_stay_within_the_rate(
    n: int, window: float, steps: list[tuple[float, int]]
) -> None:
    """I14, with a clock that also steps back: spans are counted by the latest instant shown."""
    now = latest = filled = START
    tokens, claims = float(n), list[float]()
    for seconds, wish in steps:
        now += timedelta(seconds=seconds)
        latest = max(latest, now)
        tokens, filled = refill(tokens, filled, now, n, window), max(filled, now)
        taken = min(wish, max(0, QueueCap(tokens=tokens).room or 0))
        tokens -= taken
        claims += [latest.timestamp()] * taken
    for first, start in enumerate(claims):
        for last, end in enumerate(claims[first:], first):
            assert last - first + 1 <= n + n * (end - start) / window + 1e-3


@given(
    kinds=st.lists(st.sampled_from("abc"), max_size=30),
    wish=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    room=st.integers(0, 4),
    cap=st.integers(0, 6),
    data=st.data(),
)
def test_no_bound_is_ever_broken(
    kinds: list[str], wish: tuple[int, int], room: int, cap: int, data: st.DataObject
) -> None:
    free, ahead = wish
    queues = st.sampled_from("qr")
    rows = [
        row(n, kind, data.draw(queues), affordable=data.draw(st.booleans()))
        for n, kind in enumerate(kinds)
    ]
    chosen = pick(rows, ask(free, ahead, a=room), {"q": QueueCap(running=cap)})
    assert ids(chosen) == sorted(ids(chosen))
    assert len(chosen) <= free + ahead
    assert all(one.affordable for one in chosen[free:])
    assert sum(one.kind == "a" for one in chosen) <= room
    assert sum(one.queue == "q" for one in chosen) <= cap
