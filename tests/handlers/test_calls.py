"""Ad-hoc calls: what may be named in a job, and what a writer of the store cannot reach."""

import functools
import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import svcs

from piecework import inject
from piecework.core.errors import ArgsInvalid, NotImportable, PayloadTooLarge
from piecework.handlers.calls import CALL_KIND, Calls
from piecework.handlers.codec import Undecodable
from piecework.handlers.injection import open_services
from piecework.handlers.registry import Registry
from piecework.handlers.run import Run

SOURCE = """
import os
import subprocess
from subprocess import Popen
from os import system

class Mailer:
    async def send(self, to: str, copy: bool = False): return ("sent", to, copy, self)
    @staticmethod
    def check(to: str): return ("checked", to)
    @classmethod
    def make(cls, n: int): return (cls.__name__, n)
    class Inner:
        def work(self): return "inner"

class Fast(Mailer): ...

def resize(path: str, width: int = 320): return f"{path}@{width}"
async def later(path: str): return path
def _private(n: int): return n
alias = resize
class Wrapped:
    def __init__(self, fn):
        self.__wrapped__ = fn
        self.__module__, self.__qualname__, self.__piecework__ = fn.__module__, fn.__qualname__, 1
    def __call__(self, *args): raise AssertionError("the wrapper was called")
@Wrapped
async def decorated(n: int): return n + 1
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's package: shop, shop.mail, and shopping beside it."""
    for name in ("shop", "shopping"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "shop" / "mail.py").write_text(SOURCE)
    trap = "raise AssertionError('imported')"
    (tmp_path / "shopping" / "mail.py").write_text(trap)
    (tmp_path / "shop" / "broken.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("shop.mail")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shop", "shopping")]:
        del sys.modules[name]


@pytest.fixture
def durable() -> Registry:
    return Registry(svcs.Registry(), calls=("shop",), durable=True)


@pytest.fixture
def memory() -> Registry:
    return Registry(svcs.Registry(), durable=False)


async def run_stored(registry: Registry, text: str, run: Run) -> Any:
    located = registry.locate(CALL_KIND, text)
    assert located is not None
    definition, args = located
    value = definition.decode(args)
    container, services = await open_services(definition, registry.services)
    try:
        returned = definition.invoke(value, run, services)
        return await returned if definition.is_async else returned
    finally:
        await container.aclose()


async def called(registry: Registry, run: Run, fn: Any, *args: Any, **kwargs: Any) -> Any:
    return await run_stored(registry, registry.calls.encode(fn, args, kwargs), run)


# ── durable stores ───────────────────────────────────────────────────────────────────────────


async def test_a_function_below_the_packages_is_stored_by_name(
    shop: Any, durable: Registry, run: Run
) -> None:
    text = durable.calls.encode(shop.resize, ("a",), {"width": 2})
    assert text == '{"call":"shop.mail:resize","args":{"path":"a","width":2}}'
    assert await run_stored(durable, text, run) == "a@2"
    assert await called(durable, run, shop.later, "a") == "a"
    assert await called(durable, run, shop._private, 1) == 1
    assert durable.calls.resolve("shop.mail:resize") is shop.resize


async def test_a_method_is_called_on_the_service_of_its_class(
    shop: Any, durable: Registry, run: Run
) -> None:
    mailer = shop.Mailer()
    durable.services.register_value(shop.Mailer, mailer)
    text = durable.calls.encode(shop.Mailer.send, (), {"to": "a@b.c"})
    assert text == '{"call":"shop.mail:Mailer.send","args":{"to":"a@b.c"}}'
    assert await run_stored(durable, text, run) == ("sent", "a@b.c", False, mailer)


async def test_an_inherited_method_is_called_on_the_one_service_that_has_it(
    shop: Any, durable: Registry, run: Run
) -> None:
    fast = shop.Fast()
    durable.services.register_value(shop.Fast, fast)
    assert (await called(durable, run, shop.Fast.send, "a"))[3] is fast


