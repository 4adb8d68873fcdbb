from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from piecework.core.errors import ResultInvalid
from piecework.handlers.registry import Definition, Registry
from piecework.handlers.results import ResultUnstorable


@dataclass
class Report:
    pages: int
    title: str = ""


class Wider(BaseModel):
    pages: int
    note: float | None = None


def define(returns: Any) -> Definition:
    def handle() -> None: ...

    handle.__annotations__["return"] = returns
    return Registry().add(handle)


@pytest.mark.parametrize(
    ("returns", "text", "value"),
    [
        (int, "42", 42),
        (float, "1", 1.0),
        (None, "null", None),
        (Any, '{"a":[1]}', {"a": [1]}),
        (Report, '{"pages":1}', Report(1)),
        (Report, '{"pages":1,"older":true}', Report(1)),
        (Report | None, "null", None),
        (list[Report], '[{"pages":1}]', [Report(1)]),
        (Wider, '{"pages":1}', Wider(pages=1)),
        (tuple[int, str], '[1,"a"]', (1, "a")),
        (object(), '"plain"', "plain"),
    ],
)
def test_a_result_is_read_by_the_return_annotation(returns: Any, text: str, value: Any) -> None:
    assert define(returns).decode_result(text) == value


def test_without_an_annotation_a_result_is_plain_json(registry: Registry) -> None:
    def handle() -> Any:
        return Report(1)

    del handle.__annotations__["return"]
    definition = registry.add(handle)
    assert definition.decode_result(definition.encode_result(Report(1))) == {
        "pages": 1,
        "title": "",
    }


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        (int, '"42"'),
        (int, "true"),
        (int, "null"),
        (None, "1"),
        (Report, "null"),
        (Wider, "null"),
        (Report, '{"pages":"1"}'),
        (datetime, '"yesterday"'),
        (int, ""),
        (int, "["),
        (Any, "[" * 10_000),
    ],
)
def test_a_result_that_does_not_fit_says_so_in_one_line(returns: Any, text: str) -> None:
    with pytest.raises(ResultInvalid) as caught:
        define(returns).decode_result(text)
    assert len(str(caught.value).splitlines()) == 1


def circle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": object()},
        float("nan"),
        [float("-inf")],
        Wider(pages=1, note=float("inf")),
        [Wider(pages=1, note=float("nan"))],
        "\ud800",
        circle(),
        deep(220),
        deep(300),
        type,
        b"x" * 1_000_000,
    ],
)
def test_what_json_cannot_hold_is_no_result(value: Any) -> None:
    with pytest.raises(ResultUnstorable) as caught:
        define(Any).encode_result(value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_result_beyond_the_limit_is_refused() -> None:
    def handle() -> str:
        return ""

    definition = Registry(max_args_bytes=10).add(handle)
    assert definition.encode_result("x" * 8) == '"xxxxxxxx"'
    with pytest.raises(ResultUnstorable, match="11 bytes of JSON, the limit is 10"):
        definition.encode_result("x" * 9)


def test_a_result_keeps_what_its_annotation_does_not_name() -> None:
    """The dashboard shows the whole of it; only the typed reading leaves the rest out."""

    @dataclass
    class Long(Report):
        extra: int = 5

    definition = define(Report)
    text = definition.encode_result(Long(1))
    assert text == '{"pages":1,"title":"","extra":5}'
    assert definition.decode_result(text) == Report(1)
