"""The clock for tests stands still until it is told to go on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from piecework.core.job import FINAL, State
from piecework.testing import FakeClock, claimed, job, new_job


async def test_sleepers_wake_once_their_time_has_come() -> None:
    clock, woken = FakeClock(), list[float]()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2)]
    await clock.advance(0)
    assert clock.sleepers == 3
    await clock.advance(0.999)
    assert woken == []
    await clock.advance(0.001)
    assert woken == [1]
    await clock.advance(timedelta(hours=1))
    assert woken == [1, 2, 3]
    assert clock.sleepers == 0
    await asyncio.gather(*tasks)


async def test_no_time_to_sleep_is_a_turn_of_the_loop() -> None:
    clock = FakeClock()
    await asyncio.wait_for(clock.sleep(0), 5)
    await asyncio.wait_for(clock.sleep(-1), 5)


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.advance(0)
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleepers == 0
    await clock.advance(5)


def test_a_sleeper_whose_loop_is_closed_is_forgotten() -> None:
    clock = FakeClock()

    async def begin() -> None:
        task = asyncio.create_task(clock.sleep(5))
        await clock.advance(0)
        del task

    async def wake() -> None:
        await clock.advance(5)

    asyncio.run(begin())
    asyncio.run(wake())


async def test_now_may_step_back_and_monotonic_never_does() -> None:
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    await clock.advance(10)
    await clock.advance(-3_600)
    assert clock.now() == datetime(2025, 12, 31, 23, 0, 10, tzinfo=UTC)
    assert clock.monotonic() == 10
    await clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    assert clock.now() == datetime(2026, 6, 1, tzinfo=UTC)
    assert clock.monotonic() > 10
    for _ in range(10):
        await clock.advance(0.1)
    assert clock.now() == datetime(2026, 6, 1, 0, 0, 1, tzinfo=UTC)


async def test_it_begins_at_an_aware_instant_and_shows_utc() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        FakeClock(datetime(2026, 1, 1))
    clock = FakeClock(datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now() == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.now().tzinfo is UTC
    assert repr(clock) == "<FakeClock 2026-01-01 00:00:00.000000>"


@pytest.mark.parametrize("state", State)
def test_factories_fill_in_what_the_state_implies(state: State) -> None:
    made = job(state)
    assert made.state is state
    assert (made.finished_at is not None) == (state in FINAL)
    if state in {State.RUNNING, State.COMPLETED, State.FAILED}:
        assert None not in (made.worker, made.started_at, made.ran_on)
        assert made.attempt >= 1
        assert made.fence >= 1
    assert (made.result is not None) == (state is State.COMPLETED)
    assert (made.error is not None) == (state is State.FAILED)
    assert job(state, attempt=3, reason="why").reason == "why"


def test_factories_give_fresh_ids() -> None:
    assert new_job().id < new_job().id < claimed().id < job().id
    assert claimed(fence=7).fence == 7
    assert new_job(queue="q").queue == "q"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("StoreConformance", "pytest"),
        ("make_machine", "hypothesis"),
        ("StoreMachine", "hypothesis"),
    ],
)
def test_without_its_library_only_that_part_is_missing(name: str, missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import piecework.testing
piecework.testing.FakeClock()
try:
    piecework.testing.{name}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"piecework.testing.{name} needs {missing}" in done.stdout


def test_importing_it_brings_neither_pytest_nor_hypothesis() -> None:
    code = "import sys, piecework.testing; print({'pytest', 'hypothesis'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
