"""The kinds of one app: registered at decoration, found by name or by the type of their args."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Final

import svcs

from piecework.core.errors import AmbiguousArgs, DuplicateKind, UnknownKind
from piecework.handlers.calls import CALL_KIND, Calls
from piecework.handlers.definition import Definition
from piecework.handlers.names import check_kind
from piecework.handlers.options import Options
from piecework.handlers.signature import named_of

__all__ = ["DEFAULT_LIMIT", "Definition", "Registry", "kind_of"]

DEFAULT_LIMIT: Final = 1_048_576
"""The most bytes of JSON that args, or a result, may have."""


class Registry:
    """All handlers of one app. Registration is safe from any thread."""

    def __init__(
        self,
        services: svcs.Registry | None = None,
        *,
        max_args_bytes: int = DEFAULT_LIMIT,
        calls: Sequence[str] = (),
        durable: bool = True,
    ) -> None:
        """A registry; `calls` and `durable` say which callables ad-hoc calls may name."""
        self.services = services if services is not None else svcs.Registry()
        self.max_args_bytes = max_args_bytes
        self.calls = Calls(self.define, self.services, calls, durable=durable)
        self._by_name: dict[str, Definition] = {}
        self._by_type: dict[type[Any], Definition] = {}
        self._lock = Lock()
        self.limited: Mapping[str, int] = {}
        """The kinds of which only so many may run at once in one worker."""

    def add(self, fn: Any, options: Options | None = None, *, stacklevel: int = 3) -> Definition:
        """The function or class handles its kind from now on; return its definition.

        The same module and name again replaces; DuplicateKind for any other, aliases included.
        TypeError for what cannot be a handler, NotImportable for a function that is to run in a
        process of its own and cannot be imported there. `stacklevel` is for the warning that a
        thread's time limit is soft.
        """
        options = options or Options()
        kind = options.kind if options.kind is not None else kind_of(fn)
        definition = self.define(check_kind(kind), fn, options)
        if definition.isolate == "process":
            definition.import_path()
        if definition.mode == "thread" and options.timeout is not None:
            warnings.warn(
                f"timeout= of {kind!r}: a thread cannot be stopped, only run.check() sees the "
                'limit; for a hard one add isolate="process" or make the handler async',
                UserWarning,
                stacklevel=stacklevel,
            )
        self._register(definition)
        return definition

    def define(
        self, kind: str, fn: Any, options: Options, *, owner: type[Any] | None = None
    ) -> Definition:
        """Return a definition that knows this app's services and limits, without registering."""
        return Definition(
            kind,
            fn,
            options,
            is_service=self._is_service,
            limit_bytes=self.max_args_bytes,
            owner=owner,
        )

    def get(self, kind: str) -> Definition | None:
        """Return the definition of a kind or alias, or None."""
        return self._by_name.get(kind)

    def locate(self, kind: str, args: str) -> tuple[Definition, str] | None:
        """Return the definition that runs a stored job, and its args text; None if unknown.

        For an ad-hoc call, both are of the function it names; Undecodable if that may not be.
        """
        if kind == CALL_KIND:
            return self.calls.open(args)
        definition = self._by_name.get(kind)
        return None if definition is None else (definition, args)

    def for_args(self, args: object) -> Definition:
        """Return the one definition that takes args of exactly this object's type.

        UnknownKind if there is none, AmbiguousArgs if there are more.
        """
        args_type = type(args)
        found = self._by_type.get(args_type)
        return found if found is not None else self._find_for(args_type)

    def kinds(self) -> tuple[str, ...]:
        """Return every kind, without aliases, in the order of registration."""
        return tuple(definition.kind for definition in self._definitions())

    def _definitions(self) -> list[Definition]:
        with self._lock:
            return [each for name, each in self._by_name.items() if name == each.kind]

    def _is_service(self, wanted: Any) -> bool:
        try:
            return wanted in self.services
        except TypeError:  # an annotation that cannot be hashed is no service
            return False

    def _register(self, definition: Definition) -> None:
        names = (definition.kind, *definition.options.aliases)
        with self._lock:
            for name in names:
                holder = self._by_name.get(name)
                if holder is not None and holder.where != definition.where:
                    raise DuplicateKind(name, holder.where, definition.where)
            kept = {
                name: each for name, each in self._by_name.items() if each.kind != definition.kind
            }
            self._by_name = {**kept, **dict.fromkeys(names, definition)}
            self._by_type = {}
            self.limited = {
                name: each.options.concurrency
                for name, each in self._by_name.items()
                if each.options.concurrency is not None
            }

    def _find_for(self, args_type: type[Any]) -> Definition:
        known = self._by_type  # replaced when a handler is: then this find is of no use any more
        found: list[Definition] = []
        broken: TypeError | None = None
        for definition in self._definitions():
            try:
                if definition.may_take(args_type):
                    found.append(definition)
            except TypeError as error:  # another handler's mistake, unless nobody takes the type
                broken = broken or error
        name = args_type.__name__
        if len(found) > 1:
            raise AmbiguousArgs(name, [definition.kind for definition in found])
        if not found:
            raise UnknownKind(name, args_type=True) from broken
        known[args_type] = found[0]
        return found[0]


def kind_of(fn: Any) -> str:
    """Return the qualified name without the module, and without enclosing functions.

    ValueError for what has no name, such as a lambda.
    """
    name: str = named_of(fn).__qualname__.rpartition("<locals>.")[2]
    if name == "<lambda>":
        raise ValueError('a lambda has no name: give it a kind, app.handler(fn, kind="...")')
    return name
