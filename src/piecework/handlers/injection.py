"""Call a handler with its args, its run and its services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import svcs

from piecework.handlers.run import Run
from piecework.handlers.signature import Injected, Marker, Shape

if TYPE_CHECKING:
    from piecework.handlers.definition import Definition

__all__ = ["Caller", "MissingService", "Services", "inject", "make_caller", "open_services"]

Services: TypeAlias = Mapping[Any, Any]
"""The services of one run, by the type they are registered as."""

Caller: TypeAlias = Callable[[Any, Run, Services], Any]
"""Calls the handler with (args value, run, services): a coroutine, or what a sync one returns."""

_MARKER: Final = Marker()


def inject() -> Any:
    """Return the default of a parameter that is to be injected.

    Its annotation says what: `async def send(to: str, mailer: Mailer = inject())`.
    """
    return _MARKER


class MissingService(Exception):
    """A handler asks for a service that nobody registered."""


async def open_services(
    definition: Definition, registry: svcs.Registry
) -> tuple[svcs.Container, dict[Any, Any]]:
    """Return a new container and the services that the handler needs, built in it.

    The caller closes it: `await container.aclose()`. It is closed already if a service cannot be
    built. MissingService for a type that is not registered.
    """
    container = svcs.Container(registry)
    services: dict[Any, Any] = {}
    try:
        for needed in definition.needs:
            if needed not in registry:
                raise MissingService(_missing(definition.kind, needed))
            services[needed] = await container.aget(needed)
    except BaseException:
        await container.aclose()
        raise
    return container, services


def _missing(kind: str, needed: Any) -> str:
    name = getattr(needed, "__name__", str(needed))
    return (
        f"{kind!r} asks for {name}, which is not registered: "
        f"app.services.register_factory({name}, ...)"
    )


def make_caller(fn: Any, shape: Shape) -> Caller:
    """Return the quickest closure that calls the function as its shape says."""
    extras = _make_extras(shape.injected)
    if shape.style == "object":
        return _object_caller(fn, shape, extras)
    if extras is None:
        return lambda value, _run, _services: fn(**value)
    if shape.injected == (Injected(shape.order[0] if shape.order else "", Run),):
        return lambda value, run, _services: fn(run, **value)
    return lambda value, run, services: fn(**value, **extras(run, services))


def make_class_caller(cls: type[Any], constructor: Shape, call: Shape) -> Caller:
    """Return a closure that builds the class anew for the run, then calls the object."""
    build = _make_extras(constructor.injected)

    def run_class(value: Any, run: Run, services: Services) -> Any:
        built = cls() if build is None else cls(**build(run, services))
        return caller(built)(value, run, services)

    def caller(built: Any) -> Caller:
        return make_caller(built, call)

    return run_class


_Extras: TypeAlias = Callable[[Run, Services], dict[str, Any]]


def _make_extras(injected: tuple[Injected, ...]) -> _Extras | None:
    if not injected:
        return None
    pairs = [(each.name, each.type) for each in injected]
    if len(pairs) == 1 and pairs[0][1] is Run:
        (name, _) = pairs[0]
        return lambda run, _services: {name: run}
    return lambda run, services: {
        name: run if needed is Run else services[needed] for name, needed in pairs
    }


def _object_caller(fn: Any, shape: Shape, extras: _Extras | None) -> Caller:
    name = shape.args[0].name
    if extras is None:
        return lambda value, _run, _services: fn(value)
    only_run = len(shape.injected) == 1 and shape.injected[0].type is Run
    if only_run and shape.order == (name, shape.injected[0].name):
        return lambda value, run, _services: fn(value, run)
    return lambda value, run, services: fn(**{name: value}, **extras(run, services))
