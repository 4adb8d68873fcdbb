"""What a command prints: tables for people, one JSON document for programs.

Names, errors and logs were written by anybody, so nothing of them reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from piecework import JobView

__all__ = [
    "ago",
    "cell",
    "console",
    "json_out",
    "out",
    "plain",
    "printable",
    "say",
    "seconds",
    "state_cell",
    "table",
    "view",
]

_UNLIMITED: Final = 10_000
_COLOURS: Final = {
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "paused": "yellow",
    "error": "red",
    "warning": "yellow",
    "ok": "green",
}


def printable(text: str) -> str:
    """Return the text on one line; what is not plainly visible is escaped, as in repr()."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# ── for people ───────────────────────────────────────────────────────────────────────────────


def console(*, stderr: bool = False) -> Console:
    """Return the terminal. Where there is none, lines are as long as they need to be."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    free = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        stderr=stderr,
        width=_UNLIMITED if free else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def say(line: str) -> None:
    """Say something about the command itself, on stderr."""
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


def out(line: str = "") -> None:
    """Print a line that is escaped already."""
    sys.stdout.write(f"{line}\n")


def cell(value: object, style: str = "") -> Text:
    """Return a cell of a table: escaped, never read as markup."""
    from rich.text import Text

    return Text("" if value is None else printable(str(value)), style=style)


def state_cell(state: str) -> Text:
    """Return a state in its colour."""
    return cell(state, _COLOURS.get(state, ""))


def table(*columns: str, right: Sequence[str] = (), flexible: Sequence[str] = ()) -> Table:
    """Return an empty table; only `flexible` columns are cut short where the terminal ends."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if name in flexible else len(name),
            ratio=None,
        )
    return made


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago that was, or how long until then: "5s", "in 3m"."""
    if at is None:
        return "-"
    passed = ((now or datetime.now(UTC)) - at).total_seconds()
    return seconds(passed) if passed > -1 else f"in {seconds(-passed)}"


def seconds(length: float) -> str:
    """Return a duration in its largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if length >= 2 * size or (length >= size and unit == "d"):
            return f"{length / size:.0f}{unit}"
    return f"{max(0.0, length):.0f}s"


# ── for programs ─────────────────────────────────────────────────────────────────────────────


def json_out(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document; it is plain ASCII, so that a terminal is safe, too."""
    out(json.dumps(plain(value), indent=indent))


def view(job: JobView) -> dict[str, Any]:
    """Return a job as data."""
    shown: dict[str, Any] = plain(job)
    if job.progress is not None:
        shown["progress"]["percent"] = job.progress.percent
    return shown


def plain(value: Any) -> Any:
    """Return the value as what JSON knows; instants as ISO 8601, durations in seconds."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {str(plain(key)): plain(each) for key, each in items}
        case list() | tuple() | set() | frozenset():
            return [plain(each) for each in cast("Sequence[object]", value)]
        case _ if is_dataclass(value):
            return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
        case _:
            return str(value)
