"""Every legal move of a job, tested without a store, a clock or a loop."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.core import attempts, lifecycle
from piecework.core.job import FINAL, LIVE, NOW, WAITING, Attempt, Claimed, Job, LogLine, State
from piecework.core.lifecycle import (
    EDGES,
    RUNNING,
    Completed,
    Crashed,
    ErrorInfo,
    Failed,
    GivenBack,
    Outcome,
    Parked,
    Released,
    Snoozed,
    Stopped,
    Transition,
)
from piecework.testing.factories import NOON, WORKER, claimed, job, new_job

OOPS = ErrorInfo("ValueError", "oops", "Traceback: oops")
SECOND = timedelta(seconds=1)
LINE = LogLine(at=NOON, level="INFO", message="x")
OUTCOMES: list[Outcome] = [
    Completed("1"),
    Failed(OOPS, None),
    Failed(OOPS, SECOND),
    Crashed("killed", SECOND),
    Snoozed(SECOND, "busy"),
    Parked("unknown"),
    Stopped("enough"),
    Released(),
    GivenBack(),
]
BACK = (Failed, Crashed, Snoozed, Parked, Released, GivenBack)


def name(outcome: object) -> str:
    final = isinstance(outcome, Failed) and outcome.retry_in is None
    return "FailedForGood" if final else type(outcome).__name__


def attempt(of: Claimed) -> Attempt:
    return Attempt(
        number=of.attempt,
        generation=of.generation,
        fence=of.fence,
        started_at=NOON,
        ended_at=None,
        outcome="ended",
    )


def settle(of: Claimed, outcome: Outcome, **more: Any) -> Transition:
    return lifecycle.settle(of, outcome, ended=attempt(of), **more)


def after(before: Job, move: Transition | None, now: datetime = NOON) -> Job:
    """What a store makes of it, where the guard holds."""
    assert move is not None
    assert move.id == before.id
    assert before.state in move.states
    assert before.fence == move.fence
    assert not (move.unless_cancelled and before.cancel_requested)
    changes: dict[str, Any] = {
        key: now + value if isinstance(value, timedelta) else value
        for key, value in move.changes.items()
        if key != "prune_at"
    }
    return replace(before, **changes)


def claim(waiting: Job) -> tuple[Job, Claimed]:
    """What a store's claim does to a job."""
    running = replace(
        waiting,
        state=State.RUNNING,
        fence=waiting.fence + 1,
        attempt=waiting.attempt + 1,
        worker=WORKER,
        ran_on="node-1",
        started_at=NOON,
    )
    return running, claimed(**{key: getattr(running, key) for key in Claimed._fields})


# ── the drawing ──────────────────────────────────────────────────────────────────────────────


def test_final_states_lead_nowhere_but_to_a_retry() -> None:
    """I5, I6"""
    for before, target in EDGES:
        if before in FINAL:
            assert target in {State.AVAILABLE, State.BLOCKED}
        if target is State.RUNNING:
            assert before is State.AVAILABLE
        if target is State.EXPIRED:
            assert before in WAITING
    assert set(State) == LIVE | FINAL
    assert {before for before, _ in EDGES} == set(State)


# ── settle ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_every_settle_is_guarded_by_state_and_fence(outcome: Outcome) -> None:
    """I4: the fence of the claim, never the attempt; and only edges that are drawn (I6)."""
    of = claimed(fence=7, attempt=3)
    move = settle(of, outcome, progress='"p"', logs=(LINE,))
    assert (move.id, move.states, move.fence) == (of.id, RUNNING, 7)
    assert (State.RUNNING, move.changes["state"]) in EDGES
    assert move.logs == (LINE,)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_only_success_and_stopping_may_follow_a_wish_to_cancel(outcome: Outcome) -> None:
    """I13"""
    expected = not isinstance(outcome, Completed | Stopped)
    assert settle(claimed(), outcome).unless_cancelled is expected


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_what_goes_back_takes_the_fence_away(outcome: Outcome) -> None:
    """I3: nothing of this claim can be written any more; what ends keeps its worker to show."""
    move = settle(claimed(fence=7), outcome)
    if move.changes["state"] in FINAL:
        assert "fence" not in move.changes
        assert "worker" not in move.changes
        assert move.changes.get("finished_at") == NOW
    else:
        assert move.changes.get("fence") == 8
        assert move.changes.get("worker", "kept") is None
        assert move.changes.get("ran_on", "kept") is None
        assert "finished_at" not in move.changes


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_an_attempt_has_a_row_of_its_own_only_where_the_job_goes_on(outcome: Outcome) -> None:
    of = claimed()
    move = settle(of, outcome)
    goes_on = move.changes["state"] in LIVE and not isinstance(outcome, Parked | GivenBack)
    assert move.ended == (attempt(of) if goes_on else None)
    # Once started it does not expire; a job whose handler never began still does.
    assert ("expires_at" in move.changes) == goes_on


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_progress_not_yet_written_comes_with_the_end(outcome: Outcome) -> None:
    with_report = settle(claimed(), outcome, progress='"p"')
    written = with_report.changes.get("progress")
    assert written == (None if isinstance(outcome, Parked | GivenBack) else '"p"')
    assert "progress" not in settle(claimed(), outcome).changes


