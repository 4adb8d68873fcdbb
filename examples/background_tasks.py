"""Background tasks: once, now or later, with a priority, attempts, a group, a lock.

Run it with `python examples/background_tasks.py`. `--db FILE` names the file, else it is
background_tasks.db; `--delay SECONDS` is how long "later" is, 10 in real life and 0.5 here.
"""

import argparse
import asyncio
import functools
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ParamSpec, TypeVar

from piecework import Handle, Piecework, Retry, Run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--db", default="background_tasks.db", metavar="FILE", help="keeps the jobs")
parser.add_argument("--delay", default=0.5, type=float, metavar="SECONDS", help="instead of 10 s")
options = parser.parse_args(None if __name__ == "__main__" else [])

app = Piecework(f"sqlite:///{options.db}")


class Priority(IntEnum):
    """A priority is an integer: the higher one runs first, 0 is the default."""

    LOW = -10
    HIGH = 10


P = ParamSpec("P")
R = TypeVar("R")


def announced(work: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Before and after each run: an ordinary decorator, below @app.handler."""

    @functools.wraps(work)
    async def around(*args: P.args, **kwargs: P.kwargs) -> R:
        print("  before")
        try:
            return await work(*args, **kwargs)
        finally:
            print("  after")

    return around


# A kind with a name of its own can be enqueued by that name, with a dict for its args, also by a
# program that does not have this code.
@app.handler(kind="ConsoleJob")
@announced
async def console(run: Run, text: str) -> None:
    print(f"{run.name}: {text} (group {run.metadata['group']})")


@dataclass(frozen=True)
class SmsJobArgs:
    phone_number: str
    message: str


# The type of the args says which handler is meant. This one fails twice before it succeeds; what
# waits between two attempts is stored, and survives a restart.
@app.handler(max_attempts=10, retry=Retry(delays=[0.1, 0.2]))
class SmsJob:
    async def __call__(self, args: SmsJobArgs, run: Run) -> None:
        if run.attempt < 3:
            print(f"no network, attempt {run.attempt} of {run.max_attempts}")
            raise ConnectionError("no network")
        print(f"Send sms message: {args.message} (attempt {run.attempt})")


async def enqueue_tasks() -> list[Handle[Any]]:
    # One-time tasks by name, with a group, a description and an id of our own.
    console_job = app.kind("ConsoleJob").using(
        metadata={"group": "Test", "description": "Test-Console"}, max_attempts=10
    )
    low = console_job.using(name="Low", priority=Priority.LOW, id=uuid.uuid4())
    high = console_job.using(name="High", priority=Priority.HIGH)
    once = console_job.using(name="Once", delay=options.delay)
    handles = [
        await low.enqueue({"text": "runs last of what is due"}),
        await high.enqueue({"text": "runs first"}),
        await once.enqueue({"text": f"runs after {options.delay:g} s"}),
    ]

    # A task with args of a type of their own.
    sms = SmsJobArgs("13800138000", "Message from a background task")
    handles.append(await app.enqueue(sms, priority=Priority.HIGH, delay=options.delay))

    # A lock. With a unique key the second enqueue gets the first one's job; with a serial key
    # both run, one after the other.
    unique = console_job.using(name="Unique", unique_key="lock")
    first, again = await unique.enqueue({"text": "one"}), await unique.enqueue({"text": "one"})
    print(f"again: created {again.created}, the same job {again.id == first.id}")
    serial = console_job.using(serial_key="lock")
    handles += [
        first,
        await serial.using(name="Serial 1").enqueue({"text": "one"}),
        await serial.using(name="Serial 2").enqueue({"text": "at a time"}),
    ]
    return handles


async def main() -> None:
    async with app:
        handles = await enqueue_tasks()
        async with app.worker(concurrency=1):
            await asyncio.gather(*(handle.result(timeout=30) for handle in handles))
        tasks = await app.find(ids=handles, metadata={"group": "Test"})
        print(f"in group Test: {', '.join(sorted(str(task.name) for task in tasks))}")


if __name__ == "__main__":
    asyncio.run(main())
