"""What a decorated handler is: called as before, or enqueued."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)
from uuid import UUID

from piecework.client.handle import Handle
from piecework.client.options import EnqueueOptions, as_id
from piecework.handlers.definition import Definition, Registered
from piecework.handlers.options import HandlerOptions, Options
from piecework.handlers.run import Run

if TYPE_CHECKING:
    from piecework.client.client import Client, Draft

__all__ = ["Handler", "HandlerDecorator", "Prepared", "Using"]

Q = ParamSpec("Q")  # how the function is called
P = ParamSpec("P")  # what enqueue takes: the same without what is injected
A = TypeVar("A")
C = TypeVar("C")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Out_co = TypeVar("Out_co", covariant=True)

Coro: TypeAlias = Coroutine[Any, Any, R]


class Prepared(Generic[R_co]):
    """A checked job, not stored yet: to be enqueued alone, with others, or by a schedule."""

    __slots__ = ("draft",)

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    def __repr__(self) -> str:
        """Return the kind."""
        return f"<Prepared {self.draft.kind}>"


class Using(Generic[P, R_co]):
    """A handler together with options for what is enqueued through it."""

    __slots__ = ("_client", "_definition", "_options")

    def __init__(self, client: Client, definition: Definition, options: EnqueueOptions) -> None:
        self._client = client
        self._definition = definition
        self._options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """The job is stored; return its handle. ArgsInvalid if the args do not fit."""
        draft = self._draft(args, kwargs)
        ((job_id, created),) = await self._client.insert([draft])
        return Handle(self._client, job_id, self._definition, created=created)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> Prepared[R_co]:
        """Return the checked job, not yet stored. ArgsInvalid if the args do not fit."""
        return Prepared(self._draft(args, kwargs))

    def using(self, **options: Unpack[EnqueueOptions]) -> Using[P, R_co]:
        """Return the same with these options on top."""
        return Using(self._client, self._definition, {**self._options, **options})

    def _draft(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draft:
        definition = self._definition
        return self._client.draft(definition, definition.bind(args, kwargs), self._options)


class Handler(Generic[Q, Out_co, P, R_co]):
    """A function that is a handler: called as before, or enqueued."""

    __name__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, fn: Callable[..., Any], client: Client, definition: Definition) -> None:
        self.__piecework__ = Registered(definition, client.registry.services)
        self._fn = fn
        self._client = client
        self._definition = definition
        self._plain: Using[P, R_co] = Using(client, definition, {})
        functools.update_wrapper(self, fn)

    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> Out_co:
        """Call the function, here and now."""
        out: Out_co = self._fn(*args, **kwargs)
        return out

    def __repr__(self) -> str:
        """Return the kind."""
        return f"<Handler {self.kind}>"

    @property
    def kind(self) -> str:
        """The stable name of what it handles."""
        return self._definition.kind

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of its args."""
        return self._definition.schema()

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """The job is stored; return its handle. ArgsInvalid if the args do not fit."""
        return await self._plain.enqueue(*args, **kwargs)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> Prepared[R_co]:
        """Return the checked job, not yet stored. ArgsInvalid if the args do not fit."""
        return self._plain.prepare(*args, **kwargs)

    def using(self, **options: Unpack[EnqueueOptions]) -> Using[P, R_co]:
        """Return the handler with these options for what is enqueued through it."""
        return self._plain.using(**options)

    def handle(self, job_id: UUID | str) -> Handle[R_co]:
        """Return a typed handle for an id from elsewhere."""
        return Handle(self._client, as_id(job_id), self._definition)


class _Anything:
    """Nobody's type: a parameter that takes it takes everything, Run or not."""


class HandlerDecorator:
    """`app.handler`, with or without options.

    A parameter typed Any would take a Run too. The overloads with _Anything catch such a
    signature first, and leave its arguments to the check at run time.
    """

    def __init__(self, client: Client, options: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._options = options or {}

    # classes: they stay what they are
    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: type[C], /, **options: Unpack[HandlerOptions]
    ) -> type[C]: ...

    # a parameter that takes Any, first or second
    @overload
    def __call__(
        self, fn: Callable[Concatenate[_Anything, Q], Coro[R]], /, **options: Unpack[HandlerOptions]
    ) -> Handler[..., Coro[R], ..., R]: ...
    @overload
    def __call__(
        self,
        fn: Callable[Concatenate[A, _Anything, Q], Coro[R]],
        /,
        **options: Unpack[HandlerOptions],
    ) -> Handler[..., Coro[R], ..., R]: ...

    # an args object, then the run; a coroutine function is a function that returns, too: hence
    # the overlap with the sync overloads below
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[A, Run, P], Coro[R]], /, **options: Unpack[HandlerOptions]
    ) -> Handler[Concatenate[A, Run, P], Coro[R], Concatenate[A, P], R]: ...

    # the run first
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[Concatenate[Run, P], Coro[R]], /, **options: Unpack[HandlerOptions]
    ) -> Handler[Concatenate[Run, P], Coro[R], P, R]: ...

    # plain parameters
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coro[R]], /, **options: Unpack[HandlerOptions]
    ) -> Handler[P, Coro[R], P, R]: ...

    # the same for functions that are not async
    @overload
    def __call__(
        self, fn: Callable[Concatenate[_Anything, Q], R], /, **options: Unpack[HandlerOptions]
    ) -> Handler[..., R, ..., R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[A, _Anything, Q], R], /, **options: Unpack[HandlerOptions]
    ) -> Handler[..., R, ..., R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[A, Run, P], R], /, **options: Unpack[HandlerOptions]
    ) -> Handler[Concatenate[A, Run, P], R, Concatenate[A, P], R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Run, P], R], /, **options: Unpack[HandlerOptions]
    ) -> Handler[Concatenate[Run, P], R, P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[P, R], /, **options: Unpack[HandlerOptions]
    ) -> Handler[P, R, P, R]: ...

    # options alone
    @overload
    def __call__(self, /, **options: Unpack[HandlerOptions]) -> HandlerDecorator: ...
    def __call__(self, fn: Any = None, /, **options: Any) -> Any:
        """The function or class is a handler from now on.

        A class comes back as it was; a function comes back as a Handler. DuplicateKind where
        another one has the kind, NotImportable where another process could not import it.
        """
        given = {**self._options, **options}
        if fn is None:
            Options(**given)  # a wrong option is refused where it is written
            return HandlerDecorator(self._client, given)
        if isinstance(fn, Handler):
            raise TypeError(f"{fn!r} is registered already: decorate it once")
        return self._register(fn, given)

    def _register(self, fn: Any, given: Mapping[str, Any]) -> Any:
        registry = self._client.registry
        definition = registry.add(fn, Options(**given))
        if isinstance(fn, type):
            fn.__piecework__ = Registered(definition, registry.services)  # type: ignore[attr-defined]
            return cast("Any", fn)
        return Handler[..., Any, ..., Any](fn, self._client, definition)
