from dataclasses import dataclass
from typing import Any

import pytest

from piecework.core.errors import ArgsInvalid
from piecework.handlers.options import Options
from piecework.handlers.registry import Definition, Registry


@dataclass(frozen=True)
class OrderJob:
    order_id: str


def ship(args: OrderJob) -> None: ...


def resize(path: str, width: int = 320, *, crop: bool = False) -> None: ...


def keys_of(definition: Definition, *args: Any, **kwargs: Any) -> tuple[str | None, str | None]:
    return definition.keys_for(definition.bind(args, kwargs))


def test_without_keys_nothing_is_asked(registry: Registry) -> None:
    definition = registry.add(ship)
    assert not definition.has_keys
    assert keys_of(definition, OrderJob("1")) == (None, None)


def test_a_key_may_be_constant(registry: Registry) -> None:
    definition = registry.add(ship, Options(unique_key="one", serial_key="line"))
    assert definition.has_keys
    keys = definition.keys_for(OrderJob("1"))
    assert (keys.unique, keys.serial) == ("one", "line")


def test_a_key_function_gets_the_args_object(registry: Registry) -> None:
    definition = registry.add(ship, Options(unique_key=lambda args: f"order-{args.order_id}"))
    assert keys_of(definition, OrderJob("7")) == ("order-7", None)
    assert definition.keys_for(definition.decode('{"order_id":"8"}')).unique == "order-8"


BY_NAME: Any = {
    "one": (lambda path: path, "a"),
    "two": (lambda path, width: f"{path}{width}", "a320"),
    "swapped": (lambda width, path: f"{path}{width}", "a320"),
    "keyword": (lambda path, crop: f"{path}{crop}", "aFalse"),
    "all": (lambda **given: ",".join(sorted(given)), "crop,path,width"),
    "renamed": (lambda p, w, c: f"{p}{w}{c}", "a320False"),
    "first": (lambda p: p, "a"),
    "in C": (str, "a"),
    "own default": (lambda path, other="x": path + other, "ax"),
}


@pytest.mark.parametrize(("key", "expected"), BY_NAME.values(), ids=BY_NAME)
def test_a_key_function_gets_the_parameters_it_names(
    registry: Registry, key: Any, expected: str
) -> None:
    """With the handler's own defaults for what was not given."""
    definition = registry.add(resize, Options(serial_key=key))
    assert keys_of(definition, "a") == (None, expected)


def test_a_key_function_that_asks_for_too_much_is_told_what_there_is(registry: Registry) -> None:
    definition = registry.add(resize, Options(unique_key=lambda a, b, c, d: "x"))
    with pytest.raises(TypeError, match="path, width, crop"):
        keys_of(definition, "a")


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_a_blank_key_is_none(registry: Registry, blank: str | None) -> None:
    definition = registry.add(ship, Options(unique_key=lambda args: blank))
    assert keys_of(definition, OrderJob("1")) == (None, None)


async def later(args: OrderJob) -> str:
    return args.order_id


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (lambda args: args.nothing, "AttributeError"),
        (lambda args: 7, "must be a str"),
        (lambda args: "x" * 201, "201 characters"),
        (lambda args: "a\x00", "control character"),
        (later, "must be a str, not coroutine"),
    ],
)
def test_a_key_function_that_fails_refuses_the_job_by_name(
    registry: Registry, key: Any, why: str
) -> None:
    definition = registry.add(ship, Options(unique_key=key))
    with pytest.raises(ArgsInvalid, match=why) as caught:
        keys_of(definition, OrderJob("1"))
    assert "unique_key" in caught.value.detail
