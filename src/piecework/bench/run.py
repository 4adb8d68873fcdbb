"""Run every measurement of a store, show how far it is, and end with one table."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from piecework.bench import drains, enqueues, footprint, latency, peers
from piecework.bench.bench import Bench
from piecework.bench.jobs import WentWrong
from piecework.bench.place import ForeignFile, Place
from piecework.bench.result import Result
from piecework.bench.scale import FULL, QUICK
from piecework.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from piecework.bench.scale import Scale

__all__ = ["MEMORY", "SQLITE", "Measurement", "main"]


class Measurement(NamedTuple):
    """What it is called while it runs, and what yields its rows."""

    what: str
    rows: Callable[[Bench], Iterator[Result]]


MEMORY: Final = (
    Measurement("drain", drains.memory),
    Measurement("enqueue", enqueues.memory),
    Measurement("latency", latency.memory),
)
SQLITE: Final = (
    Measurement("enqueue one by one", enqueues.one_by_one),
    Measurement("enqueue, many producers", enqueues.at_once),
    Measurement("enqueue in bulk", enqueues.bulk),
    Measurement("drain", drains.plain),
    Measurement("drain, 2 processes", drains.together),
    Measurement("drain, queue limited", drains.limited),
    Measurement("drain, serial keys", drains.keyed),
    Measurement("drain, much stored", drains.stored),
    Measurement("latency, idle", latency.idle),
    Measurement("latency, two processes", latency.across),
    Measurement("latency, busy", latency.busy),
    Measurement("idle worker", footprint.idle),
    Measurement("memory of a worker", footprint.memory),
)


def main(url: str, *, peers: bool = False, quick: bool = False, json: bool = False) -> int:
    """The table is printed. Return 0, 1 where something went wrong, 2 for a URL that cannot be.

    The file of an sqlite URL must not exist: it is made, used, and removed at the end.
    """
    console = Console(stderr=json)
    try:
        path = _path_of(url)
        scale = QUICK if quick else FULL
        if path is None:
            results = _measure(MEMORY, scale, None, with_peers=peers, console=console)
        else:
            with Place(path) as place:
                results = _measure(SQLITE, scale, place, with_peers=peers, console=console)
    except (ValueError, ForeignFile) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, soft_wrap=True)
        return 2
    if json:
        sys.stdout.write(jsonlib.dumps([row.as_json() for row in results], indent=2) + "\n")
    else:
        _show(console, url, results)
    return 1 if any(row.broken for row in results) else 0


def _path_of(url: str) -> Path | None:
    """Return the file of the URL, None for memory://."""
    if url == "memory://":
        return None
    scheme, _, rest = url.partition(":///")
    if scheme != "sqlite" or not rest or "?" in rest:
        raise ValueError(f"{url!r}: give memory:// or sqlite:///file, without options")
    return Path(unquote(rest))


def _measure(
    measurements: Sequence[Measurement],
    scale: Scale,
    place: Place | None,
    *,
    with_peers: bool,
    console: Console,
) -> list[Result]:
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Drawn seldom: the drawing's thread would disturb what it tells of.
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=1
    ) as progress:
        task = progress.add_task("", total=len(measurements))

        def tell(text: str) -> None:
            progress.update(task, description=text)

        bench = Bench(scale=scale, place=place, peers=with_peers, tell=tell)
        for what, rows in measurements:
            tell(what)
            try:
                results += rows(bench)
            except (WentWrong, StoreUnavailable, TimeoutError) as error:
                wrong = str(error) or type(error).__name__
                results.append(Result(what=what, ours=(), unit="", broken=wrong))
            progress.advance(task)
    if with_peers and place is not None and not peers.has_huey():
        console.print("Huey is not installed, so it is not among the yardsticks: pip install huey")
    return results


def _show(console: Console, url: str, results: Sequence[Result]) -> None:
    table = Table(
        title=f"piecework bench {url}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("what", overflow="fold", ratio=1)
    for name in ("ours", "yardstick", "ratio", "aim", "met?"):
        table.add_column(name, justify="right", overflow="fold")
    for result in results:
        table.add_row(*result.cells(), style="" if result.met is not False else "red")
    console.print(table)
    console.print(
        "Medians of rounds that took turns. Only ratios carry over to another machine.",
        style="dim",
    )
