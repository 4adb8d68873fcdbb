"""How long to wait before the next attempt."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.core.retry import Retry, exponential

YEAR = 365 * 86_400
ATTEMPTS = st.integers(1, 10**9)
SECONDS = st.floats(0, 1e300)


def test_the_wait_doubles_up_to_the_cap() -> None:
    waits = [exponential(n, base=1, factor=2, cap=60) for n in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        exponential(attempt, base=1, factor=2, cap=60)


@given(attempt=ATTEMPTS, base=SECONDS, factor=SECONDS, cap=SECONDS)
def test_no_input_overflows(attempt: int, base: float, factor: float, cap: float) -> None:
    """F44: a huge attempt or factor is capped, never an error, never NaN."""
    wait = exponential(attempt, base=base, factor=factor, cap=cap)
    assert 0 <= wait <= cap


@given(attempt=st.integers(1, 1000), base=st.floats(0, 1e6), factor=st.floats(1, 10))
def test_waits_never_shrink(attempt: int, base: float, factor: float) -> None:
    first = exponential(attempt, base=base, factor=factor, cap=3600)
    assert exponential(attempt + 1, base=base, factor=factor, cap=3600) >= first


@given(attempt=ATTEMPTS, spread=st.floats(0, 1))
def test_jitter_is_full(attempt: int, spread: float) -> None:
    """Uniform between nothing and the whole wait, so that a storm spreads out (F44)."""
    whole = Retry(jitter=False).delay(attempt, spread=spread)
    assert Retry().delay(attempt, spread=spread) == whole * spread
    assert Retry().delay(attempt, spread=0) == 0
    assert Retry().delay(attempt) == whole


def test_the_defaults_are_those_of_the_manual() -> None:
    retry = Retry()
    assert (retry.base, retry.factor, retry.cap, retry.jitter) == (1, 2, 3600, True)
    assert [retry.delay(n) for n in (1, 2, 12, 13, 14)] == [1, 2, 2048, 3600, 3600]


def test_of_fixed_delays_the_last_repeats() -> None:
    retry = Retry(delays=[5, 0, 60], jitter=False)
    assert [retry.delay(n) for n in (1, 2, 3, 4, 99)] == [5, 0, 60, 60, 60]
    assert Retry(delays=[10]).delay(1, spread=0.5) == 5
    assert Retry(delays=[], jitter=False).delay(3) == 4


@given(attempt=ATTEMPTS, delay=st.floats(0, 1e300))
def test_no_wait_is_longer_than_a_year(attempt: int, delay: float) -> None:
    """What a datetime cannot hold must not be reached by adding it (F44)."""
    assert Retry(delays=[delay], jitter=False).delay(attempt) == min(delay, YEAR)
    assert Retry(base=delay, cap=delay, jitter=False).delay(attempt) <= YEAR


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["base", "factor", "cap", "delays"])
def test_what_is_not_a_time_is_refused(field: str, bad: float) -> None:
    """At once, not at the first failure (F44)."""
    fields: dict[str, Any] = {field: [1.0, bad] if field == "delays" else bad}
    with pytest.raises(ValueError, match="finite"):
        Retry(**fields)


def test_some_errors_are_never_retried() -> None:
    assert not Retry().gives_up_on(ValueError())
    one = Retry(give_up_on=LookupError)
    assert one.gives_up_on(KeyError())
    assert not one.gives_up_on(ValueError())
    two = Retry(give_up_on=[ValueError, KeyError])
    assert two.gives_up_on(KeyError())
    assert not two.gives_up_on(LookupError())
