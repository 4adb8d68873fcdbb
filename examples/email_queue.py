"""Queues by name, and injected services: the same name one after another, other names at once.

Run it with `python examples/email_queue.py`. Jobs are in memory and end with the program; with
`--db FILE` the same code keeps them in a SQLite file.
"""

import argparse
import asyncio
import uuid
from datetime import timedelta
from typing import Any

import svcs

from mailroom import EmailSender, JobHandlerService, LogService, Reports
from piecework import Handle, Piecework, Retention


def store() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", metavar="FILE", help="keeps the jobs")
    options = parser.parse_args(None if __name__ == "__main__" else [])
    return f"sqlite:///{options.db}" if options.db else "memory://"


# Jobs may call what is below `mailroom`, and nothing else. Their records go after an hour.
app = Piecework(store(), calls=("mailroom",), retention=Retention(completed=timedelta(hours=1)))


# Each run has a container of its own; what was built in it is closed when the run ends.
def make_handler_service(services: svcs.Container) -> JobHandlerService:
    return JobHandlerService(services.get(EmailSender), services.get(LogService))


app.services.register_factory(EmailSender, EmailSender)
app.services.register_factory(LogService, LogService)
app.services.register_factory(Reports, Reports)
app.services.register_factory(JobHandlerService, make_handler_service)


async def publish() -> list[Handle[Any]]:
    # What a web request would do: name the queue, name the job, say which method to call.
    welcome_a = app.using(queue="EmailQueue", name="Send welcome email to a@example.com")
    welcome_b = app.using(queue="EmailQueue", name="Send welcome email to b@example.com")
    # One at a time and in order: the same queue for all of them.
    task_a = app.using(queue="ReportQueue", name="Task A")
    task_b = app.using(queue="ReportQueue", name="Task B")
    task_c = app.using(queue="ReportQueue", name="Task C")
    # At once: a queue of its own for each.
    task_x = app.using(queue=str(uuid.uuid4()), name="Task X")
    task_y = app.using(queue=str(uuid.uuid4()), name="Task Y")
    # A job that fails is tried again, unless one attempt is all it gets.
    broken = app.using(queue="BrokenQueue", name="Broken", max_attempts=1)
    return [
        await welcome_a.call(EmailSender.send_email, "a@example.com", "Welcome", body="…"),
        await welcome_b.call(JobHandlerService.welcome, "b@example.com"),
        await task_a.call(Reports.export, "Task A"),
        await task_b.call(Reports.export, "Task B"),
        await task_c.call(Reports.export, "Task C"),
        await task_x.call(Reports.export, "Task X"),
        await task_y.call(Reports.export, "Task Y"),
        await broken.call(Reports.export, "Broken", seconds=-1),
    ]


async def show(title: str, handles: list[Handle[Any]]) -> None:
    print(title)
    for job in reversed(await app.find(ids=handles)):
        print(f"  {job.name:<36} {job.state:<10} {job.error or job.reason or ''}")


async def main() -> None:
    async with app:
        handles = await publish()
        await show("queued", handles)

        # Cancelled before its turn came: it never starts, and nobody waits for it.
        await handles[4].cancel(reason="not needed any more")

        print("work")
        async with app.worker(concurrency=8):
            await asyncio.gather(
                *(handle.result(timeout=10) for handle in handles), return_exceptions=True
            )
        await show("in the end", handles)


if __name__ == "__main__":
    asyncio.run(main())