def test_success_clears_error_and_reason_and_sets_when_to_go() -> None:
    changes = settle(claimed(), Completed('"r"')).changes
    assert changes.get("result") == '"r"'
    assert changes.get("error", "kept") is None
    assert changes.get("reason", "kept") is None
    assert "prune_at" not in changes
    keep = settle(claimed(result_ttl=SECOND), Completed("1")).changes
    assert keep.get("prune_at") == SECOND
    assert "prune_at" not in settle(claimed(result_ttl=SECOND), Failed(OOPS, None)).changes


@pytest.mark.parametrize(
    ("attempt_", "retry_in", "state"),
    [
        (1, SECOND, State.SCHEDULED),
        (4, SECOND, State.SCHEDULED),
        (5, SECOND, State.FAILED),
        (6, SECOND, State.FAILED),
        (1, None, State.FAILED),
        (1, timedelta(0), State.SCHEDULED),
    ],
)
def test_a_failure_is_retried_while_attempts_are_left(
    attempt_: int, retry_in: timedelta | None, state: State
) -> None:
    """I7: the last allowed attempt that fails is the end (C5)."""
    move = settle(claimed(attempt=attempt_, max_attempts=5), Failed(OOPS, retry_in))
    assert move.changes["state"] is state
    assert attempts.decode_error(move.changes.get("error")) == OOPS
    assert "attempt" not in move.changes
    assert move.changes.get("due_at") == (retry_in if state is State.SCHEDULED else None)


@pytest.mark.parametrize(
    ("crashes", "attempt_", "state"),
    [
        (0, 1, State.SCHEDULED),
        (1, 2, State.SCHEDULED),
        (2, 3, State.FAILED),
        (0, 5, State.FAILED),
    ],
)
def test_a_crash_is_counted_apart_and_buries_at_its_bound(
    crashes: int, attempt_: int, state: State
) -> None:
    """F09; the reason says which bound it was."""
    of = claimed(crashes=crashes, attempt=attempt_, max_attempts=5, max_crashes=3)
    changes = settle(of, Crashed("signal 11", SECOND)).changes
    assert (changes["state"], changes.get("crashes")) == (state, crashes + 1)
    assert "signal 11" in str(changes.get("reason"))
    error = attempts.decode_error(changes.get("error"))
    assert error == ErrorInfo("WorkerCrashed", "signal 11")
    if crashes == 2:
        assert "3 times" in str(changes.get("reason"))
    if attempt_ == 5:
        assert "no attempts left" in str(changes.get("reason"))


@pytest.mark.parametrize("outcome", [o for o in OUTCOMES if isinstance(o, BACK)], ids=name)
def test_only_failures_and_crashes_are_charged(outcome: Outcome) -> None:
    """I7"""
    changes = settle(claimed(attempt=3), outcome).changes
    charged = isinstance(outcome, Failed | Crashed)
    assert changes.get("attempt", 3) == (3 if charged else 2)


def test_parking_waits_longer_each_time_up_to_an_hour() -> None:
    """F11"""
    waits = [
        settle(claimed(parked=parked), Parked("unknown")).changes.get("due_at")
        for parked in (0, 1, 2, 5, 6, 50, 10**6)
    ]
    assert waits == [timedelta(minutes=m) for m in (1, 2, 4, 32, 60, 60, 60)]
    changes = settle(claimed(parked=4), Parked("unknown")).changes
    assert (changes.get("parked"), changes.get("reason")) == (5, "unknown")
    assert changes.get("started_at", "kept") is None


