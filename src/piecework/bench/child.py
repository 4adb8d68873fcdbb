"""A worker in a process of its own: started, asked how it is doing, stopped.

parent ──► python -m piecework.bench.child URL [--count]
parent ◄── "ready"
parent ──► "report"      parent ◄── one line of JSON
parent ──► end of input: the worker drains and the process ends
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from piecework.bench.jobs import CONCURRENCY, Jobs, WentWrong

if TYPE_CHECKING:
    from asyncio.subprocess import Process

__all__ = ["Child", "Report", "main"]

_START: Final = f"import {__name__} as child; child.main()"
_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a worker process is doing. `lateness` is of the jobs since the last report."""

    at: float
    cpu_seconds: float
    resident_mib: float
    transactions: int
    ran: int
    lateness: list[float]


class Child:
    """`async with Child(url) as child: ...`: a worker on that store, ready to work."""

    def __init__(self, url: str, *, count: bool = False) -> None:
        self._args = [url, "--count"] if count else [url]
        self._process: Process

    async def __aenter__(self) -> Self:
        """It is ready."""
        # One line of JSON holds the lateness of every job: more than the usual 64 KiB.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _START, *self._args, stdin=PIPE, stdout=PIPE, limit=1 << 26
        )
        try:
            await self._read()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """It is gone."""
        await self._end()

    async def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def report(self) -> Report:
        """Return how it is doing."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"report\n")
        return Report(**json.loads(await self._read()))

    async def _read(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise WentWrong("a worker process ended by itself; its last words are above")
        return line


class _Counter:
    """Counts the transactions of the SQLite connections of this process."""

    def __init__(self) -> None:
        self.begun = 0
        self._opened: list[sqlite3.Connection] = []

    def listen(self) -> None:
        sys.addaudithook(self._hear)

    def attend(self) -> None:
        """What is open by now is listened to: at its opening a connection is not ready for it."""
        while self._opened:
            self._opened.pop().set_trace_callback(self._note)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "sqlite3.connect/handle":
            self._opened.append(args[0])

    def _note(self, statement: str) -> None:
        self.begun += statement.startswith("BEGIN")


async def _work(url: str, counter: _Counter) -> None:
    jobs = Jobs(url)
    async with jobs.app, jobs.app.worker(concurrency=CONCURRENCY):
        print("ready", flush=True)  # noqa: T201 - the other end of a pipe reads it
        while await asyncio.to_thread(sys.stdin.readline):
            counter.attend()
            late = [*jobs.lateness]
            jobs.lateness.clear()
            report = {
                "at": time.perf_counter(),
                "cpu_seconds": time.process_time(),
                "resident_mib": _resident_mib(),
                "transactions": counter.begun,
                "ran": jobs.ran,
                "lateness": late,
            }
            print(json.dumps(report), flush=True)  # noqa: T201 - as above


def _resident_mib() -> float:
    """Return the process's memory; 0 where nothing tells. On macOS it is the highest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Work until the input ends; in the new process."""
    counter = _Counter()
    if "--count" in sys.argv:
        counter.listen()
    asyncio.run(_work(sys.argv[1], counter))
