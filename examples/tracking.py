"""Tracking: enqueue a command, keep its id, follow its progress, fetch its result, cancel it.

Run it with `python examples/tracking.py`; `--db FILE` names the file, else it is tracking.db.
"""

import argparse
import asyncio
from dataclasses import dataclass

from piecework import JobCancelled, JobFailed, Piecework, Run


def store() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="tracking.db", metavar="FILE", help="keeps the jobs")
    return f"sqlite:///{parser.parse_args(None if __name__ == '__main__' else []).db}"


app = Piecework(store())


@dataclass(frozen=True)
class ExampleCommand:
    numbers: list[int]


# Nothing has to be declared for tracking: every job has an id, and every handler may report.
@app.handler
async def add_up(command: ExampleCommand, run: Run) -> int:
    total = 0
    for step, number in enumerate(command.numbers, start=1):
        if number < 0:
            raise ValueError(f"{number} is negative")
        total += number
        await run.progress(step, total=len(command.numbers), message=f"added {number}")
        if step % 10 == 0:
            await run.save(total)  # a partial result: it stays, should the run fail
        await asyncio.sleep(0.02)
    return total


async def follow_to_the_result() -> None:
    handle = await app.enqueue(ExampleCommand([*range(1, 51)]))
    tracking_id = str(handle.id)  # a text to hand out: to a browser, say

    # Later, perhaps in another program: the id is all that is needed.
    job = app.job(tracking_id)
    async for event in job.watch():
        if event.progress:
            done, total = event.progress.done, event.progress.total
            print(f"{event.state}: step {done} of {total}, so far {event.progress.partial}")
    print(f"result: {await job.result(timeout=10)}")


async def see_what_a_failure_leaves() -> None:
    handle = await app.enqueue(ExampleCommand([*range(1, 16), -1]), max_attempts=1)
    try:
        await handle.result(timeout=10)
    except JobFailed as failed:
        progress = await handle.progress()
        partial = progress.partial if progress else None
        print(f"failed: {failed.error}; the partial result is {partial}")


async def cancel_it() -> None:
    handle = await app.enqueue(ExampleCommand([1] * 10_000))
    async for event in handle.watch():
        if event.progress:
            await handle.cancel(reason="it takes too long")
    try:
        await handle.result(timeout=10)
    except JobCancelled as cancelled:
        print(f"cancelled: {cancelled.reason}")


async def main() -> None:
    async with app, app.worker(concurrency=4):
        await follow_to_the_result()
        await see_what_a_failure_leaves()
        await cancel_it()


if __name__ == "__main__":
    asyncio.run(main())
