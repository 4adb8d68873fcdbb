"""Find what JSON would lose without a word: NaN, the fields of subclasses, hidden secrets."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, cast

from pydantic import BaseModel

__all__ = ["STARS", "has_constant", "has_nul", "lone_surrogate", "lost_subclass", "non_finite"]

STARS: Final = '"**********"'
"""How pydantic writes a secret."""

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def has_nul(text: str) -> bool:
    r"""Whether a string in the JSON text holds the character NUL, not just the text `\u0000`."""
    return "\\u0000" in text and _NUL.search(text) is not None


def has_constant(text: str) -> bool:
    """Whether the JSON text holds NaN or Infinity outside of its strings."""
    if "NaN" not in text and "Infinity" not in text:
        return False
    try:
        json.loads(text, parse_constant=_refuse)
    except _ConstantFoundError:
        return True
    return False


class _ConstantFoundError(Exception):
    pass


def _refuse(name: str) -> None:
    raise _ConstantFoundError(name)


def non_finite(value: object) -> bool:
    """Whether NaN or an infinity is anywhere inside the value; models write those as null."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, float):
            if not math.isfinite(each):
                return True
        else:
            pending.extend(inner for _, inner in _inside(each))
    return False


def lone_surrogate(value: object) -> bool:
    """Whether a lone surrogate is anywhere inside; as a key, it is written as U+FFFD."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return any(lone_surrogate(key) or lone_surrogate(inner) for key, inner in _inside(value))


def lost_subclass(given: object, kept: object) -> str | None:
    """Return what is lost where `given` has an instance of a subclass of what was `kept`."""
    if type(given) is not type(kept):
        fields = _fields(given)
        if fields and isinstance(given, type(kept)) and fields.keys() != (_fields(kept) or fields):
            return f"a {type(given).__name__} in the place of a {type(kept).__name__}"
    inside = dict(_inside(kept))
    for key, inner in _inside(given):
        if key in inside:
            lost = lost_subclass(inner, inside[key])
            if lost is not None:
                return lost
    return None


def _inside(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, (str, bytes, int)):
        return iter(())
    if isinstance(value, Mapping):
        return iter(cast("Mapping[object, object]", value).items())
    if isinstance(value, (list, tuple)):
        return iter(enumerate(cast("Sequence[object]", value)))
    if isinstance(value, (set, frozenset)):
        return ((item, item) for item in cast("AbstractSet[object]", value))
    return iter((_fields(value) or {}).items())


def _fields(value: object) -> dict[str, object] | None:
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return None
