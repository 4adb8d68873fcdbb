import functools
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import svcs
from pydantic import BaseModel

from piecework.core.errors import AmbiguousArgs, DuplicateKind, NotImportable, UnknownKind
from piecework.handlers.options import Isolate, Options
from piecework.handlers.registry import Registry
from piecework.handlers.run import Run


@dataclass(frozen=True)
class OrderJob:
    order_id: str


class Mailer: ...


class Outer:
    class Inner:
        def __call__(self, n: int) -> int:
            return n


async def top_level(args: OrderJob) -> None: ...


def test_a_kind_is_the_qualified_name_without_the_module(registry: Registry) -> None:
    assert registry.add(top_level).kind == "top_level"
    assert registry.add(Outer.Inner).kind == "Outer.Inner"


def test_a_kind_has_no_enclosing_function_in_it(registry: Registry) -> None:
    """A stored kind must not depend on the factory that the handlers are made in."""

    def ship() -> None: ...

    class Mail:
        def __call__(self) -> None: ...

    assert registry.add(ship).kind == "ship"
    assert registry.add(Mail).kind == "Mail"


def test_a_lambda_needs_a_kind(registry: Registry) -> None:
    with pytest.raises(ValueError, match="kind="):
        registry.add(lambda: None)
    assert registry.add(lambda: None, Options(kind="nothing")).kind == "nothing"


def test_a_kind_is_found_by_name_and_by_alias(registry: Registry) -> None:
    definition = registry.add(top_level, Options(kind="Ship", aliases=["ship", "Send"]))
    assert registry.get("Ship") is registry.get("Send") is definition
    assert registry.get("top_level") is None
    assert registry.kinds() == ("Ship",)


@pytest.mark.parametrize(
    "options", [Options(kind="a"), Options(kind="old"), Options(kind="b", aliases=["old"])]
)
def test_two_handlers_cannot_share_a_name(registry: Registry, options: Options) -> None:
    def first() -> None: ...
    def second() -> None: ...

    definition = registry.add(first, Options(kind="a", aliases=["old"]))
    with pytest.raises(DuplicateKind) as caught:
        registry.add(second, options)
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
    assert registry.kinds() == ("a",)
    assert registry.get("old") is definition


def test_the_same_name_again_replaces_as_in_a_notebook(registry: Registry) -> None:
    def cell(version: int) -> Callable[..., Any]:
        def ship() -> int:
            return version

        return ship

    registry.add(cell(1), Options(aliases=["old"]))
    second = registry.add(cell(2))
    assert registry.get("ship") is second
    assert registry.get("old") is None, "an alias that was dropped is gone"
    assert registry.kinds() == ("ship",)


def test_a_replaced_handler_is_not_found_by_its_args_any_more(registry: Registry) -> None:
    def cell() -> tuple[type[Any], Callable[..., Any]]:
        @dataclass
        class Job: ...

        def ship(args: Job) -> None: ...

        return Job, ship

    old, first = cell()
    new, second = cell()
    registry.add(first)
    assert registry.for_args(old()).kind == "ship"
    registry.add(second)
    assert registry.for_args(new()).kind == "ship"
    with pytest.raises(UnknownKind):
        registry.for_args(old())


# ── by the type of the args ──────────────────────────────────────────────────────────────────


def test_a_handler_is_found_by_the_exact_type_of_its_args(registry: Registry) -> None:
    class Model(BaseModel):
        n: int

    @dataclass(frozen=True)
    class Sub(OrderJob): ...

    def model(args: Model, run: Run) -> None: ...

    definition = registry.add(top_level)
    other = registry.add(model)
    assert registry.for_args(OrderJob("1")) is definition
    assert registry.for_args(Model(n=1)) is other
    with pytest.raises(UnknownKind, match="Sub"):
        registry.for_args(Sub("1"))
    with pytest.raises(UnknownKind, match="int"):
        registry.for_args(3)


def test_two_handlers_of_one_args_type_are_both_named(registry: Registry) -> None:
    def second(args: OrderJob) -> None: ...

    registry.add(top_level)
    registry.add(second)
    with pytest.raises(AmbiguousArgs, match="top_level and second"):
        registry.for_args(OrderJob("1"))


