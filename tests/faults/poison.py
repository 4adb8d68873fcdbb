"""A worker whose handlers kill it: python poison.py FILE FOLDER, until its stdin is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from piecework import Piecework

file, folder = sys.argv[1:]
app = Piecework(f"sqlite:///{file}")


@app.handler(max_crashes=3)
def die(how: str) -> None:
    with (Path(folder) / "deaths").open("a") as deaths:
        deaths.write(f"{os.getpid()}\n")
    match how:
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


@app.handler(isolate="process")
def spin() -> None:
    (Path(folder) / "spinning").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@app.handler
async def work(n: int) -> int:
    await asyncio.sleep(0.001)
    return n


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with app, app.worker(concurrency=4, lease=1, shutdown_timeout=0):
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
