"""Read a handler's signature: which parameters are its args, which are injected."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from piecework.handlers.run import Run

__all__ = [
    "EMPTY",
    "Arg",
    "Hints",
    "Injected",
    "Marker",
    "Shape",
    "Style",
    "bare",
    "call_of",
    "check_callable",
    "constructor_of",
    "is_async",
    "named_of",
    "names_around",
    "object_type",
    "read",
    "where",
]

EMPTY: Final = inspect.Parameter.empty
_POSITIONAL: Final = inspect.Parameter.POSITIONAL_OR_KEYWORD

Style: TypeAlias = Literal["object", "call"]
Hints: TypeAlias = dict[str, Any]
IsService: TypeAlias = Callable[[Any], bool]


class Marker:
    """The default that `inject()` gives a parameter."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return how it is written."""
        return "inject()"

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError: nobody passed the service."""
        raise AttributeError(
            f"{name!r} was asked of inject(): called by hand, a handler needs its service passed"
        )


@dataclass(frozen=True, slots=True)
class Arg:
    """One parameter that is stored with the job. `default` is EMPTY where there is none."""

    name: str
    hint: Any
    default: Any
    positional: bool

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is EMPTY


@dataclass(frozen=True, slots=True)
class Injected:
    """One parameter that is injected; `type` is Run or that of a service."""

    name: str
    type: Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A signature, sorted: the args, the injected parameters, and the positional order of all."""

    args: tuple[Arg, ...]
    injected: tuple[Injected, ...]
    order: tuple[str, ...]
    returns: Any

    @property
    def style(self) -> Style:
        """Return "object" for a single dataclass or pydantic model, else "call"."""
        return "object" if self.args_type is not None else "call"

    @property
    def args_type(self) -> type[Any] | None:
        """The class of the args object, or None in call style."""
        if len(self.args) == 1 and self.args[0].positional:
            return object_type(self.args[0].hint)
        return None


# ── at registration ──────────────────────────────────────────────────────────────────────────


def check_callable(fn: Any, *, method: bool = False) -> None:
    """Raise TypeError unless the function or class can be a handler, whatever its types are.

    With `method`, fn is a method as its class has it, and self is not looked at.
    """
    if not callable(fn):
        raise TypeError(f"{fn!r} is not callable: a handler is a function or a class")
    target = call_of(fn)
    inner = target.func if _is_partial(target) else target
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"{where(fn)} is a generator: a handler returns its result; "
            "report on the way with run.progress() and run.save()"
        )
    if isinstance(fn, type):
        _parameters(constructor_of(fn), fn, skip_first=True)
        _parameters(target, fn, skip_first=True)
        return
    parameters = _parameters(fn, fn, skip_first=method)
    if not method and parameters and parameters[0].name == "self" and _in_class_body(fn):
        raise TypeError(
            f"{where(fn)} is a method: register a function, or a class with __call__ "
            "whose services come into __init__"
        )


def call_of(fn: Any) -> Any:
    """Return what runs when the handler does: `__call__` of a class or object, or fn itself."""
    if isinstance(fn, type):
        if not any("__call__" in base.__dict__ for base in fn.__mro__):
            raise TypeError(f"{where(fn)} has no __call__: a handler class does its work there")
        return inspect.getattr_static(fn, "__call__")
    return fn if _is_partial(fn) or _is_routine(fn) else type(fn).__call__


def constructor_of(cls: type[Any]) -> Any:
    """Return the `__init__` that the class has or inherits."""
    return inspect.getattr_static(cls, "__init__")


def is_async(fn: Any) -> bool:
    """Whether running the handler gives a coroutine."""
    return inspect.iscoroutinefunction(call_of(fn))  # sees through functools.partial


def where(fn: Any) -> str:
    """Return the handler's place in the code, such as `myapp.jobs.ship`."""
    named = named_of(fn)
    return f"{named.__module__ or 'builtins'}.{named.__qualname__}"


def named_of(fn: Any) -> Any:
    """Return what the handler's name is taken from: itself, the inside of a partial, a class."""
    inner: object = fn.func if _is_partial(fn) else fn
    return inner if hasattr(inner, "__qualname__") else type(inner)


def _is_partial(fn: object) -> bool:
    return isinstance(fn, functools.partial)


def _is_routine(fn: object) -> bool:
    return inspect.isroutine(fn)


def _in_class_body(fn: Any) -> bool:
    outer, _, _ = getattr(fn, "__qualname__", "").rpartition(".")
    return bool(outer) and not outer.endswith("<locals>") and not inspect.ismethod(fn)


