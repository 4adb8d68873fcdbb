"""What a handler gets is what was enqueued, for every type that JSON can carry."""

import enum
import math
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID

import pytest
import svcs
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from piecework.core.errors import ArgsInvalid
from piecework.handlers.codec import Undecodable, encode_plain
from piecework.handlers.names import check_name
from piecework.handlers.registry import Definition, Registry
from piecework.handlers.results import ResultUnstorable

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Mode(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Point(NamedTuple):
    x: int
    y: float


class Size(TypedDict):
    width: int
    height: NotRequired[int]


class Model(BaseModel):
    name: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    number: int


@dataclass(frozen=True)
class Everything:
    text: str
    number: int
    ratio: float
    yes: bool
    maybe: str | None
    either: int | str | None
    at: datetime
    day: date
    clock: time
    wait: timedelta
    key: UUID
    price: Decimal
    raw: bytes
    color: Color
    mode: Mode
    choice: Literal["a", 1]
    line: Line
    lines: list[Line]
    by_name: dict[str, Line]
    by_number: dict[int, str]
    pair: tuple[int, str]
    many: tuple[int, ...]
    names: set[str]
    point: Point
    size: Size
    model: Model
    path: PurePosixPath
    anything: Any = None
    nested: "Everything | None" = None
    empty: list[int] = field(default_factory=list[int])


@dataclass
class Box(Generic[T]):
    value: T


def everything(args: Everything) -> Everything:
    return args


def spread(
    text: str,
    at: datetime,
    key: UUID,
    price: Decimal,
    color: Color | Mode,
    line: Line | None,
    lines: list[Line],
    size: Size,
    pair: tuple[int, bytes],
    choice: Literal["a", 1] = "a",
    *,
    wait: timedelta | None = None,
    either: int | str = 0,
    model: Model | None = None,
) -> None: ...


def anything(data: Any) -> Any:
    return data


def boxed(args: Box[int]) -> None: ...


def define(handler: Any) -> Definition:
    return Registry(svcs.Registry()).add(handler)


EVERYTHING, SPREAD, ANYTHING = define(everything), define(spread), define(anything)

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(10**30), 10**30)
floats = st.floats(allow_nan=False, allow_infinity=False)
instants = st.datetimes(timezones=st.just(UTC))
waits = st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))
prices = st.decimals(allow_nan=False, allow_infinity=False)
lines = st.builds(Line, texts, numbers)
models = st.builds(Model, name=texts, at=st.none() | instants)
sizes: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"width": numbers}, optional={"height": numbers}
)
data = st.recursive(
    st.none() | st.booleans() | numbers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def records(nested: st.SearchStrategy[Everything | None]) -> st.SearchStrategy[Everything]:
    return st.builds(
        Everything,
        text=texts,
        number=numbers,
        ratio=floats,
        yes=st.booleans(),
        maybe=st.none() | texts,
        either=st.none() | texts | numbers,
        at=instants,
        day=st.dates(),
        clock=st.times(),
        wait=waits,
        key=st.uuids(),
        price=prices,
        raw=st.binary(max_size=20),
        color=st.sampled_from(Color),
        mode=st.sampled_from(Mode),
        choice=st.sampled_from(["a", 1]),
        line=lines,
        lines=st.lists(lines, max_size=3),
        by_name=st.dictionaries(texts, lines, max_size=2),
        by_number=st.dictionaries(numbers, texts, max_size=2),
        pair=st.tuples(numbers, texts),
        many=st.lists(numbers, max_size=3).map(tuple),
        names=st.sets(texts, max_size=3),
        point=st.builds(Point, numbers, floats),
        size=sizes,
        model=models,
        path=st.just(PurePosixPath("a/b")),
        anything=data,
        nested=nested,
    )


@given(records(st.none() | records(st.none())))
def test_an_args_object_comes_back_as_it_was(args: Everything) -> None:
    text = EVERYTHING.encode((args,), {})
    assert EVERYTHING.decode(text) == args
    assert "\n" not in text
    text.encode()


@given(records(st.none()))
def test_a_result_comes_back_as_it_was(result: Everything) -> None:
    assert EVERYTHING.decode_result(EVERYTHING.encode_result(result)) == result


@given(
    st.fixed_dictionaries(
        {
            "text": texts,
            "at": instants,
            "key": st.uuids(),
            "price": prices,
            "color": st.sampled_from([*Color, *Mode]),
            "line": st.none() | lines,
            "lines": st.lists(lines, max_size=3),
            "size": sizes,
            "pair": st.tuples(numbers, st.binary(max_size=5)),
        },
        optional={
            "choice": st.sampled_from(["a", 1]),
            "wait": st.none() | waits,
            "either": numbers | texts,
            "model": models,
        },
    )
)
def test_plain_parameters_come_back_as_they_were(given: dict[str, Any]) -> None:
    assert SPREAD.decode(SPREAD.encode((), given)) == given
    positional = [given.pop(name) for name in ("text", "at", "key", "price")]
    back = SPREAD.decode(SPREAD.encode(positional, given))
    assert [back.pop(name) for name in ("text", "at", "key", "price")] == positional
    assert back == given


@given(data)
def test_plain_json_comes_back_as_it_was(value: Any) -> None:
    assert ANYTHING.decode(ANYTHING.encode((value,), {})) == {"data": value}
    assert ANYTHING.encode_json({"data": value}) == ANYTHING.encode((value,), {})
    assert ANYTHING.decode_result(ANYTHING.encode_result(value)) == value
    assert ANYTHING.decode(encode_plain("far", {"data": value}, limit_bytes=10**6)) == {
        "data": value
    }


@given(st.text(max_size=30) | st.recursive(st.floats(), st.lists, max_leaves=3))
def test_whatever_is_accepted_can_be_read_back(value: Any) -> None:
    """What cannot must be refused before it is stored, never found out in a worker."""
    try:
        text = ANYTHING.encode((value,), {})
    except ArgsInvalid:
        return
    assert ANYTHING.decode(text) == {"data": value}


@given(st.text(max_size=200) | st.text('{}[]",:0123456789eE+-.truefalsn\\u', max_size=200))
def test_no_text_harms_a_reader(text: str) -> None:
    """F11: garbage in the store must never cost more than the job it is in."""
    for definition in (EVERYTHING, SPREAD, ANYTHING):
        with suppress(Undecodable):
            definition.decode(text)


@given(st.floats() | st.lists(st.floats() | st.text(max_size=3), max_size=3) | st.text(max_size=9))
def test_a_result_that_is_stored_can_be_read_back(value: Any) -> None:
    try:
        text = ANYTHING.encode_result(value)
    except ResultUnstorable:
        return
    assert ANYTHING.decode_result(text) == value


def test_a_generic_args_type_is_found_and_checked() -> None:
    definition = define(boxed)
    assert definition.args_type is Box
    box: Box[Any] = Box(1)
    assert definition.decode(definition.encode((box,), {})) == box
    box.value = "1"
    with pytest.raises(ArgsInvalid, match="value"):
        definition.encode((box,), {})


def test_whole_numbers_will_do_for_floats_and_stay_finite() -> None:
    def handle(ratio: float) -> None: ...

    definition = define(handle)
    back = definition.decode(definition.encode((1,), {}))["ratio"]
    assert isinstance(back, float)
    assert math.isclose(back, 1.0)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=50))
def test_a_key_of_ordinary_characters_is_a_name(key: str) -> None:
    if key.strip():
        assert check_name("unique_key", key) == key


@given(st.uuids(), st.datetimes())
def test_json_types_do_not_stand_in_for_python_types(key: UUID, naive: datetime) -> None:
    """Python values are checked strictly: text is no UUID, though JSON writes it so."""

    with pytest.raises(ArgsInvalid, match="key"):
        SPREAD.encode(
            (),
            {
                "text": "",
                "at": naive,
                "key": str(key),
                "price": Decimal(1),
                "color": Color.RED,
                "line": None,
                "lines": [],
                "size": {"width": 1},
                "pair": (1, b""),
            },
        )
