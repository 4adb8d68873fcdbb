import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NewType

import pytest
import svcs

from piecework import inject
from piecework.handlers.injection import MissingService, open_services
from piecework.handlers.options import Options
from piecework.handlers.registry import Registry
from piecework.handlers.run import Run


@dataclass(frozen=True)
class OrderJob:
    order_id: str


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.closed = False


class Clock: ...


Url = NewType("Url", str)

ORDER = OrderJob("7")


@pytest.fixture
def mailer(registry: Registry) -> Mailer:
    mailer = Mailer()
    registry.services.register_value(Mailer, mailer)
    return mailer


# ── functions ────────────────────────────────────────────────────────────────────────────────


async def test_the_run_is_injected_wherever_it_stands(
    registry: Registry, call: Any, run: Run
) -> None:
    def second(args: OrderJob, run: Run) -> Any:
        return args, run

    def first(run: Run, args: OrderJob) -> Any:
        return args, run

    def keyword(args: OrderJob, *, me: Run) -> Any:
        return args, me

    def default(args: OrderJob, run: Run = inject()) -> Any:
        return args, run

    def text(args: OrderJob, run: "Run") -> Any:
        return args, run

    def noted(args: OrderJob, run: Annotated[Run, "mine"]) -> Any:
        return args, run

    async def coroutine(args: OrderJob, run: Run) -> Any:
        return args, run

    for handler in (second, first, keyword, default, text, noted, coroutine):
        definition = registry.add(handler)
        assert definition.style == "object"
        assert definition.needs == ()
        assert await call(definition, ORDER) == (ORDER, run)


async def test_the_run_is_injected_among_plain_parameters(
    registry: Registry, call: Any, run: Run
) -> None:
    def first(run: Run, path: str, width: int = 1) -> Any:
        return path, width, run

    def between(path: str, run: Run, width: int = 1) -> Any:
        return path, width, run

    def last(path: str, width: int = 1, run: Run = inject()) -> Any:
        return path, width, run

    for handler in (first, between, last):
        definition = registry.add(handler)
        assert await call(definition, "a") == ("a", 1, run)
        assert await call(definition, "a", 2) == ("a", 2, run)
        assert await call(definition, path="a", width=3) == ("a", 3, run)


async def test_a_handler_may_take_nothing_or_only_the_run(
    registry: Registry, call: Any, run: Run
) -> None:
    def nothing() -> int:
        return 1

    async def only(run: Run) -> Run:
        return run

    assert await call(registry.add(nothing)) == 1
    assert await call(registry.add(only)) is run
    assert registry.add(nothing).all_defaults


async def test_services_are_injected_by_type_or_by_mark(
    registry: Registry, call: Any, mailer: Mailer, run: Run
) -> None:
    def by_type(to: str, mailer: Mailer) -> Any:
        return to, mailer

    async def marked(to: str, mailer: Mailer = inject()) -> Any:
        return to, mailer

    def with_object(args: OrderJob, mailer: Mailer, run: Run) -> Any:
        return args, mailer, run

    assert await call(registry.add(by_type), "a") == ("a", mailer)
    assert await call(registry.add(marked), to="a") == ("a", mailer)
    definition = registry.add(with_object)
    assert definition.needs == (Mailer,)
    assert definition.style == "object"
    assert await call(definition, ORDER) == (ORDER, mailer, run)


async def test_what_is_injected_is_decided_at_first_use(registry: Registry, call: Any) -> None:
    def send(to: str, mailer: Mailer) -> Any:
        return mailer

    definition = registry.add(send)
    mailer = Mailer()
    registry.services.register_value(Mailer, mailer)
    assert await call(definition, "a") is mailer


async def test_a_service_may_be_registered_as_a_new_type(registry: Registry, call: Any) -> None:
    def fetch(url: Url, path: str) -> str:
        return url + path

    registry.services.register_value(Url, Url("http://x/"))
    assert await call(registry.add(fetch), "a") == "http://x/a"


async def test_a_type_that_is_not_registered_says_how(registry: Registry, call: Any) -> None:
    def send(to: str, mailer: Mailer = inject()) -> None: ...

    definition = registry.add(send)
    with pytest.raises(MissingService, match=r"app\.services\.register_factory\(Mailer, \.\.\.\)"):
        await call(definition, "a")


def test_a_mark_without_a_type_is_refused(registry: Registry) -> None:
    def send(to: str, mailer: Mailer = inject()) -> None: ...

    del send.__annotations__["mailer"]

    with pytest.raises(TypeError, match="'mailer' is to be injected"):
        registry.add(send).encode(("a",), {})


