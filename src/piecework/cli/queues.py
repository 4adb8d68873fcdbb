"""`piecework queues`: see queues and control them while jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from piecework.cli.errors import WrongUsage, usage
from piecework.cli.show import ago, cell, json_out, out, print_table, printable, state_cell
from piecework.cli.targets import JsonOption, TargetArgument, split_name, with_store

if TYPE_CHECKING:
    from rich.text import Text

    from piecework import Piecework, QueueInfo

__all__ = ["app"]

app = typer.Typer(help="See queues and control them while jobs run.", no_args_is_help=True)

NameWords = Annotated[
    list[str],
    typer.Argument(
        metavar="[TARGET] NAME",
        show_default=False,
        help="The queue; TARGET may be left out where PIECEWORK_TARGET is set.",
    ),
]
_UNITS = {1.0: "s", 60.0: "min", 3_600.0: "hour", 86_400.0: "day"}


@app.command("list")
def list_(target: TargetArgument, *, json: JsonOption = False) -> None:
    """Show every queue that has live jobs or a control."""

    async def command(app: Piecework) -> None:
        queues = await app.queues.list()
        if json:
            json_out([_plain(queue) for queue in queues])
        elif not queues:
            out("no queue has live jobs or a control")
        else:
            _print(queues)

    with_store(target, command)


@app.command()
def pause(words: NameWords) -> None:
    """Take nothing more from a queue; what runs goes on."""
    target, name = split_name(words)

    async def command(app: Piecework) -> None:
        with usage():
            await app.queues.pause(name)
        out(f"{printable(name)} is paused: nothing more is taken from it until it is resumed")

    with_store(target, command)


@app.command()
def resume(words: NameWords) -> None:
    """Take from a paused queue again."""
    target, name = split_name(words)

    async def command(app: Piecework) -> None:
        with usage():
            await app.queues.resume(name)
        out(f"{printable(name)} is active")

    with_store(target, command)


@app.command()
def limit(
    words: NameWords,
    *,
    running: Annotated[
        str | None,
        typer.Option(
            metavar="N|none",
            show_default=False,
            help="At most N jobs of the queue run at once over the whole fleet.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="N/UNIT|none",
            show_default=False,
            help="At most so many starts, such as 100/min or 10/30s.",
        ),
    ] = None,
) -> None:
    """Limit a queue over the whole fleet; "none" lifts a limit."""
    target, name = split_name(words)
    if running is None and rate is None:
        raise WrongUsage("say what to limit: --running 5, --rate 100/min, or none to lift a limit")
    most = _running(running)

    async def command(app: Piecework) -> None:
        with usage():
            await app.queues.limit(name, running=most, rate=_rate(rate))
        for queue in await app.queues.list():
            if queue.name == name:
                most_, rate_ = queue.limit or "no limit", _rate_text(queue.rate) or "no limit"
                out(f"{printable(name)}: running {most_}, rate {rate_}")
                return
        out(f"{printable(name)} has no limit")

    with_store(target, command)


def _running(text: str | None) -> int | Literal["unset"] | None:
    if text is None:
        return "unset"
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise WrongUsage(f'--running {text!r}: give a number of jobs, or "none"') from None


def _rate(text: str | None) -> str | None:
    if text is None:
        return "unset"
    return None if text.lower() == "none" else text


def _rate_text(rate: tuple[int, float] | None) -> str:
    if rate is None:
        return ""
    n, window = rate
    return f"{n}/{_UNITS.get(window) or f'{window:g}s'}"


def _plain(queue: QueueInfo) -> dict[str, Any]:
    return {
        "name": queue.name,
        "paused": queue.paused,
        "limit": queue.limit,
        "rate": _rate_text(queue.rate) or None,
        "jobs": queue.jobs,
        "oldest": queue.oldest,
    }


def _print(queues: list[QueueInfo]) -> None:
    from piecework import State

    counts = (State.RUNNING, State.AVAILABLE, State.SCHEDULED, State.BLOCKED)
    numbers = [state.value.upper() for state in counts]
    rows: list[list[Text]] = []
    for queue in queues:
        jobs = [f"{queue.jobs.get(state, 0):,}" for state in counts]
        if queue.limit is not None:
            jobs[0] += f"/{queue.limit}"
        rows.append(
            [
                cell(queue.name),
                state_cell("paused" if queue.paused else "active"),
                *[cell(each) for each in jobs],
                cell(_rate_text(queue.rate) or "-"),
                cell(ago(queue.oldest)),
            ]
        )
    head = ("QUEUE", "STATE", *numbers, "RATE", "OLDEST")
    print_table(head, rows, right=[*numbers, "OLDEST"], cut=["QUEUE"])