async def test_a_method_of_no_service_says_how_to_register_it(
    shop: Any, durable: Registry, run: Run
) -> None:
    with pytest.raises(Exception, match=r"register_factory\(Mailer"):
        await called(durable, run, shop.Mailer.send, "a")


async def test_static_and_class_methods_need_no_service(
    shop: Any, durable: Registry, run: Run
) -> None:
    assert await called(durable, run, shop.Mailer.check, "a") == ("checked", "a")
    assert await called(durable, run, shop.Mailer.make, 3) == ("Mailer", 3)


async def test_a_handler_is_called_as_the_function_it_was(
    shop: Any, durable: Registry, run: Run
) -> None:
    assert await called(durable, run, shop.decorated, 1) == 2


def test_the_arguments_are_checked_before_anything_is_stored(shop: Any, durable: Registry) -> None:
    for args, kwargs in (((), {}), ((1,), {}), (("a", "2"), {}), (("a",), {"x": 1})):
        with pytest.raises(ArgsInvalid):
            durable.calls.encode(shop.resize, args, kwargs)
    small = Registry(calls=("shop",), max_args_bytes=60)
    with pytest.raises(PayloadTooLarge):
        small.calls.encode(shop.resize, ("x" * 30,), {})


def local_function(path: str) -> None: ...


def test_what_lies_elsewhere_is_refused_with_what_to_do(shop: Any, durable: Registry) -> None:
    with pytest.raises(NotImportable, match=r"calls=\('tests',\)"):
        durable.calls.reference(local_function)
    with pytest.raises(NotImportable, match="not below"):
        Registry(calls=("sho",)).calls.reference(shop.resize)
    with pytest.raises(NotImportable, match="not below"):
        Registry(calls=("shop.mailer",)).calls.reference(shop.resize)
    assert Registry(calls=("shop.mail",)).calls.reference(shop.resize)
    with pytest.raises(NotImportable, match="not below"):
        Registry().calls.reference(shop.resize)


def test_what_cannot_be_named_is_refused(shop: Any, durable: Registry) -> None:
    def nested() -> None: ...

    nested.__module__ = "shop.mail"
    copy = types.FunctionType(shop.resize.__code__, shop.__dict__, "resize")
    cases: list[tuple[Any, str]] = [
        (nested, "inside a function"),
        (lambda: None, "lambda"),
        (shop.Mailer().send, "Mailer.send"),
        (shop.Mailer, "a function or a method"),
        (copy, "something else"),
        (3, "a function or a method"),
    ]
    for fn, why in cases:
        with pytest.raises(NotImportable, match=why):
            durable.calls.reference(fn)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:exec",
        "shop.mail:system",
        "shop.mail:Popen",
        "shop.mail:os.system",
        "shop.mail:subprocess.run",
        "shop.mail:alias",
        "shop.mail:resize.__globals__",
        "shop.mail:resize.__class__",
        "shop.mail:Mailer",
        "shop.mail:Mailer.Inner",
        "shop.mail:Mailer.__init__",
        "shop.mail:Wrapped.__init__",
        "shop.mail:Fast.send",
        "shop.mail:nothing",
        "shop.mail:",
        "shop.mail",
        ":resize",
        "",
        "shop.mail:resize ",
        "shop.nothing:resize",
        "shop.broken:resize",
        "shop:mail.resize",
        "shop.__main__:resize",
        "shopping.mail:resize",
        "__main__:main",
        "../shop:resize",
        "memory:1:os.system",
    ],
)
def test_a_forged_name_reaches_nothing(shop: Any, durable: Registry, name: str) -> None:
    """S01: a writer of the store gets no further than the app's own functions."""
    before = set(sys.modules)
    with pytest.raises(NotImportable):
        durable.calls.resolve(name)
    with pytest.raises(Undecodable) as caught:
        durable.locate(CALL_KIND, f'{{"call":"{name}","args":{{}}}}')
    assert len(str(caught.value).splitlines()) == 1
    assert "shopping.mail" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"call":"shop.mail:resize"}',
        '{"call":1,"args":{}}',
        '{"call":["shop.mail:resize"],"args":{}}',
        '{"call":"shop.mail:resize","args":{},"more":1}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_text_that_is_no_call_is_undecodable(shop: Any, durable: Registry, text: str) -> None:
    with pytest.raises(Undecodable):
        durable.locate(CALL_KIND, text)


