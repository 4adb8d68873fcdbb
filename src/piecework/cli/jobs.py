"""`piecework jobs`: look at jobs, follow them, and act on them."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from piecework.cli.errors import FAILED, WrongUsage, usage
from piecework.cli.show import (
    ago,
    cell,
    console,
    json_out,
    out,
    plain,
    print_table,
    printable,
    say,
    state_cell,
    view,
)
from piecework.cli.targets import JsonOption, TargetArgument, split_ids, with_store
from piecework.core.job import State

if TYPE_CHECKING:
    from rich.text import Text

    from piecework import Attempt, JobEvent, JobView, LogLine, Piecework, Report

__all__ = ["app"]

app = typer.Typer(help="Look at jobs, follow them, and act on them.", no_args_is_help=True)

IdWords = Annotated[
    list[str],
    typer.Argument(
        metavar="[TARGET] ID...",
        show_default=False,
        help="Ids of jobs; TARGET may be left out where PIECEWORK_TARGET is set.",
    ),
]
IdWord = Annotated[
    list[str],
    typer.Argument(
        metavar="[TARGET] ID",
        show_default=False,
        help="The id of a job; TARGET may be left out where PIECEWORK_TARGET is set.",
    ),
]
_WIDE: Final = 110
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


# ── look ─────────────────────────────────────────────────────────────────────────────────────


@app.command("list")
def list_(
    target: TargetArgument,
    *,
    state: Annotated[
        list[State] | None,
        typer.Option(
            metavar="STATE",
            show_default=False,
            help=f"In this state: {', '.join(State)}; repeatable.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", show_default=False, help="Of this kind; repeatable."),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=False, help="In this queue; repeatable."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With this in id, name, kind, keys or error."),
    ] = None,
    parked: Annotated[
        bool | None,
        typer.Option(
            "--parked/--not-parked", show_default=False, help="That no worker could run so far."
        ),
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", show_default=False, help="With this metadata; repeatable."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Enqueued since then: 2h (ago), or ISO 8601 with zone."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Enqueued before then, as --since.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The next page: older than the last one seen."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    json: JsonOption = False,
) -> None:
    """Show jobs, newest first."""
    what: dict[str, Any] = {
        "state": [each.value for each in state or ()],
        "kind": kind,
        "queue": queue,
        "text": text,
        "parked": parked,
        "metadata": _metadata(meta or ()),
        "since": _instant("--since", since),
        "until": _instant("--until", until),
    }
    given = {name: value for name, value in what.items() if value not in (None, [], {})}

    async def command(app: Piecework) -> None:
        with usage():
            found = await app.find(after=after, limit=limit, **given)
        if json:
            json_out([view(job) for job in found])
        elif not found:
            out("no jobs" + (" match" if given or after else ""))
        else:
            _print_jobs(found)
            if len(found) == limit:
                say(f"only {limit:,} are shown; the next ones: --after {found[-1].id}")

    with_store(target, command)


@app.command()
def show(
    words: IdWord,
    *,
    logs: Annotated[bool, typer.Option("--logs", help="With what its runs logged.")] = False,
    json: JsonOption = False,
) -> None:
    """Show one job: its fields, attempts and error."""
    target, job_id = _one(words)

    async def command(app: Piecework) -> None:
        handle = app.job(job_id)
        job, attempts = await handle.get(), await handle.attempts()
        lines = await handle.logs() if logs else None
        if json:
            shown = {**view(job), "attempts": attempts}
            json_out(shown if lines is None else {**shown, "logs": lines})
            return
        _print_job(job)
        if attempts:
            _print_attempts(attempts)
        if lines is not None:
            _print_logs(lines)

    with_store(target, command)


@app.command()
def watch(
    words: IdWord,
    *,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for each event, on a line each.")
    ] = False,
) -> None:
    """Follow a job until it ends; exit code 1 if it ends otherwise than completed."""
    target, job_id = _one(words)

    async def command(app: Piecework) -> None:
        handle = app.job(job_id)
        last: JobEvent | None = None
        async for event in handle.watch():
            last = event
            if json:
                json_out(event, indent=None)
            else:
                out(_event_line(event))
            typer.get_text_stream("stdout").flush()
        if last is not None and last.state is not State.COMPLETED:
            job = await handle.get()
            why = job.error or job.reason
            say(f"job {job_id} {_ended(job.state)}" + (f": {why}" if why else ""))
            raise typer.Exit(FAILED)

    with_store(target, command)


# ── act ──────────────────────────────────────────────────────────────────────────────────────


@app.command()
def cancel(
    words: IdWords,
    *,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Kept with the job, for others to read.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Cancel jobs: one that waits never starts, one that runs is told to stop."""

    async def act(app: Piecework, ids: list[UUID]) -> list[Report]:
        return await app.cancel_many(ids=ids, reason=reason)

    _act(words, act, _cancelled, json=json)


