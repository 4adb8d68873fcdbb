"""What a command prints: tables for people, one JSON document for programs.

Names, errors and logs were written by anybody, so nothing of them reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from piecework import JobView

__all__ = [
    "ago",
    "cell",
    "console",
    "json_out",
    "out",
    "plain",
    "print_table",
    "printable",
    "say",
    "seconds",
    "state_cell",
    "view",
]

_UNLIMITED: Final = 10_000
_GAP: Final = 2
_LEAST: Final = 6
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
    """Return the text on one line; what is not plainly visible is escaped, as in repr().

    A byte of a file name that is no UTF-8 is shown as that byte.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


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


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    right: Collection[str] = (),
    cut: Collection[str] = (),
    fold: Collection[str] = (),
) -> None:
    """Print a table. Where the terminal ends, only the columns `cut` and `fold` give way."""
    from rich.table import Table

    terminal = console()
    widths = {
        name: max([len(name), *(row[number].cell_len for row in rows)])
        for number, name in enumerate(head)
    }
    if not fold:
        _narrow(widths, cut, terminal.width)
    shown = Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        show_header=any(name.strip() for name in head),
        header_style="bold",
    )
    for name, width in widths.items():
        shown.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name not in fold,
            overflow="fold" if name in fold else "ellipsis",
            width=None if name in fold else width,
        )
    for row in rows:
        shown.add_row(*row)
    if terminal.is_terminal:
        terminal.print(shown)
        return
    with terminal.capture() as printed:
        terminal.print(shown)
    for line in printed.get().splitlines():
        out(line.rstrip())


def _narrow(widths: dict[str, int], cut: Collection[str], room: int) -> None:
    """The columns `cut`, the widest first, give up what is too much."""
    while (over := sum(widths.values()) + _GAP * (len(widths) - 1) - room) > 0:
        widest = max(cut, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= _LEAST:
            return
        others = [widths[name] for name in cut if name != widest]
        widths[widest] -= max(1, min(over, widths[widest] - max([_LEAST, *others])))


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