def test_stored_arguments_are_checked_again(shop: Any, durable: Registry) -> None:
    for args in ("null", "[]", "{}", '{"path":1}', '{"path":"a","x":1}'):
        located = durable.locate(CALL_KIND, f'{{"call":"shop.mail:resize","args":{args}}}')
        assert located is not None
        with pytest.raises(Undecodable):
            located[0].decode(located[1])


def test_package_names_are_checked() -> None:
    with pytest.raises(TypeError, match=r"calls=\('shop',\)"):
        Registry(calls="shop")
    for name in ("", "shop.", "shop/mail", "shop:mail"):
        with pytest.raises(ValueError, match="package names"):
            Registry(calls=(name,))


# ── memory stores ────────────────────────────────────────────────────────────────────────────


async def test_a_memory_store_takes_any_callable(memory: Registry, run: Run) -> None:
    seen: list[Any] = []

    def nested(n: int, run: Run = inject()) -> Any:
        seen.append(n)
        return run

    assert await called(memory, run, nested, 1) is run
    assert await called(memory, run, lambda n: n, 2) == 2
    assert await called(memory, run, functools.partial(nested, 3)) is run
    assert seen == [1, 3]


def test_what_no_args_can_be_checked_against_says_what_to_do(memory: Registry) -> None:
    @dataclass
    class NoHash:
        def __call__(self) -> None: ...

    unfit: list[Any] = [list[int]().append, vars, NoHash()]
    for fn in unfit:
        with pytest.raises((TypeError, NotImportable), match=r"builtins|NoHash"):
            memory.calls.encode(fn, (), {})


async def test_a_memory_store_injects_the_object_of_a_local_class(
    memory: Registry, run: Run
) -> None:
    class Mailer:
        async def send(self, to: str) -> Any:
            return self, to

    mailer = Mailer()
    with pytest.raises(NotImportable, match="register_factory"):
        memory.calls.encode(Mailer.send, ("a",), {})
    memory.services.register_value(Mailer, mailer)
    assert await called(memory, run, Mailer.send, to="a") == (mailer, "a")
    assert await called(memory, run, mailer.send, to="a") == (mailer, "a")


async def test_the_implementation_of_a_protocol_is_called(memory: Registry, run: Run) -> None:
    class Sends(Protocol):
        async def send(self, to: str) -> str: ...

    class Mailer:
        async def send(self, to: str) -> str:
            return f"sent {to}"

    memory.services.register_value(Sends, Mailer())
    assert await called(memory, run, Sends.send, to="a") == "sent a"


async def test_an_args_object_may_be_called_with_too(memory: Registry, run: Run) -> None:
    @dataclass
    class Job:
        n: int

    def work(args: Job) -> Job:
        return args

    assert await called(memory, run, work, Job(1)) == Job(1)


def test_one_callable_has_one_token(memory: Registry) -> None:
    calls: Calls = memory.calls
    assert calls.reference(local_function) == calls.reference(local_function)
    assert calls.resolve(calls.reference(local_function)) is local_function
    with pytest.raises(NotImportable):
        calls.resolve("memory:99:x")


def test_other_kinds_are_located_as_they_are(memory: Registry) -> None:
    definition = memory.add(local_function)
    assert memory.locate("local_function", "{}") == (definition, "{}")
    assert memory.locate("nothing", "{}") is None
