"""What may be a name: of a kind, a queue, a key, a metadata field; checked once, at the door."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Final, cast

__all__ = [
    "MAX_METADATA",
    "MAX_NAME",
    "MAX_VALUE",
    "RESERVED",
    "check_key",
    "check_kind",
    "check_metadata",
    "check_name",
]

MAX_NAME: Final = 200
MAX_VALUE: Final = 400
MAX_METADATA: Final = 100
RESERVED: Final = "piecework."
"""The prefix of our own kinds."""


def check_name(what: str, text: object) -> str:
    """Return the text: it may be a name. ValueError otherwise, saying what to do about `what`.

    A name has 1 to 200 characters, is not blank, and has no control character (line breaks
    included) and no lone surrogate. TypeError for anything but a str.
    """
    return _check(what, text, MAX_NAME)


def check_kind(text: object) -> str:
    """Return the text: it may be a user's kind or alias. ValueError for our own prefix, too."""
    kind = check_name("kind", text)
    if kind.startswith(RESERVED):
        raise ValueError(f"kind {kind!r}: the prefix {RESERVED!r} is Piecework's own, take another")
    return kind


def check_key(what: str, text: object) -> str | None:
    """Return the key, or None for a blank one. ValueError or TypeError as `check_name`."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    return check_name(what, text)


def check_metadata(metadata: object) -> dict[str, str] | None:
    """Return a copy as a plain dict, or None if it is empty.

    At most 100 fields; each key is a name, each value a str of at most 400 characters under the
    same rules, or blank. ValueError or TypeError otherwise.
    """
    if not metadata:
        return None
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a flat mapping of strings, not {_type(metadata)}")
    fields = cast("Mapping[object, object]", metadata)
    if len(fields) > MAX_METADATA:
        raise ValueError(f"metadata has {len(fields):,} fields, at most {MAX_METADATA} are kept")
    return {
        check_name("a metadata key", key): _value(str(key), value) for key, value in fields.items()
    }


def _value(key: str, value: object) -> str:
    if value == "":
        return ""
    return _check(f"metadata[{key!r}]", value, MAX_VALUE, blank=True)


def _check(what: str, text: object, limit: int, *, blank: bool = False) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {_type(text)}")
    if len(text) > limit:
        raise ValueError(f"{what} has {len(text):,} characters, at most {limit} fit: shorten it")
    if not blank and not text.strip():
        raise ValueError(f"{what} is empty: give it at least one visible character")
    if not text.isprintable():
        _refuse_unprintable(what, text)
    return text


def _refuse_unprintable(what: str, text: str) -> None:
    for at, character in enumerate(text):
        match unicodedata.category(character):
            case "Cs":
                found = "a lone surrogate"
            case "Cc" | "Zl" | "Zp":
                found = "a control character"
            case _:
                continue
        raise ValueError(f"{what} has {found} at position {at}: {text!r}; remove it")


def _type(value: object) -> str:
    return type(value).__name__
