"""`piecework check`: what an operator should know, before and while jobs run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import typer

from piecework.cli.errors import FAILED
from piecework.cli.show import cell, json_out, print_table, state_cell
from piecework.cli.targets import JsonOption, TargetArgument, is_url, load
from piecework.core.job import WAITING

if TYPE_CHECKING:
    from piecework import Piecework
    from piecework.ports import Finding

__all__ = ["command"]

MANY: Final = 1_000


def command(target: TargetArgument, *, json: JsonOption = False) -> None:
    """Check a store, and an app if one is named; exit code 1 if there is an error."""
    app = load(target)
    found = asyncio.run(_findings(app, module=not is_url(target)))
    if json:
        json_out(found)
    else:
        _print(found)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(FAILED)


async def _findings(app: Piecework, *, module: bool) -> list[Finding]:
    from piecework.ports import Finding

    async with app:
        found = await app.check()
        if module:
            kinds = ", ".join(app.kinds)
            found.append(
                Finding("ok", "handlers", kinds)
                if kinds
                else Finding("warning", "handlers", "the app has none: a worker would park all")
            )
        found.append(await _workers(app))
        parked = await app.find(parked=True, limit=MANY)
        if parked:
            many = f"{len(parked):,}" if len(parked) < MANY else f"{MANY:,} or more"
            text = f"{many} jobs wait for a worker that can run them: {parked[0].reason}"
            found.append(Finding("warning", "parked", text))
        paused = [queue.name for queue in await app.queues.list() if queue.paused]
        if paused:
            found.append(Finding("warning", "queues", f"paused: {', '.join(paused)}"))
    return found


async def _workers(app: Piecework) -> Finding:
    from piecework.ports import Finding

    nodes, counts = await app.nodes(), await app.count()
    waiting = sum(n for (_, state), n in counts.items() if state in WAITING)
    if nodes:
        slots = sum(node.slots for node in nodes)
        running = sum(node.running for node in nodes)
        text = f"{len(nodes)} alive, {running} of {slots} slots busy, {waiting:,} jobs wait"
        return Finding("ok", "workers", text)
    if waiting:
        text = f"none is alive, and {waiting:,} jobs wait: start `piecework worker`"
        return Finding("warning", "workers", text)
    return Finding("ok", "workers", "none is alive, and no job waits")


def _print(found: list[Finding]) -> None:
    rows = [
        [state_cell(finding.level), cell(finding.topic, "bold"), cell(finding.text)]
        for finding in found
    ]
    print_table(("", " ", "  "), rows, fold=["  "])
