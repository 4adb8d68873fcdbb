"""What the storms run: a worker, or an enqueuer, on one file, that writes a ledger of its own.

python program.py worker FILE LEDGER LEASE   runs until its stdin is closed
python program.py enqueue FILE COUNT NAME    enqueues one by one, prints how many
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from piecework import Piecework, Run

role, file, *rest = sys.argv[1:]
app = Piecework(f"sqlite:///{file}")
ledger = os.open(rest[0], os.O_APPEND | os.O_CREAT | os.O_WRONLY) if role == "worker" else -1


def note(run: Run, what: str) -> None:
    line = f"{run.id} {run.generation} {run.attempt} {run.fence} {os.getpid()} {what}\n"
    os.write(ledger, line.encode())


@app.handler(max_attempts=30, max_crashes=20)
async def work(run: Run, n: int, ms: int = 0) -> int:
    note(run, "start")
    await asyncio.sleep(ms / 1000)
    note(run, "end")
    return n * n


@app.handler
async def stubborn(run: Run, ms: int) -> str:
    """Notes how it ended: stopped from outside, or by itself."""
    note(run, "start")
    try:
        await asyncio.sleep(ms / 1000)
    except asyncio.CancelledError:
        note(run, f"stopped-{run.stopping}")
        raise
    note(run, "end")
    return "done"


@app.handler
async def block(run: Run, seconds: float) -> str:
    """Holds up its worker's whole event loop."""
    note(run, "start")
    time.sleep(seconds)  # noqa: ASYNC251 - the fault this test is about
    note(run, "end")
    return "done"


async def run_worker(lease: float) -> None:
    loop = asyncio.get_running_loop()
    async with app, app.worker(concurrency=20, lease=lease, shutdown_timeout=5) as worker:
        print("ready", flush=True)  # noqa: T201 - to the test
        await loop.run_in_executor(None, sys.stdin.read)
        refused = worker.settler.refused
    print(f"refused {refused}", flush=True)  # noqa: T201 - to the test


async def enqueue(count: int, name: str) -> None:
    async with app:
        for n in range(count):
            await work.using(unique_key=f"{name}-{n}", unique="forever").enqueue(n)
        print(count, flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    if role == "worker":
        asyncio.run(run_worker(float(rest[1])))
    else:
        asyncio.run(enqueue(int(rest[0]), rest[1]))
