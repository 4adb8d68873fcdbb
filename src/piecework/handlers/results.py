"""Results to JSON and back: any JSON in, typed by the return annotation out."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from piecework.core.errors import ResultInvalid
from piecework.handlers.adapters import result_adapter
from piecework.handlers.losses import has_constant, non_finite
from piecework.handlers.reasons import reason

__all__ = ["ResultCodec", "ResultUnstorable"]

_SAFE_DEPTH: Final = 190


class ResultUnstorable(Exception):
    """What a handler returned cannot be stored; the message is one line that says why."""


class ResultCodec:
    """The result of one handler."""

    __slots__ = ("_dump", "_kind", "_limit", "_load", "_nullable")

    def __init__(self, kind: str, returns: object, *, limit_bytes: int) -> None:
        self._kind = kind
        self._limit = limit_bytes
        adapter, self._nullable = result_adapter(returns)
        self._dump = adapter.serializer.to_json
        self._load = adapter.validator.validate_json

    def encode(self, value: object) -> str:
        """Return compact JSON. ResultUnstorable for what JSON cannot hold, or too much of it."""
        try:
            data = self._write(value)
            text = data.decode()
            if text.count("[") + text.count("{") > _SAFE_DEPTH:
                from_json(data)  # refuses what no reader would take
        except Exception as error:
            raise ResultUnstorable(f"the result has no JSON: {reason(error)}") from error
        if len(data) > self._limit:
            raise ResultUnstorable(
                f"the result is {len(data):,} bytes of JSON, the limit is {self._limit:,}: "
                "store the data elsewhere and return a reference"
            )
        if has_constant(text) or ("null" in text and non_finite(value)):
            raise ResultUnstorable("the result has no JSON: it holds NaN or infinity")
        return text

    def _write(self, value: object) -> bytes:
        try:
            # By what the value is, not by what the annotation says: nothing of it gets lost.
            return to_json(
                value,
                by_alias=False,
                round_trip=True,
                inf_nan_mode="constants",
                bytes_mode="base64",
            )
        except PydanticSerializationError:  # only its annotation may know how it is written
            return self._dump(value, warnings=False, round_trip=True, by_alias=False)

    def decode(self, text: str) -> Any:
        """Return the result, typed. ResultInvalid if it does not fit the return annotation."""
        try:
            value = self._load(text, strict=True, by_alias=True, by_name=True)
        except Exception as error:
            raise ResultInvalid(self._kind, reason(error)) from error
        if value is None and not self._nullable:
            raise ResultInvalid(self._kind, "it is null")
        return value
