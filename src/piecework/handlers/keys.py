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
    names = [arg.name for arg in shape.args]
    defaults = {arg.name: arg.default for arg in shape.args if arg.default is not EMPTY}
    parameters = _parameters(key)
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return lambda value: key(**{**defaults, **value})
    if all(each.kind in _NAMED and (each.name in names or _optional(each)) for each in parameters):
        wanted = [each.name for each in parameters if each.name in names]
        return lambda value: key(**{n: value[n] if n in value else defaults[n] for n in wanted})
    count = sum(each.kind is not each.KEYWORD_ONLY for each in parameters)
    if len(parameters) > len(names):
        raise TypeError(
            f"{what} {where(key)} takes {', '.join(p.name for p in parameters)}: give it the "
            f"parameters of the handler ({', '.join(names) or 'none'})"
        )
    return lambda value: key(*({**defaults, **value}[name] for name in names[:count]))


_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is not EMPTY


def _parameters(key: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(key).parameters.values())
    except ValueError:  # a function in C, such as str, says nothing of its parameters
        return [inspect.Parameter("value", inspect.Parameter.POSITIONAL_ONLY)]