def _parameters(fn: Any, handler: Any, *, skip_first: bool) -> list[inspect.Parameter]:
    if fn is object.__init__:
        return []
    try:
        parameters = list(inspect.signature(fn).parameters.values())[1 if skip_first else 0 :]
    except ValueError as error:
        raise TypeError(
            f"{where(handler)} does not tell its parameters: wrap it in a function of your own"
        ) from error
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"{where(handler)}: parameter {parameter.name!r} is positional-only, but args are "
                "stored by name: drop the '/'"
            )
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{where(handler)} takes {parameter}: args are checked one by one, "
                "so name each parameter"
            )
    return parameters


def names_around(fn: Any) -> dict[str, Any]:
    """Return the local names of the enclosing function that fn's written annotations use.

    Annotations are text under `from __future__ import annotations`, and text knows only module
    names; while fn is being decorated, its surroundings are still on the stack.
    """
    named = named_of(fn)
    outer = named.__qualname__.rpartition(".<locals>.")[0]
    texts = _annotation_texts(named)
    if not outer or not texts:
        return {}
    frame = inspect.currentframe()
    while frame is not None and not _is_body(frame, named.__module__, outer):
        frame = frame.f_back
    if frame is None:
        return {}
    wanted = set(re.findall(r"[^\W\d]\w*", " ".join(texts)))
    return {name: value for name, value in frame.f_locals.items() if name in wanted}


def _is_body(frame: FrameType, module: str, qualname: str) -> bool:
    return frame.f_code.co_qualname == qualname and frame.f_globals.get("__name__") == module


def _annotation_texts(fn: Any) -> list[str]:
    functions = [constructor_of(fn), call_of(fn)] if isinstance(fn, type) else [fn]
    try:
        found = [getattr(function, "__annotations__", {}) for function in functions]
    except NameError:  # from 3.14 on they are no text but code, which finds local names itself
        return []
    return [text for each in found for text in each.values() if isinstance(text, str)]


# ── at first use ─────────────────────────────────────────────────────────────────────────────


def read(
    fn: Any, names: Hints, is_service: IsService, *, skip_first: bool, all_injected: bool = False
) -> Shape:
    """Return the sorted signature. TypeError for what cannot be resolved or injected.

    `names` are known beside the module's own; `skip_first` leaves out self. `all_injected` is for
    constructors: nothing there is an arg, and what no service is for keeps its default.
    """
    if fn is object.__init__:
        return Shape((), (), (), None)
    parameters = _parameters(fn, fn, skip_first=skip_first)
    hints = _hints(fn, names)
    args: list[Arg] = []
    injected: list[Injected] = []
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        positional = parameter.kind is _POSITIONAL
        marked = isinstance(parameter.default, Marker)
        service = _injectable(hint, is_service)
        if service is None and (marked or (all_injected and parameter.default is EMPTY)):
            service = _wanted(fn, parameter.name, hint)
        if service is not None:
            injected.append(Injected(parameter.name, service))
        elif not all_injected:
            args.append(Arg(parameter.name, hint, parameter.default, positional))
    order = tuple(p.name for p in parameters if p.kind is _POSITIONAL)
    return Shape(tuple(args), tuple(injected), order, hints.get("return", EMPTY))


def bare(hint: Any) -> Any:
    """Return the annotation without `Annotated`."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def object_type(hint: Any) -> type[Any] | None:
    """Return the class if the annotation is a dataclass or pydantic model, also a generic one."""
    hint = bare(hint)
    cls = get_origin(hint) or hint
    if isinstance(cls, type) and (dataclasses.is_dataclass(cls) or issubclass(cls, BaseModel)):
        return cls
    return None


def _injectable(hint: Any, is_service: IsService) -> Any:
    for candidate in (hint, bare(hint)):
        if candidate is Run or is_service(candidate):
            return candidate
    return None


def _wanted(fn: Any, name: str, hint: Any) -> Any:
    wanted = bare(hint)
    if wanted is Any:
        raise TypeError(
            f"{where(fn)}: parameter {name!r} is to be injected, but has no type: annotate it with "
            "the type the service is registered as"
        )
    return wanted


def _hints(fn: Any, names: Hints) -> Hints:
    target = fn.func if _is_partial(fn) else fn
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return get_type_hints(target, localns=names or None, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"the annotations of {where(fn)} cannot be resolved ({error}): import what they name "
            "where it is there at run time, not below `if TYPE_CHECKING`"
        ) from error
