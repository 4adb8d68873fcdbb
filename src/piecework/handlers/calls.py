"""Ad-hoc calls: a function named in the job itself, without a handler.

On a durable store the name is one that any worker can import, below the packages that the app
lists, and what it leads to must be defined there: a writer of the store cannot reach further.
In a memory store any callable will do: it is kept here, under a token.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from types import FunctionType
from typing import Any, Final, Protocol

import svcs
from pydantic_core import from_json, to_json

from piecework.core.errors import NotImportable, PayloadTooLarge
from piecework.handlers.codec import Undecodable
from piecework.handlers.definition import Definition
from piecework.handlers.imports import import_path_of
from piecework.handlers.names import RESERVED
from piecework.handlers.options import Options
from piecework.handlers.reasons import reason
from piecework.handlers.signature import where

__all__ = ["CALL_KIND", "Calls"]

CALL_KIND: Final = f"{RESERVED}call"
_OPTIONS: Final = Options()
_REMEMBERED: Final = 1_000


class Define(Protocol):
    """Makes a definition that is not registered."""

    def __call__(
        self, kind: str, fn: Any, options: Options, *, owner: type[Any] | None = None
    ) -> Definition:
        """Return the definition."""
        ...


class Calls:
    """The callables that ad-hoc calls of one app may name."""

    def __init__(
        self, define: Define, services: svcs.Registry, packages: Sequence[str], *, durable: bool
    ) -> None:
        self._define = define
        self._services = services
        self._packages = _check_packages(packages)
        self._durable = durable
        self._kept = _Kept()
        # A closure made for each call is a new function each time: remember only the latest.
        self._definition = functools.lru_cache(maxsize=_REMEMBERED)(self._make)

    def encode(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the args of the job that calls the function: its name and its own args.

        ArgsInvalid if the arguments do not fit the function, NotImportable if no worker could
        find it.
        """
        fn = _undecorated(fn)
        reference = self.reference(fn)
        definition = self._definition(fn)
        inner = definition.encode(args, kwargs)
        text = f'{{"call":{to_json(reference).decode()},"args":{inner}}}'
        size, limit = len(text.encode()), definition.limit_bytes
        if size > limit:
            raise PayloadTooLarge(CALL_KIND, size, limit)
        return text

    def open(self, text: str) -> tuple[Definition, str]:
        """Return the definition of the function that a stored call names, and its args' text.

        Undecodable if the text is no call, or names what may not be called.
        """
        try:
            stored = from_json(text)
            reference, args = stored["call"], stored["args"]
            inner = to_json(args, inf_nan_mode="constants").decode()
        except Exception as error:
            raise Undecodable(f"not an ad-hoc call: {reason(error)}") from error
        if not isinstance(reference, str) or len(stored) != 2:
            raise Undecodable("not an ad-hoc call: it needs a name and args, and nothing else")
        try:
            return self._definition(self.resolve(reference)), inner
        except (NotImportable, TypeError) as error:
            raise Undecodable(reason(error)) from error

    def reference(self, fn: Callable[..., Any]) -> str:
        """Return the name under which a worker finds the callable; NotImportable if none does."""
        if isinstance(fn, type) or not callable(fn):
            raise NotImportable(
                where(fn), "an ad-hoc call takes a function or a method, such as Mailer.send"
            )
        try:
            hash(fn)
        except TypeError as error:
            raise NotImportable(
                where(fn), "it has no hash: wrap it in a function of your own"
            ) from error
        return _reference(fn, self._packages) if self._durable else self._kept.token(fn)

    def resolve(self, reference: str) -> Any:
        """Return the callable of that name. NotImportable, importing nothing, if it may not be."""
        return _resolve(reference, self._packages) if self._durable else self._kept.get(reference)

    def _make(self, fn: Any) -> Definition:
        return self._define(CALL_KIND, fn, _OPTIONS, owner=self._owner(fn))

    def _owner(self, fn: Any) -> type[Any] | None:
        """Return the class whose service has fn as a method, or None for a plain function."""
        outer = getattr(fn, "__qualname__", "").rpartition(".")[0]
        if not isinstance(fn, FunctionType) or not outer or outer.endswith("<locals>"):
            return None
        services = [each.svc_type for each in self._services if isinstance(each.svc_type, type)]
        owners = [
            each for each in services if inspect.getattr_static(each, fn.__name__, None) is fn
        ]
        own = next((each for each in owners if each.__qualname__ == outer), None)
        if own is not None or len(owners) == 1:
            return own or owners[0]
        cls = _walk(fn.__module__, outer)
        if isinstance(cls, type):
            return None if isinstance(vars(cls).get(fn.__name__), staticmethod) else cls
        if next(iter(inspect.signature(fn).parameters), None) == "self":
            raise NotImportable(
                where(fn),
                f"no service has this method: app.services.register_factory({outer}, ...)",
            )
        return None


