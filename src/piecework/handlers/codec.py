"""Args to JSON and back, validated against the handler's types on both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import from_json, to_json

from piecework.core.errors import ArgsInvalid, PayloadTooLarge
from piecework.handlers.adapters import args_adapter, count_nodes
from piecework.handlers.losses import (
    STARS,
    has_constant,
    has_nul,
    lone_surrogate,
    lost_subclass,
    non_finite,
)
from piecework.handlers.reasons import reason
from piecework.handlers.results import ResultUnstorable

if TYPE_CHECKING:
    from piecework.handlers.signature import Arg

__all__ = ["ArgsCodec", "ResultUnstorable", "Undecodable", "encode_plain"]

_NON_FINITE: Final = "NaN and infinity have no JSON: pass None or a str"


class Undecodable(Exception):
    """A stored text does not fit the handler; the message is one line that says why."""


class ArgsCodec:
    """The args of one handler: strict in, compact JSON stored, strict out.

    In object style (`args_type` given) the value is the args object, in call style a dict of
    the parameters that were given. TypeError if pydantic knows no JSON for a type.
    """

    __slots__ = (
        "_adapter",
        "_args",
        "_args_type",
        "_check",
        "_dump",
        "_kind",
        "_limit",
        "_load",
        "_nested",
    )

    def __init__(
        self, kind: str, args: Sequence[Arg], args_type: type[Any] | None, *, limit_bytes: int
    ) -> None:
        self._kind = kind
        self._args = args
        self._args_type = args_type
        self._limit = limit_bytes
        self._adapter, self._nested = args_adapter(kind, args, args_type)
        self._check = self._adapter.validator.validate_python
        self._dump = self._adapter.serializer.to_json
        self._load = self._adapter.validator.validate_json

    def encode(self, value: Any) -> str:
        """Return compact JSON from which `decode` gives the args back; ArgsInvalid otherwise."""
        if self._args_type is not None and type(value) is not self._args_type:
            self._refuse_type(value, self._args_type)
        try:
            self._check(value, strict=True, by_alias=True, by_name=True)
            data = self._dump(value, warnings=False, round_trip=True, by_alias=False)
        except Exception as error:  # a type's own validators may raise anything
            raise ArgsInvalid(self._kind, reason(error)) from error
        text = _guard(self._kind, data, self._limit)
        if "\ufffd" in text and lone_surrogate(value):
            raise ArgsInvalid(self._kind, "a string holds a lone surrogate, which has no JSON")
        if "null" in text and non_finite(value):
            raise ArgsInvalid(self._kind, _NON_FINITE)
        if STARS in text and self._hides():
            raise ArgsInvalid(
                self._kind, "a secret would be stored as stars: pass the name of the secret"
            )
        kept = self._check_json(text)
        if self._nested:
            self._check_whole(value, kept, data)
        return text

    def encode_json(self, data: object) -> str:
        """Return compact JSON of plain data from outside, if it fits; ArgsInvalid otherwise."""
        text = encode_plain(self._kind, data, limit_bytes=self._limit)
        self._check_json(text)
        return text

    def decode(self, text: str) -> Any:
        """Return the args value. Undecodable for anything that is wrong with the text."""
        try:
            value = self._load(text, strict=True, by_alias=True, by_name=True)
        except Exception as error:
            raise Undecodable(reason(error)) from error
        if value is None:
            raise Undecodable("the args are null")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the args, with the defaults that JSON can hold.

        It has no properties if a type has no schema.
        """
        schema = self._json_schema()
        if self._args_type is None:
            for arg in self._args:
                given = schema["properties"].get(arg.name)
                if given is not None and not arg.required:
                    _note_default(given, arg)
        return schema

    def _check_json(self, text: str) -> Any:
        try:
            return self.decode(text)
        except Undecodable as error:
            raise ArgsInvalid(self._kind, str(error)) from error

    def _check_whole(self, value: object, kept: object, data: bytes) -> None:
        # A field's type decides what of it is written: a subclass's own fields would vanish.
        try:
            whole = self._dump(
                value, warnings=False, round_trip=True, by_alias=False, serialize_as_any=True
            )
        except Exception:  # noqa: BLE001 - a type of its own may only have JSON in its field
            whole = None
        lost = lost_subclass(value, kept) if whole != data else None
        if lost is not None:
            raise ArgsInvalid(
                self._kind, f"{lost} would lose its own fields: name its type in the annotation"
            )

    def _hides(self) -> bool:
        return count_nodes(self._json_schema(), lambda node: node.get("writeOnly") is True) > 0

    def _json_schema(self) -> dict[str, Any]:
        try:
            return _unwrapped(self._adapter.json_schema())
        except PydanticUserError:  # a type of one's own may have JSON, but no schema
            return {"properties": {}}

    def _refuse_type(self, value: object, args_type: type[Any]) -> NoReturn:
        given = type(value).__name__
        if isinstance(value, args_type):
            detail = (
                f"{given} is a subclass of {args_type.__name__}: its own fields would be lost, "
                f"pass a plain {args_type.__name__}"
            )
        else:
            detail = f"expected {args_type.__name__}, not {given}"
        raise ArgsInvalid(self._kind, detail)


def encode_plain(kind: str, data: object, *, limit_bytes: int) -> str:
    """Return compact JSON of plain data for a kind that is not known here.

    ArgsInvalid for what JSON cannot hold or no reader would take: NaN, NUL, too deep nesting.
    """
    try:
        raw = to_json(data, by_alias=False, inf_nan_mode="constants", bytes_mode="base64")
        text = _guard(kind, raw, limit_bytes)
        from_json(raw)
    except ArgsInvalid:
        raise
    except Exception as error:
        raise ArgsInvalid(kind, reason(error)) from error
    return text


def _guard(kind: str, data: bytes, limit_bytes: int) -> str:
    if len(data) > limit_bytes:
        raise PayloadTooLarge(kind, len(data), limit_bytes)
    text = data.decode()
    if has_nul(text):
        raise ArgsInvalid(kind, "a string holds the character NUL: remove it, or pass bytes")
    if has_constant(text):
        raise ArgsInvalid(kind, _NON_FINITE)
    return text


def _unwrapped(schema: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = schema["anyOf"][0]
    defs: dict[str, Any] = schema.get("$defs", {})
    if "$ref" in inner:
        name = inner["$ref"].rpartition("/")[2]
        inner = defs[name]
        if inner.get("$ref") or f"'#/$defs/{name}'" not in repr(defs):
            defs = {key: value for key, value in defs.items() if key != name}
    return {**inner, "$defs": defs} if defs else dict(inner)


def _note_default(properties: dict[str, Any], arg: Arg) -> None:
    try:
        properties["default"] = TypeAdapter(arg.hint).dump_python(arg.default, mode="json")
    except Exception:  # noqa: BLE001 - a default may be anything; then the schema has none
        return