@pytest.mark.parametrize("outcome", OUTCOMES, ids=name)
def test_a_worker_that_can_run_it_ends_the_parking(outcome: Outcome) -> None:
    expected = 4 if isinstance(outcome, Parked) else 0
    assert settle(claimed(parked=3), outcome).changes.get("parked") == expected


def test_stopping_keeps_the_reason_of_the_wish() -> None:
    """It was written with the wish; a handler's own Cancelled brings its own."""
    assert "reason" not in settle(claimed(), Stopped()).changes
    assert settle(claimed(), Stopped("mine")).changes.get("reason") == "mine"


def test_a_failure_wipes_an_old_reason_out() -> None:
    assert settle(claimed(), Failed(OOPS, None)).changes.get("reason", "kept") is None


def test_progress_touches_nothing_else() -> None:
    """I17: an owner's write while the run goes on."""
    of = claimed(fence=3)
    move = lifecycle.progress(of, progress='"p"', partial=None, logs=(LINE,))
    assert (move.states, move.fence, move.logs) == (RUNNING, 3, (LINE,))
    assert move.changes == {"state": State.RUNNING, "progress": '"p"'}
    assert not move.unless_cancelled
    both = lifecycle.progress(of, progress=None, partial='"q"')
    assert both.changes == {"state": State.RUNNING, "partial": '"q"'}


@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=40),
    max_attempts=st.integers(1, 6),
    max_crashes=st.integers(1, 4),
)
def test_a_generation_ends_within_its_attempts_and_crashes(
    outcomes: list[Outcome], max_attempts: int, max_crashes: int
) -> None:
    """I3, I6, I7: whatever happens to it, in any order."""
    now = job(max_attempts=max_attempts, max_crashes=max_crashes)
    charged = 0
    for outcome in outcomes:
        running, of = claim(replace(now, state=State.AVAILABLE))
        before, now = running, after(running, settle(of, outcome))
        assert now.fence >= before.fence
        assert now.state in FINAL or now.fence > before.fence
        charged += isinstance(outcome, Failed | Crashed)
        assert now.attempt <= max_attempts
        assert now.crashes <= max_crashes
        if now.state in FINAL:
            break
        assert now.attempt == charged
        assert charged < max_attempts
        assert now.crashes < max_crashes


# ── cancel ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", sorted(WAITING))
def test_a_waiting_job_is_cancelled_at_once(state: State) -> None:
    """I13"""
    waiting = job(state, fence=4)
    done = after(waiting, lifecycle.cancel(waiting, "why"))
    assert (done.state, done.reason) == (State.CANCELLED, "why")
    assert done.finished_at == done.cancel_requested == NOON


def test_a_running_job_gets_the_wish_once() -> None:
    running = job(State.RUNNING)
    wished = after(running, lifecycle.cancel(running, "why"))
    assert (wished.state, wished.cancel_requested, wished.reason) == (State.RUNNING, NOON, "why")
    assert wished.finished_at is None
    assert lifecycle.cancel(wished, "again") is None


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_job_is_not_cancelled(state: State) -> None:
    assert lifecycle.cancel(job(state), None) is None


# ── an operator's retry ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", sorted(LIVE))
def test_a_live_job_is_not_retried(state: State) -> None:
    assert lifecycle.retry(job(state)) is None


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_retry_is_a_new_generation_with_nothing_of_the_old_one(state: State) -> None:
    """I3"""
    before = job(
        state,
        generation=3,
        fence=8,
        attempt=4,
        crashes=2,
        parked=1,
        expires_at=NOON,
        cancel_requested=NOON,
        progress='"p"',
        partial='"q"',
        reason="why",
    )
    now = after(before, lifecycle.retry(before), NOON + SECOND)
    assert (now.state, now.generation, now.due_at) == (State.AVAILABLE, 4, NOON + SECOND)
    assert now.fence > before.fence
    fresh = job(id=before.id, generation=4, fence=now.fence, due_at=NOON + SECOND)
    assert now == fresh


def test_a_retry_takes_its_unique_key_anew() -> None:
    """I10"""
    for key, takes in ((None, False), ("u", True)):
        move = lifecycle.retry(job(State.FAILED, unique_key=key))
        assert move is not None
        assert move.take_unique is takes


