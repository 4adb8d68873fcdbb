"""`piecework demo`: every file below a folder becomes a job; killed and run again, it goes on.

The jobs stay in the database, each under a unique key made of path, size and times: the same
command again enqueues only what is new or has changed. The jobs of one PATH are one queue.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote
from uuid import UUID

import typer

from piecework import Handle, Piecework, Retention, Run, State
from piecework.cli import logs
from piecework.cli.errors import WrongUsage
from piecework.cli.files import Found, Sums, Trouble, decode_path, encode_path, scan, sum_up
from piecework.cli.meter import Meter, Tally, make_meter
from piecework.cli.show import json_out, out, printable, say
from piecework.cli.signals import Stopper, stopper
from piecework.cli.summary import SHOWN_FAILURES, Summary
from piecework.core.job import FINAL, LIVE

if TYPE_CHECKING:
    import signal

    from piecework import JobView
    from piecework.engine.worker import Worker

__all__ = ["command"]

KIND: Final = "demo.file"
LEASE_SECONDS: Final = 5
BATCH: Final = 1_000
PAGE: Final = 500
POLL_SECONDS: Final = (0.05, 0.5)
KEPT: Final = Retention(completed=None, failed=None, cancelled=None, expired=None)


def command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", show_default=False, help="A folder, or a file.")
    ],
    *,
    db: Annotated[
        str, typer.Option(metavar="FILE", help="The SQLite file that keeps the jobs.")
    ] = "piecework-demo.db",
    concurrency: Annotated[int, typer.Option(min=1, max=1_000, help="Files at once.")] = 8,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON document.")
    ] = False,
) -> None:
    """Sum up every file below PATH, each as a job: SHA-256, bytes, lines, words.

    Stop it, or kill it, and run the same command again: it goes on where it stopped. A file that
    cannot be read fails alone and is listed at the end; the exit code is 0 all the same. Ctrl-C
    lets running jobs finish (a second one does not) and ends with exit code 130.
    """
    root = os.path.realpath(path)
    if not os.path.exists(root):
        raise WrongUsage(f"there is no {path!r}: name a folder, or a file")
    if not (os.path.isdir(root) or os.path.isfile(root)):
        raise WrongUsage(f"{path!r} is neither a folder nor a regular file")
    if "://" in db or db.startswith("sqlite:"):
        raise WrongUsage(f"--db {db!r}: give the name of a file, such as piecework-demo.db")
    logs.configure("WARNING")
    demo = Demo(root, os.path.realpath(db))
    code, summary = asyncio.run(demo.run(concurrency, SHOWN_FAILURES if not json else None))
    if summary is None:
        left = "" if code else ""
        say(f"stopped{left}; the same command goes on from there")
        raise typer.Exit(code)
    if json:
        json_out({**summary.plain(), "db": encode_path(demo.file), "run_now": demo.created})
        return
    summary.print()
    out(f"\nEach file's sums: piecework jobs list sqlite:///{printable(quote(db))} --json")