class _Kept:
    """Callables by token, for as long as the app lives."""

    def __init__(self) -> None:
        self._by_token: dict[str, Any] = {}
        self._tokens: dict[Any, str] = {}
        self._lock = Lock()

    def token(self, fn: Any) -> str:
        with self._lock:
            token = self._tokens.get(fn)
            if token is None:
                token = self._tokens[fn] = f"memory:{len(self._tokens) + 1}:{where(fn)}"
                self._by_token[token] = fn
            return token

    def get(self, token: str) -> Any:
        try:
            return self._by_token[token]
        except KeyError:
            raise NotImportable(token, "this app has kept no such callable") from None


def _check_packages(packages: Sequence[str]) -> tuple[str, ...]:
    if isinstance(packages, str):
        raise TypeError(f"calls= takes package names: write calls=({packages!r},)")
    for name in packages:
        if not all(step.isidentifier() for step in name.split(".")):
            raise ValueError(f"calls= takes package names such as 'myapp.mail', not {name!r}")
    return tuple(packages)


def _below(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _reference(fn: Any, packages: tuple[str, ...]) -> str:
    bound_to = getattr(fn, "__self__", None)
    if bound_to is not None and not isinstance(bound_to, type) and inspect.ismethod(fn):
        name = f"{type(bound_to).__name__}.{fn.__name__}"
        raise NotImportable(
            where(fn), f"its object cannot be stored: pass {name}, the object is injected"
        )
    path = import_path_of(fn)
    if path.file is not None:
        raise NotImportable(where(fn), "it is part of the started script: move it to a module")
    if not _below(path.module, packages):
        root = path.module.partition(".")[0]
        raise NotImportable(
            where(fn),
            f"{path.module} is not below calls={packages!r}: name its package, as in "
            f"Piecework(url, calls=({root!r},))",
        )
    if _undecorated(_walk(fn.__module__, path.qualname)) != fn:
        raise NotImportable(where(fn), "its name leads to something else: call what has the name")
    return f"{path.module}:{path.qualname}"


def _resolve(reference: str, packages: tuple[str, ...]) -> Any:
    module, _, qualname = reference.partition(":")
    steps = [*module.split("."), *qualname.split(".")]
    if not all(step.isidentifier() and not step.startswith("__") for step in steps):
        raise NotImportable(repr(reference)[:200], "it is not the name of a function")
    if not _below(module, packages):
        raise NotImportable(reference, f"{module} is not below calls={packages!r}")
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise NotImportable(reference, f"importing it failed: {reason(error)}") from error
    found = _undecorated(_walk(module, qualname))
    if not callable(found) or isinstance(found, type):
        raise NotImportable(reference, "there is no such function")
    if (getattr(found, "__module__", None), getattr(found, "__qualname__", None)) != (
        module,
        qualname,
    ):
        raise NotImportable(reference, "it is only imported there: name it where it is defined")
    return found


def _walk(module: str, qualname: str) -> Any:
    """Return what the name leads to, through classes only, or None; imports nothing."""
    found: Any = sys.modules.get(module)
    first, *steps = qualname.split(".")
    found = getattr(found, first, None)
    for step in steps:
        found = getattr(found, step, None) if isinstance(found, type) else None
    return found


def _undecorated(fn: Any) -> Any:
    """Return the function of a handler, which its name leads to since it was decorated."""
    return fn.__wrapped__ if hasattr(fn, "__piecework__") and hasattr(fn, "__wrapped__") else fn
