"""Handlers for child processes: they must be importable, so they live at the top of a module.

A test registers their functions with an app of its own, through `adopt`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework import Piecework, Retry, Run, Snooze, inject

app = Piecework("memory://")


def adopt(handler: Any, other: Piecework, **options: Any) -> Any:
    """Register the function of a handler of this module with another app."""
    return other.handler(handler.__wrapped__, isolate="process", **options)


@dataclass(frozen=True)
class Task:
    text: str


class Counter:
    def __init__(self) -> None:
        self.pid = os.getpid()


@app.handler(isolate="process")
def pid_of(n: int) -> list[int]:
    return [n, os.getpid()]


@app.handler(isolate="process")
async def pid_async(args: Task, run: Run) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"pid": os.getpid(), "text": args.text, "attempt": run.attempt, "job": str(run.id)}


@app.handler(isolate="process")
def forever(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@app.handler(isolate="process")
def stubborn(mark: str) -> None:
    """Ignore every signal that can be ignored, and hold the interpreter lock as well."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Path(mark).write_text(str(os.getpid()))
    while True:
        sum(range(1_000_000))


@app.handler(isolate="process")
def with_offspring(mark: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(mark).write_text(str(child.pid))
    child.wait()


@app.handler(isolate="process")
def die(how: str) -> None:
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sys.exit":
            sys.exit(4)
        case _:
            raise AssertionError(how)


@app.handler(isolate="process")
def fail(text: str) -> None:
    """The text is escaped, for args hold no lone surrogates, but an error's text may."""
    raise ValueError(text.encode("ascii").decode("unicode_escape"))


@app.handler(isolate="process", retry=Retry(base=0), max_attempts=4)
def by_attempt(run: Run) -> str:
    if run.attempt == 1:
        raise ValueError("first")
    if run.fence == 3:
        raise Snooze(0)
    return "third"


@app.handler(isolate="process")
def reports(run: Run) -> None:
    run.progress(1, 4, "one")  # type: ignore[unused-awaitable]
    run.save({"rows": [1, 2]})  # type: ignore[unused-awaitable]
    run.progress(2, 4, "two")  # type: ignore[unused-awaitable]
    run.log.info("from run.log")
    logging.getLogger("mine").warning("from logging")
    logging.getLogger("mine").debug("not kept")
    print("to stdout, which is not for talking")  # noqa: T201 - that is the point
    sys.stdout.flush()
    raise ValueError("after all that")


@app.handler(isolate="process")
def saves_too_much(size: int, run: Run = inject()) -> str:
    try:
        run.save("x" * size)  # type: ignore[unused-awaitable]
    except ValueError as error:
        return type(error).__name__
    return "saved"


@app.handler(isolate="process")
def reads_stdin() -> str:
    return sys.stdin.read()


@app.handler(isolate="process")
def starts_a_reader() -> str:
    done = subprocess.run(["/bin/cat"], capture_output=True, timeout=5, check=True)
    return done.stdout.decode()


@app.handler(isolate="process")
def leaves_a_thread() -> str:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return "left one"


@app.handler(isolate="process")
def unprintable() -> None:
    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise BadError


@app.handler(isolate="process")
def odd_result() -> Any:
    return object()


class OnlyThere:
    """A service that only the worker's program registers, when it starts."""


@app.handler
async def needs_what_is_only_there(n: int, thing: OnlyThere) -> list[int]:
    return [n, os.getpid()]


@app.handler
async def asks_for_what_is_only_there(n: int, thing: OnlyThere = inject()) -> list[int]:
    return [n, os.getpid()]


app.services.register_factory(Counter, Counter)


@app.handler(isolate="process")
def uses_service(counter: Counter) -> list[int]:
    return [counter.pid, os.getpid()]
