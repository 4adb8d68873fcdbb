"""One kind and its handler: how its args are stored, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import svcs

from piecework.core.errors import ArgsInvalid
from piecework.handlers.codec import ArgsCodec, Undecodable
from piecework.handlers.imports import ImportPath, import_path_of
from piecework.handlers.injection import Caller, make_caller, make_class_caller
from piecework.handlers.keys import NO_KEYS, KeyReader, Keys, make_keys
from piecework.handlers.results import ResultCodec
from piecework.handlers.run import Run
from piecework.handlers.signature import (
    EMPTY,
    Shape,
    Style,
    call_of,
    check_callable,
    constructor_of,
    is_async,
    names_around,
    object_type,
    read,
    where,
)

if TYPE_CHECKING:
    from piecework.handlers.injection import Services
    from piecework.handlers.options import Isolate, Options

__all__ = ["Definition", "Mode", "Registered"]

Mode: TypeAlias = Literal["async", "thread", "process"]


class Registered(NamedTuple):
    """What a child process finds on a handler it imported, as `__piecework__`."""

    definition: Definition
    services: svcs.Registry


class _Plan(NamedTuple):
    """What is decided at first use, once the services are registered."""

    shape: Shape
    names: tuple[str, ...]
    needs: tuple[Any, ...]
    args: ArgsCodec
    result: ResultCodec
    call: Caller
    keys: KeyReader


class Definition:
    """A registered handler. What its parameters mean is decided when it is first used.

    `mode` says where it runs: "async" on the loop, "thread" in a thread, "process" in a child.
    TypeError, at first use, for annotations that cannot be resolved or have no JSON.
    """

    __slots__ = (
        "_is_service",
        "_lock",
        "_names_around",
        "_owner",
        "_plan",
        "fn",
        "has_keys",
        "is_async",
        "isolate",
        "kind",
        "limit_bytes",
        "mode",
        "options",
        "where",
    )

    def __init__(
        self,
        kind: str,
        fn: Any,
        options: Options,
        *,
        is_service: Callable[[Any], bool],
        limit_bytes: int,
        owner: type[Any] | None = None,
    ) -> None:
        """A definition; with `owner`, fn is its method, and self a service of that type."""
        check_callable(fn, method=owner is not None)
        self.kind = kind
        self.fn = fn
        self.options = options
        self.where = where(fn)
        self.is_async = is_async(fn)
        self.isolate: Isolate | None = options.isolate
        self.mode: Mode = options.isolate or ("async" if self.is_async else "thread")
        self.has_keys = options.unique_key is not None or options.serial_key is not None
        self._owner = owner
        self._names_around = names_around(fn)
        self._is_service = is_service
        self.limit_bytes = limit_bytes
        self._plan: _Plan | None = None
        self._lock = Lock()

    # ── what it takes ────────────────────────────────────────────────────────────────────────

    @property
    def style(self) -> Style:
        """Return "object" if the handler takes one args object, "call" for plain parameters."""
        return self._ready().shape.style

    @property
    def args_type(self) -> type[Any] | None:
        """Return the class of the args object, or None in call style."""
        return self._ready().shape.args_type

    @property
    def needs(self) -> tuple[Any, ...]:
        """Return the types of the services to open for a run."""
        return self._ready().needs

    @property
    def all_defaults(self) -> bool:
        """Return whether a job needs no args, as a schedule on the handler does."""
        return not any(arg.required for arg in self._ready().shape.args)

    def may_take(self, args_type: type[Any]) -> bool:
        """Return whether the handler takes args of exactly this type; other types stay open."""
        if self._plan is None:
            # Deciding now would shut out services that are registered later: ask the raw hints.
            hints = self._peek()
            if not any(object_type(hint) is args_type for hint in hints):
                return False
        return self.args_type is args_type

    # ── args to text and back ────────────────────────────────────────────────────────────────

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the args value: the args object, or a dict of the parameters that were given.

        ArgsInvalid if the arguments do not fit the parameters; their types are not looked at.
        """
        plan = self._plan or self._ready()
        if plan.shape.args_type is not None:
            if len(args) == 1 and not kwargs:
                return args[0]
            return self._bind_object(plan, args, kwargs)
        names = plan.names
        if len(args) > len(names):
            self._refuse_call(plan, args, kwargs)
        value = dict(zip(names, args))  # noqa: B905 - what is missing is found below
        if kwargs:
            if not value.keys().isdisjoint(kwargs):
                self._refuse_call(plan, args, kwargs)
            value.update(kwargs)
        return value

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the args as compact JSON. ArgsInvalid (PayloadTooLarge) if they do not fit."""
        return self.encode_value(self.bind(args, kwargs))

    def encode_value(self, value: Any) -> str:
        """Return the bound args value as compact JSON; errors as `encode`."""
        return (self._plan or self._ready()).args.encode(value)

    def encode_json(self, data: object) -> str:
        """Return plain data from outside as compact JSON; errors as `encode`."""
        return self._ready().args.encode_json(data)

    def decode(self, text: str) -> Any:
        """Return the args value of a stored text. Undecodable for whatever is wrong with it."""
        plan = self._plan
        if plan is None:
            try:
                plan = self._ready()
            except TypeError as error:  # the handler is at fault, and no worker may die of it
                raise Undecodable(str(error)) from error
        return plan.args.decode(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the args, described by the handler's first paragraph."""
        schema = self._ready().args.schema()
        schema["title"] = self.kind
        doc = inspect.getdoc(self.fn) if inspect.isroutine(self.fn) else self.fn.__doc__
        if doc:
            schema["description"] = " ".join(inspect.cleandoc(doc).partition("\n\n")[0].split())
        return schema

    def keys_for(self, value: Any) -> Keys:
        """Return the (unique, serial) keys of an args value. ArgsInvalid if a function fails."""
        return self._ready().keys(value) if self.has_keys else NO_KEYS

    # ── running ──────────────────────────────────────────────────────────────────────────────

    def invoke(self, value: Any, run: Run, services: Services) -> Any:
        """Call the handler: a coroutine if it is async, else what it returns."""
        return (self._plan or self._ready()).call(value, run, services)

    def encode_result(self, value: object) -> str:
        """Return the result as compact JSON; ResultUnstorable if that cannot be."""
        return "null" if value is None else self._ready().result.encode(value)

    def decode_result(self, text: str) -> Any:
        """Return the stored result, typed. ResultInvalid if it does not fit the annotation."""
        return self._ready().result.decode(text)

    def import_path(self) -> ImportPath:
        """Return where another process imports the handler. NotImportable if nowhere."""
        return import_path_of(self.fn)

    def __repr__(self) -> str:
        """Return kind and place."""
        return f"<Definition {self.kind!r} {self.where}>"

    # ── deciding ─────────────────────────────────────────────────────────────────────────────

    def _ready(self) -> _Plan:
        if self._plan is None:
            with self._lock:
                if self._plan is None:
                    self._plan = self._decide()
        return self._plan

    def _decide(self) -> _Plan:
        shape, needs, call = self._shape_and_call()
        return _Plan(
            shape=shape,
            names=tuple(arg.name for arg in shape.args if arg.positional),
            needs=tuple(dict.fromkeys(needed for needed in needs if needed is not Run)),
            args=ArgsCodec(self.kind, shape.args, shape.args_type, limit_bytes=self.limit_bytes),
            result=ResultCodec(self.kind, shape.returns, limit_bytes=self.limit_bytes),
            call=call,
            keys=make_keys(self.kind, self.options, shape),
        )

    def _shape_and_call(self) -> tuple[Shape, list[Any], Caller]:
        fn, owner = self.fn, self._owner
        if owner is not None:
            shape = self._read(fn, skip_first=True)
            return shape, [owner, *_types(shape)], _method_caller(owner, fn.__name__, shape)
        if not isinstance(fn, type):
            shape = self._read(fn, skip_first=False)
            return shape, _types(shape), make_caller(fn, shape)
        constructor = self._read(constructor_of(fn), skip_first=True, all_injected=True)
        shape = self._read(call_of(fn), skip_first=True)
        needs = [*_types(constructor), *_types(shape)]
        return shape, needs, make_class_caller(fn, constructor, shape)

    def _read(self, fn: Any, *, skip_first: bool, all_injected: bool = False) -> Shape:
        return read(
            fn,
            self._names_around,
            self._is_service,
            skip_first=skip_first,
            all_injected=all_injected,
        )

    def _peek(self) -> list[Any]:
        target = call_of(self.fn)
        skip_first = isinstance(self.fn, type)
        shape = read(
            self.fn if not skip_first else target,
            self._names_around,
            self._is_service,
            skip_first=skip_first,
        )
        return [arg.hint for arg in shape.args]

    # ── refusing ─────────────────────────────────────────────────────────────────────────────

    def _bind_object(self, plan: _Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        arg = plan.shape.args[0]
        if not args and list(kwargs) == [arg.name]:
            return kwargs[arg.name]
        if not args and not kwargs and arg.default is not EMPTY:
            return arg.default
        wanted = getattr(plan.shape.args_type, "__name__", "args object")
        given = len(args) + len(kwargs)
        raise ArgsInvalid(self.kind, f"give one {wanted}, not {given} arguments")

    def _refuse_call(self, plan: _Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        parameters = [
            inspect.Parameter(
                arg.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if arg.positional
                else inspect.Parameter.KEYWORD_ONLY,
                default=arg.default,
            )
            for arg in plan.shape.args
        ]
        try:
            inspect.Signature(parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise ArgsInvalid(self.kind, str(error)) from error
        raise AssertionError("unreachable: the quick look found what does not fit")


def _types(shape: Shape) -> list[Any]:
    return [each.type for each in shape.injected]


def _method_caller(owner: type[Any], name: str, shape: Shape) -> Caller:
    return lambda value, run, services: make_caller(getattr(services[owner], name), shape)(
        value, run, services
    )