@app.command()
def retry(words: IdWords, *, json: JsonOption = False) -> None:
    """Run jobs again that ended, or now what waits for later."""

    async def act(app: Piecework, ids: list[UUID]) -> list[Report]:
        return await app.retry_many(ids=ids)

    _act(words, act, lambda job: f"will run again ({job.state})", json=json)


@app.command()
def delete(words: IdWords, *, json: JsonOption = False) -> None:
    """Delete jobs that ended, with their attempts and logs."""

    async def act(app: Piecework, ids: list[UUID]) -> list[Report]:
        return await app.delete_many(ids=ids)

    _act(words, act, lambda _: "deleted", json=json)


def _cancelled(job: JobView) -> str:
    return "is told to stop" if job.state is State.RUNNING else f"{job.state}"


def _act(
    words: list[str],
    act: Callable[[Piecework, list[UUID]], Awaitable[list[Report]]],
    done: Callable[[JobView], str],
    *,
    json: bool,
) -> None:
    target, ids = split_ids(words)

    async def command(app: Piecework) -> None:
        with usage():
            reports = await act(app, ids)
        if json:
            json_out(reports)
        else:
            there = {job.id: job for job in await app.find(ids=ids, limit=len(ids))}
            for report in reports:
                job = there.get(report.id)
                if report.done:
                    out(f"{report.id}  {'deleted' if job is None else done(job)}")
                else:
                    say(f"{report.id}  nothing done: {report.reason}")
        if not all(report.done for report in reports):
            raise typer.Exit(FAILED)

    with_store(target, command)


# ── what was meant ───────────────────────────────────────────────────────────────────────────


def _one(words: list[str]) -> tuple[str, UUID]:
    target, ids = split_ids(words)
    if len(ids) > 1:
        raise WrongUsage(f"one job at a time: {len(ids)} ids were given")
    return target, ids[0]