def test_a_retry_makes_a_row_of_the_last_attempt() -> None:
    failed = job(State.FAILED)
    move = lifecycle.retry(failed)
    assert move is not None
    assert move.ended is not None
    assert (move.ended.outcome, move.ended.number, move.ended.fence) == ("failed", 5, 9)
    assert move.ended.error == "ValueError: no such page"
    never = lifecycle.retry(job(State.CANCELLED))
    assert never is not None
    assert never.ended is None


# ── reschedule and replace ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("due", "state"),
    [
        (NOW, State.AVAILABLE),
        (-SECOND, State.AVAILABLE),
        (SECOND, State.SCHEDULED),
        (NOON, State.AVAILABLE),
        (NOON + timedelta(microseconds=1), State.SCHEDULED),
        (NOON - SECOND, State.AVAILABLE),
    ],
)
@pytest.mark.parametrize("waiting", sorted(WAITING))
def test_a_waiting_job_moves_to_another_time(waiting: State, due: Any, state: State) -> None:
    """Due exactly now is due (I11)."""
    move = lifecycle.reschedule(job(waiting), due, now=NOON)
    assert move is not None
    assert move.changes == {"state": state, "due_at": due}


@pytest.mark.parametrize("state", sorted(set(State) - WAITING))
def test_a_job_that_does_not_wait_is_neither_rescheduled_nor_replaced(state: State) -> None:
    assert lifecycle.reschedule(job(state), NOW, now=NOON) is None
    assert lifecycle.replace(job(state), new_job(), now=NOON) is None


def test_replace_gives_a_job_that_has_not_started_what_is_new() -> None:
    new = new_job(args="[2]", metadata={"a": "b"}, priority=7, due=SECOND, expires=2 * SECOND)
    old = job(metadata={"x": "y"})
    now = after(old, lifecycle.replace(old, new, now=NOON))
    assert (now.args, now.metadata, now.priority) == ("[2]", {"a": "b"}, 7)
    assert (now.state, now.due_at) == (State.SCHEDULED, NOON + SECOND)
    assert now.expires_at == NOON + 2 * SECOND


@pytest.mark.parametrize("started", [{"started_at": NOON}, {"attempt": 1}])
def test_replace_leaves_a_job_that_has_started_alone(started: dict[str, Any]) -> None:
    """Its retry runs with the args of its first attempt, also after a claim was given back."""
    assert lifecycle.replace(job(State.SCHEDULED, **started), new_job(), now=NOON) is None


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({}, None),
        ({"expires": SECOND}, NOON + SECOND),
        ({"expires": NOON}, NOON),
        ({"expires": SECOND, "due": 9 * SECOND}, NOON + SECOND),
        ({"kind_expires": SECOND}, NOON + SECOND),
        ({"kind_expires": SECOND, "due": 9 * SECOND}, NOON + 10 * SECOND),
        ({"kind_expires": SECOND, "due": NOON - 9 * SECOND}, NOON + SECOND),
        ({"kind_expires": SECOND, "expires": 5 * SECOND}, NOON + 5 * SECOND),
    ],
)
def test_expiry_counts_from_the_enqueue_and_a_kinds_default_from_the_start(
    fields: dict[str, Any], at: datetime | None
) -> None:
    """C17"""
    assert lifecycle.expiry(new_job(**fields), NOON) == at


# ── rescue ───────────────────────────────────────────────────────────────────────────────────


def test_the_first_crash_goes_back_at_once_and_the_next_ones_wait() -> None:
    """F01, F09: the attempt stays charged."""
    running = job(State.RUNNING, fence=5, attempt=2)
    first = after(running, lifecycle.rescue(running, retry_in=SECOND), NOON)
    assert (first.state, first.due_at, first.crashes) == (State.AVAILABLE, NOON, 1)
    again = replace(running, crashes=1)
    second = after(again, lifecycle.rescue(again, retry_in=SECOND), NOON)
    assert (second.state, second.due_at) == (State.SCHEDULED, NOON + SECOND)
    for now in (first, second):
        assert (now.fence, now.attempt) == (6, 2)
        assert (now.worker, now.ran_on, now.expires_at) == (None, None, None)
        assert "node-1 was lost" in str(now.reason)


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"crashes": 2, "max_crashes": 3}, "3 times"), ({"attempt": 5}, "no attempts left")],
)
def test_a_rescue_buries_at_the_bounds(fields: dict[str, Any], why: str) -> None:
    running = job(State.RUNNING, **fields)
    move = lifecycle.rescue(running, retry_in=SECOND)
    now = after(running, move)
    assert (now.state, now.finished_at) == (State.FAILED, NOON)
    assert why in str(now.reason)
    assert now.fence > running.fence
    assert move.ended is None
    assert now.worker == running.worker