def test_called_by_hand_the_mark_says_what_is_missing() -> None:
    def send(to: str, mailer: Mailer = inject()) -> None:
        mailer.sent.append(to)

    with pytest.raises(AttributeError, match="needs its service passed"):
        send("a")


async def test_a_partial_is_a_handler_of_what_is_left(registry: Registry, call: Any) -> None:
    async def send(to: str, subject: str) -> str:
        return f"{to} {subject}"

    definition = registry.add(functools.partial(send, subject="hi"), Options(kind="hi"))
    assert definition.is_async
    assert await call(definition, "a") == "a hi"
    assert await call(definition, "a", subject="ho") == "a ho"
    assert registry.add(functools.partial(send, "b")).kind == "send"


# ── classes ──────────────────────────────────────────────────────────────────────────────────


async def test_a_class_is_built_anew_for_every_run(
    registry: Registry, call: Any, mailer: Mailer, run: Run
) -> None:
    built: list[Any] = []

    class Send:
        def __init__(self, mailer: Mailer, run: Run, retries: int = 3) -> None:
            built.append(self)
            self.mailer, self.run, self.retries = mailer, run, retries

        async def __call__(self, args: OrderJob, run: Run) -> Any:
            return args, self.mailer, self.run, run, self.retries

    definition = registry.add(Send)
    assert definition.needs == (Mailer,)
    assert definition.is_async
    assert await call(definition, ORDER) == (ORDER, mailer, run, run, 3)
    await call(definition, ORDER)
    assert len({id(each) for each in built}) == 2


async def test_a_class_may_take_plain_parameters_and_services_in_its_call(
    registry: Registry, call: Any, mailer: Mailer
) -> None:
    class Send:
        def __call__(self, to: str, mailer: Mailer, *, copy: bool = False) -> Any:
            return to, mailer, copy

    class Inherits(Send): ...

    @dataclass
    class Data:
        mailer: Mailer

        def __call__(self, to: str) -> Any:
            return to, self.mailer

    assert await call(registry.add(Send), "a", copy=True) == ("a", mailer, True)
    assert await call(registry.add(Inherits), "a") == ("a", mailer, False)
    assert await call(registry.add(Data), "a") == ("a", mailer)


async def test_a_constructor_may_only_ask_for_services(registry: Registry, call: Any) -> None:
    class Send:
        def __init__(self, mailer: Mailer) -> None: ...

        def __call__(self) -> None: ...

    class Untyped:
        def __init__(self, mailer: Mailer) -> None: ...

        def __call__(self) -> None: ...

    Untyped.__init__.__annotations__.clear()
    with pytest.raises(MissingService, match="register_factory"):
        await call(registry.add(Send))
    with pytest.raises(TypeError, match="annotate it"):
        await call(registry.add(Untyped))


async def test_an_object_with_a_call_is_a_handler(registry: Registry, call: Any) -> None:
    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def __call__(self, n: int) -> int:
            return self.base + n

    definition = registry.add(Adder(10))
    assert definition.kind.endswith("Adder")
    assert await call(definition, 5) == 15


# ── containers ───────────────────────────────────────────────────────────────────────────────


async def test_a_service_is_built_once_in_a_run_and_closed_after_it(
    registry: Registry, call: Any
) -> None:
    built: list[Mailer] = []

    async def make() -> AsyncIterator[Mailer]:
        mailer = Mailer()
        built.append(mailer)
        yield mailer
        mailer.closed = True

    class Send:
        def __init__(self, mailer: Mailer) -> None:
            self.mailer = mailer

        def __call__(self, mailer: Mailer = inject()) -> bool:
            return mailer is self.mailer and not mailer.closed

    registry.services.register_factory(Mailer, make)
    definition = registry.add(Send)
    assert await call(definition)
    assert await call(definition)
    assert [mailer.closed for mailer in built] == [True, True]


async def test_what_was_opened_is_closed_when_the_next_service_fails(registry: Registry) -> None:
    closed: list[str] = []

    def make() -> Iterator[Mailer]:
        yield Mailer()
        closed.append("mailer")

    def fail(container: svcs.Container) -> Clock:
        raise OSError("no clock")

    def handle(mailer: Mailer, clock: Clock) -> None: ...

    registry.services.register_factory(Mailer, make)
    registry.services.register_factory(Clock, fail)
    with pytest.raises(OSError, match="no clock"):
        await open_services(registry.add(handle), registry.services)
    assert closed == ["mailer"]