def _metadata(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise WrongUsage(f"--meta {pair!r}: write KEY=VALUE")
        found[key] = value
    return found


def _instant(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    if match := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(
            f"{option} {text!r}: write 2h for two hours ago, or an instant, such as "
            "2026-11-21T07:00:00Z"
        ) from None
    if at.tzinfo is None:
        raise WrongUsage(f"{option} {text!r} has no time zone: add Z for UTC, or +01:00")
    return at


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _print_jobs(found: list[JobView]) -> None:
    wide = console().width >= _WIDE
    extra = ["QUEUE", "ERROR"] if wide else []
    now = datetime.now(UTC)
    rows: list[list[Text]] = []
    for job in found:
        row = [
            cell(job.id),
            state_cell("parked" if job.parked else job.state),
            cell(f"{job.attempt}/{job.max_attempts}"),
            cell(ago(job.enqueued_at, now)),
            cell(job.kind if job.name is None else f"{job.kind}: {job.name}"),
        ]
        if wide:
            row += [cell(job.queue), cell(job.error or job.reason)]
        rows.append(row)
    head = ["ID", "STATE", "TRIES", "AGE", "KIND", *extra]
    print_table(head, rows, right=["TRIES", "AGE"], cut=["KIND", *extra])


def _print_job(job: JobView) -> None:
    progress = job.progress
    state = str(job.state)
    if job.parked:
        state += " (parked: no worker could run it so far)"
    if job.cancel_requested is not None and job.state is State.RUNNING:
        state += f" (asked to stop {ago(job.cancel_requested)} ago)"
    rows: list[tuple[str, object]] = [
        ("id", job.id),
        ("name", job.name),
        ("kind", job.kind),
        ("state", state),
        ("reason", job.reason),
        ("error", job.error),
        ("queue", job.queue),
        ("priority", job.priority or None),
        ("attempts", f"{job.attempt} of {job.max_attempts}"),
        ("crashes", f"{job.crashes} of {job.max_crashes}" if job.crashes else None),
        ("generation", job.generation if job.generation > 1 else None),
        ("args", _compact(job.args)),
        ("result", None if job.result is None else _compact(job.result)),
        ("progress", None if progress is None else _progress(progress)),
        ("partial", None if progress is None or progress.partial is None
            else _compact(progress.partial)),
        ("metadata", ", ".join(f"{k}={v}" for k, v in job.metadata.items()) or None),
        ("node", job.node),
        ("unique key", job.unique_key),
        ("serial key", job.serial_key),
        ("schedule", job.schedule),
        ("parent", job.parent),
        ("enqueued", _at(job.enqueued_at)),
        ("due", _at(job.due_at) if job.due_at != job.enqueued_at else None),
        ("started", _at(job.started_at)),
        ("finished", _at(job.finished_at)),
        ("expires", _at(job.expires_at)),
        ("time limit", None if job.timeout is None else f"{job.timeout:g} s"),
    ]  # fmt: skip
    shown = [
        [cell(name, "bold"), state_cell(state) if name == "state" else cell(value)]
        for name, value in rows
        if value is not None
    ]
    print_table(("", " "), shown, fold=[" "])


def _print_attempts(attempts: list[Attempt]) -> None:
    out()
    rows: list[list[Text]] = []
    for each in attempts:
        took = None if each.ended_at is None else (each.ended_at - each.started_at).total_seconds()
        number = f"{each.number}" if each.generation == 1 else f"{each.generation}.{each.number}"
        rows.append(
            [
                cell(number),
                state_cell(each.outcome or "running"),
                cell(f"{each.started_at.astimezone():%H:%M:%S}"),
                cell("-" if took is None else f"{took:.3f}s"),
                cell(each.node),
                cell(each.error),
            ]
        )
    head = ("ATTEMPT", "OUTCOME", "STARTED", "TOOK", "NODE", "ERROR")
    print_table(head, rows, right=["ATTEMPT", "TOOK"], cut=["NODE", "ERROR"])
    last = attempts[-1]
    if last.traceback:
        out()
        for line in last.traceback.rstrip("\n").split("\n"):
            out(printable(line))


def _print_logs(lines: list[LogLine]) -> None:
    out()
    if not lines:
        out("nothing was logged")
    for line in lines:
        head = f"{line.at.astimezone():%H:%M:%S} {line.level:<7} "
        for number, each in enumerate(line.message.split("\n")):
            out(printable((" " * len(head) if number else head) + each))


def _event_line(event: JobEvent) -> str:
    line = f"{datetime.now().astimezone():%H:%M:%S}  {event.state:<9}  attempt {event.attempt}"
    return line if event.progress is None else f"{line}  {_progress(event.progress)}"


def _progress(progress: Any) -> str:
    if progress.total is None:
        text = f"{progress.done:g}"
    else:
        text = f"{progress.done:g} of {progress.total:g} ({progress.percent:.0f}%)"
    return printable(text if progress.message is None else f"{text} {progress.message}")


def _ended(state: State) -> str:
    return {State.FAILED: "failed", State.CANCELLED: "was cancelled", State.EXPIRED: "expired"}.get(
        state, str(state)
    )


def _compact(value: object) -> str:
    return json_module.dumps(plain(value), ensure_ascii=False)


def _at(at: datetime | None) -> str | None:
    if at is None:
        return None
    when = f"{at.astimezone():%Y-%m-%d %H:%M:%S%z}"
    return f"{when} ({ago(at)}{'' if ago(at).startswith('in ') else ' ago'})"
