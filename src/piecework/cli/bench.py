"""`piecework bench`: how fast a store is here, beside bare code and its peers."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The store to measure.")
    ] = "sqlite:///piecework-bench.db",
    *,
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure peers, too, where they are installed.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer jobs: a rough idea.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a store, as ratios to bare code doing the same."""
    from piecework.bench import main

    raise typer.Exit(main(url, peers=peers, quick=quick, json=json))