def test_a_rescue_after_a_wish_to_cancel_cancels() -> None:
    """I13, and the reason of the wish stays."""
    running = job(State.RUNNING, cancel_requested=NOON, reason="enough", crashes=9)
    now = after(running, lifecycle.rescue(running, retry_in=SECOND))
    assert (now.state, now.reason, now.finished_at) == (State.CANCELLED, "enough", NOON)


def test_a_rescue_decided_before_the_wish_is_guarded() -> None:
    """I13: it would send a job back to waiting that was to be cancelled."""
    assert lifecycle.rescue(job(State.RUNNING), retry_in=SECOND).unless_cancelled


def test_a_rescued_attempt_has_a_row() -> None:
    move = lifecycle.rescue(job(State.RUNNING), retry_in=SECOND)
    assert move.ended is not None
    assert (move.ended.outcome, move.ended.worker, move.ended.node) == ("crashed", WORKER, "node-1")
    assert move.ended.ended_at is None


# ── a claim whose answer was lost ────────────────────────────────────────────────────────────


def test_a_lost_claim_is_undone_uncharged() -> None:
    """F02, F21: guarded like every move of a running job, and the fence moves on (I3)."""
    waiting = job(fence=3, attempt=1, crashes=1)
    running, _ = claim(waiting)
    move = lifecycle.give_back(running)
    assert move.unless_cancelled
    assert after(running, move) == replace(waiting, fence=5)


# ── errors as data ───────────────────────────────────────────────────────────────────────────


@given(st.text(), st.text(), st.none() | st.text())
def test_an_error_comes_back_as_it_was_if_stores_can_hold_it(
    type_: str, message: str, traceback: str | None
) -> None:
    """F13: NUL and lone surrogates are replaced, the rest stays."""
    text = attempts.encode_error(ErrorInfo(type_, message, traceback))
    text.encode()
    assert "\\u0000" not in text
    back = attempts.decode_error(text)
    assert back is not None
    if message.isprintable() and len(type_) <= 200:
        assert back.message == message


@given(st.characters(codec=None) | st.just("\ud800") | st.just("\x00"), st.integers(0, 60_000))
def test_an_error_is_bounded_and_keeps_both_ends(char: str, size: int) -> None:
    """F13: 50 MB of error must not block the completion."""
    text = attempts.encode_error(ErrorInfo("E", "<" + char * size + ">", "T" * size))
    assert len(text) < 300_000
    back = attempts.decode_error(text)
    assert back is not None
    assert back.message[0] == "<"
    assert back.message[-1] == ">"
    assert len(back.message) <= attempts.MAX_ERROR_CHARS + 60
    if size > attempts.MAX_ERROR_CHARS:
        assert "characters left out" in back.message
        assert "characters left out" in str(back.traceback)


@pytest.mark.parametrize("text", ["", "not json", "null", "[1]", '{"type": "E"}', "7", '"x"'])
def test_a_foreign_error_text_becomes_the_message(text: str) -> None:
    assert attempts.decode_error(text) == ErrorInfo("Error", text)


def test_no_error_is_none() -> None:
    assert attempts.decode_error(None) is None
    assert str(ErrorInfo("E", "why")) == "E: why"
    assert str(ErrorInfo("E", "")) == "E"
    encoded = json.loads(attempts.encode_error(ErrorInfo("E", "ü")))
    assert encoded == {"type": "E", "message": "ü", "traceback": None}


# ── attempts ─────────────────────────────────────────────────────────────────────────────────


def test_a_job_tells_of_its_last_attempt_only_while_it_names_a_worker() -> None:
    """A row of its own tells of it otherwise, and it must not be told twice."""
    for state in WAITING:
        assert attempts.attempt_of(job(state, started_at=NOON)) is None
    assert attempts.attempt_of(job(State.EXPIRED)) is None
    running = attempts.attempt_of(job(State.RUNNING, error="old"))
    assert running is not None
    assert (running.outcome, running.error, running.ended_at) == (None, None, None)
    done = attempts.attempt_of(job(State.COMPLETED))
    assert done is not None
    assert (done.outcome, done.error) == ("completed", None)
    assert done.ended_at is not None
