import math
from datetime import timedelta
from typing import Any

import pytest

from piecework.core.retry import Retry
from piecework.handlers.options import Options, as_duration, as_seconds


def test_what_is_left_out_has_the_promised_default() -> None:
    options = Options()
    assert (options.queue, options.priority) == ("default", 0)
    assert (options.max_attempts, options.max_crashes) == (5, 3)
    assert options.retry == Retry()
    assert options.timeout is None
    assert options.expires_in is None
    assert options.concurrency is None
    assert options.isolate is None


def test_durations_are_normalised() -> None:
    given: dict[str, Any] = {"timeout": timedelta(minutes=1), "expires_in": 30, "result_ttl": 0}
    options = Options(**given)
    assert options.timeout == 60.0
    assert isinstance(options.timeout, float)
    assert options.expires_in == timedelta(seconds=30)
    assert options.result_ttl == timedelta(0)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"timeout": 1e12}, "timeout"),
        ({"timeout": timedelta(seconds=-1)}, "timeout"),
        ({"expires_in": timedelta(0)}, "expires_in"),
        ({"result_ttl": timedelta(seconds=-1)}, "result_ttl"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 2**40}, "max_attempts"),
        ({"max_crashes": 0}, "max_crashes"),
        ({"concurrency": 0}, "concurrency"),
        ({"priority": 2**31}, "priority"),
        ({"isolate": "thread"}, "isolate"),
        ({"kind": ""}, "kind"),
        ({"kind": "piecework.x"}, "kind"),
        ({"queue": "a\n"}, "queue"),
        ({"aliases": ["a", "a"]}, "aliases"),
        ({"aliases": ["a"], "kind": "a"}, "aliases"),
        ({"unique_key": "a\x00"}, "unique_key"),
        ({"serial_key": "x" * 201}, "serial_key"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_by_name(
    given: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        Options(**given)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"timeout": "60"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"priority": "high"}, "priority"),
        ({"aliases": "Old"}, r"aliases=\['Old'\]"),
        ({"aliases": 3}, "aliases"),
        ({"queue": None}, "queue"),
        ({"retry": 3}, "max_attempts=1 means no retry"),
        ({"unique_key": 7}, "unique_key"),
        ({"metadata": "a"}, "metadata"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_by_name(given: dict[str, Any], what: str) -> None:
    with pytest.raises(TypeError, match=what):
        Options(**given)


def test_a_blank_key_is_none() -> None:
    assert Options(unique_key=" ", serial_key="").unique_key is None


def test_seconds_and_durations_are_read_alike() -> None:
    assert as_seconds("delay", timedelta(minutes=1)) == as_seconds("delay", 60) == 60.0
    assert as_duration("delay", 0) == timedelta(0)
    assert as_seconds("delay", None) is None
    assert as_duration("delay", None) is None
