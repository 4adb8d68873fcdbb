"""Unique and serial keys: constant, or a function of the args."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from piecework.core.errors import ArgsInvalid
from piecework.handlers.names import check_key
from piecework.handlers.signature import EMPTY, Shape, where

if TYPE_CHECKING:
    from piecework.handlers.options import Key, Options

__all__ = ["NO_KEYS", "KeyReader", "Keys", "make_keys"]


class Keys(NamedTuple):
    """The keys of one job; None where it has none."""

    unique: str | None
    serial: str | None


KeyReader: TypeAlias = Callable[[Any], Keys]

NO_KEYS: Final = Keys(None, None)


def make_keys(kind: str, options: Options, shape: Shape) -> KeyReader:
    """Return what reads the keys off an args value; it raises ArgsInvalid where a function does."""
    unique = _reader(kind, "unique_key", options.unique_key, shape)
    serial = _reader(kind, "serial_key", options.serial_key, shape)
    if unique is None and serial is None:
        return lambda _value: NO_KEYS
    return lambda value: Keys(unique and unique(value), serial and serial(value))


def _reader(kind: str, what: str, key: Key, shape: Shape) -> Callable[[Any], str | None] | None:
    if key is None:
        return None
    if isinstance(key, str):
        return lambda _value: key
    ask = _asker(what, key, shape)

    def read(value: Any) -> str | None:
        try:
            return check_key(what, _settled(ask(value)))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ArgsInvalid(kind, f"{what} {where(key)} failed: {said}") from error

    return read


def _settled(found: object) -> object:
    if inspect.iscoroutine(found):
        found.close()  # or Python warns that nobody awaited it
    return found


def _asker(what: str, key: Callable[..., object], shape: Shape) -> Callable[[Any], object]:
    """Return what calls the key function: with the args object, or with what it names of them."""
    if shape.style == "object":
        return key
    defaults = {arg.name: arg.default for arg in shape.args if arg.default is not EMPTY}
    names = [arg.name for arg in shape.args]
    parameters = inspect.signature(key).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return lambda value: key(**{**defaults, **value})
    by_name = all(
        p.name in names or p.default is not EMPTY
        for p in parameters.values()
        if p.kind is not p.POSITIONAL_ONLY
    )
    if by_name and not any(p.kind is p.POSITIONAL_ONLY for p in parameters.values()):
        wanted = [name for name in names if name in parameters]
        return lambda value: key(**{n: value[n] if n in value else defaults[n] for n in wanted})
    if len(parameters) > len(names):
        raise TypeError(
            f"{what} {where(key)} takes {', '.join(parameters)}: give it the parameters of the "
            f"handler ({', '.join(names) or 'none'})"
        )
    return lambda value: key(*({**defaults, **value}[name] for name in names))
