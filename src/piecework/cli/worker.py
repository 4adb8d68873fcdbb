"""`piecework worker`: run an app's jobs in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from piecework.cli import logs
from piecework.cli.errors import WrongUsage, usage
from piecework.cli.show import out, printable
from piecework.cli.signals import stopper
from piecework.cli.targets import is_url, load

if TYPE_CHECKING:
    import signal

    from piecework import Piecework
    from piecework.engine.worker import Worker

__all__ = ["command"]

_log: Final = logging.getLogger("piecework.worker")


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:ATTR",
            envvar="PIECEWORK_TARGET",
            show_default=False,
            help="Where the app is, such as app:app; the current folder is looked in first.",
        ),
    ],
    *,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default="every queue", help="Only this queue; repeatable."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Jobs at once.")] = 50,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="the host's name")
    ] = None,
    lease: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="After so long without a beat, others take the jobs over."
        ),
    ] = 30,
    beat: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            show_default="5, at most a sixth of the lease",
            help="How often the worker says that it lives.",
        ),
    ] = None,
    poll: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often it looks for jobs without a hint.")
    ] = 1,
    shutdown_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long running jobs may go on when it stops."),
    ] = 25,
    log_level: Annotated[
        logs.Level, typer.Option(case_sensitive=False, help="From which level on to log.")
    ] = "INFO",
) -> None:
    """Run an app's jobs. SIGTERM or Ctrl-C drains; a second one releases what runs at once."""
    if is_url(target):
        raise WrongUsage(
            f"{target} has no handlers: name the app that has them, module:attr, such as app:app"
        )
    logs.configure(log_level)
    app = load(target)
    with usage():
        worker = app.make_worker(
            queues=queue or None,
            concurrency=concurrency,
            node=node,
            lease=lease,
            beat=beat,
            poll=poll,
            shutdown_timeout=shutdown_timeout,
        )
    asyncio.run(_work(app, worker))


async def _work(app: Piecework, worker: Worker) -> None:
    def told(received: signal.Signals, count: int) -> None:
        seconds = worker.settings.shutdown_timeout.total_seconds()
        if count == 1:
            if not worker.busy:
                _log.info("%s: stopping", received.name)
                return
            _log.info(
                "%s: stopping; running jobs (%d) have %g s, a second signal releases them at once",
                received.name,
                worker.busy,
                seconds,
            )
        elif count == 2:
            _log.warning("%s again: releasing the running jobs (%d)", received.name, worker.busy)

    async with app:
        with stopper(told) as stop:
            app.sync.forbid_here()
            await worker.start()
            out(_start_line(app, worker))
            sys.stdout.flush()
            if not app.kinds:
                _log.warning("this app has no handlers: every job will be parked")
            await stop.asked.wait()
            await worker.stop(now=stop.now)
            await worker.abandon()
            app.sync.allow_here()
            _log.info("stopped")


def _start_line(app: Piecework, worker: Worker) -> str:
    settings = worker.settings
    store = repr(app).removeprefix("<Piecework ").removesuffix(">")
    queues = "every queue" if settings.queues is None else ", ".join(settings.queues)
    return printable(
        f"worker {settings.node} ({os.getpid()}) runs {', '.join(app.kinds) or 'no kinds'} "
        f"from {queues}, {settings.concurrency} at once, on {store}"
    )