def test_looking_for_one_handler_does_not_decide_what_another_injects(registry: Registry) -> None:
    """Services may be registered after the first job of another kind was enqueued."""

    @dataclass
    class Send:
        to: str

    @dataclass
    class Post:
        host: str

    def send(args: Send, post: Post) -> None: ...

    definition = registry.add(send)
    registry.add(top_level)
    assert registry.for_args(OrderJob("1")).kind == "top_level"
    registry.services.register_value(Post, Post("x"))
    assert registry.for_args(Send("a")) is definition
    assert definition.needs == (Post,)


def test_a_broken_handler_does_not_hide_the_others(registry: Registry) -> None:
    def broken(args: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore[reportUndefinedVariable]

    registry.add(broken)
    registry.add(top_level)
    assert registry.for_args(OrderJob("1")).kind == "top_level"
    with pytest.raises(UnknownKind) as caught:
        registry.for_args(Mailer())
    assert "Nowhere" in str(caught.value.__cause__)


# ── what cannot be a handler ─────────────────────────────────────────────────────────────────


def test_a_generator_is_refused(registry: Registry) -> None:
    def pages() -> Iterator[int]:
        yield 1

    async def more() -> AsyncIterator[int]:
        yield 1

    class Pages:
        def __call__(self) -> Iterator[int]:
            yield 1

    for handler in (pages, more, Pages, functools.partial(pages)):
        with pytest.raises(TypeError, match="generator"):
            registry.add(handler, Options(kind="x"))


def test_parameters_without_a_name_are_refused(registry: Registry) -> None:
    def rest(*paths: str) -> None: ...
    def options(**options: str) -> None: ...
    def positional(path: str, /) -> None: ...

    for handler, what in ((rest, "paths"), (options, "options"), (positional, "positional-only")):
        with pytest.raises(TypeError, match=what):
            registry.add(handler)


def test_what_cannot_be_called_is_refused(registry: Registry) -> None:
    class NoCall: ...

    class Service:
        def method(self, n: int) -> None: ...

    for handler, what in (
        (3, "not callable"),
        (NoCall, "has no __call__"),
        (Service.method, "is a method"),
    ):
        with pytest.raises(TypeError, match=what):
            registry.add(handler, Options(kind="x"))


def test_an_isolated_handler_must_be_importable(registry: Registry) -> None:
    def nested() -> None: ...

    registry.add(top_level, Options(isolate="process"))
    for handler in (nested, lambda: None, functools.partial(top_level)):
        with pytest.raises(NotImportable):
            registry.add(handler, Options(kind="x", isolate="process"))
    assert registry.get("x") is None


def test_a_time_limit_on_a_thread_warns(registry: Registry) -> None:
    def slow() -> None: ...

    async def quick() -> None: ...

    with pytest.warns(UserWarning, match='isolate="process"'):
        registry.add(slow, Options(timeout=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.add(quick, Options(timeout=5))
        registry.add(len_of, Options(timeout=5, isolate="process"))
        registry.add(slow)


def len_of(text: str) -> int:
    return len(text)


def test_a_handler_knows_where_it_runs(registry: Registry) -> None:
    async def coroutine() -> None: ...

    class Async:
        async def __call__(self) -> None: ...

    class Sync:
        def __call__(self) -> None: ...

    for kind, (handler, isolate, mode) in {
        "coroutine": (coroutine, None, "async"),
        "partial": (functools.partial(top_level), None, "async"),
        "class": (Async, None, "async"),
        "sync class": (Sync, None, "thread"),
        "object": (Sync(), None, "thread"),
        "function": (len_of, None, "thread"),
        "isolated": (len_of, "process", "process"),
        "isolated coroutine": (top_level, "process", "process"),
    }.items():
        options = Options(kind=kind, isolate=cast("Isolate | None", isolate))
        assert registry.add(handler, options).mode == mode


def test_kinds_with_a_limit_are_listed_with_their_aliases(registry: Registry) -> None:
    registry.add(top_level)
    registry.add(len_of, Options(kind="len", aliases=["size"], concurrency=2))
    assert registry.limited == {"len": 2, "size": 2}


def test_handlers_may_be_registered_from_many_threads() -> None:
    registry = Registry(svcs.Registry())
    start = threading.Barrier(8)

    def register(thread: int) -> None:
        start.wait()
        for n in range(50):
            registry.add(len_of, Options(kind=f"{thread}-{n}"))

    threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.kinds()) == 400
