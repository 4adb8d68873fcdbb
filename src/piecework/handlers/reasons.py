"""Say in one line what is wrong with data, without the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

__all__ = ["one_line", "reason"]

_MAX_LINE: Final = 500
_MAX_STEP: Final = 60
_SHOWN_ERRORS: Final = 4
_SHOWN_DEPTH: Final = 6
_DEEP: Final = ("recursion limit exceeded", "depth exceeded")


def reason(error: BaseException) -> str:
    """Return one line that says what is wrong; of a ValidationError each field and its fault."""
    if isinstance(error, ValidationError):
        return one_line(_explain(error))
    said = str(error)
    if isinstance(error, RecursionError) or any(deep in said for deep in _DEEP):
        return "it is nested too deep, at most 200 levels fit"
    name = type(error).__name__
    return one_line(said if name.startswith("Pydantic") else f"{name}: {said}")


def one_line(text: str) -> str:
    """Return the text on one line of at most 500 characters."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}…"


def _explain(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False)
    if any(deep in details[0]["msg"] for deep in _DEEP):
        return "it is nested too deep, at most 200 levels fit"
    shown = [_explain_one(detail) for detail in details[:_SHOWN_ERRORS]]
    if len(details) > _SHOWN_ERRORS:
        shown.append(f"and {len(details) - _SHOWN_ERRORS:,} more")
    return "; ".join(shown)


def _explain_one(detail: Mapping[str, Any]) -> str:
    steps = [str(step)[:_MAX_STEP] for step in detail["loc"]]
    if len(steps) > _SHOWN_DEPTH:
        steps = [*steps[:_SHOWN_DEPTH], "…"]
    message = detail["msg"]
    if detail["type"].endswith("_type"):
        message += f", not {type(detail['input']).__name__}"
    return f"{'.'.join(steps)}: {message}" if steps else message
