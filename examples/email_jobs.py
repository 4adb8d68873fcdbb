"""E-mail jobs: enqueued by the handler's name, found again, moved, replaced, cancelled, deleted.

Run it with `python examples/email_jobs.py`; `--db FILE` names the file, else it is email_jobs.db.
"""

import argparse
import asyncio
from typing import Any

from pydantic import BaseModel

from piecework import Handle, Piecework, Retry, Run, State


def store() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="email_jobs.db", metavar="FILE", help="keeps the jobs")
    return f"sqlite:///{parser.parse_args(None if __name__ == '__main__' else []).db}"


app = Piecework(store())

ACTIVE = [State.SCHEDULED, State.BLOCKED, State.AVAILABLE, State.RUNNING]


# Args may be a pydantic model, with all that it can check.
class SendEmailArgs(BaseModel):
    to: str
    subject: str
    body: str


class EmailService:
    """Stands for a service that sends mail, and knows what it has sent by the caller's key."""

    def __init__(self) -> None:
        self.sent: set[str] = set()

    async def send(self, key: str, args: SendEmailArgs) -> None:
        self.sent.add(key)
        print(f"mail to {args.to}: {args.subject}")


app.services.register_value(EmailService, EmailService())


@app.handler(kind="SendEmail", retry=Retry(delays=[0.1]))
class SendEmailHandler:
    def __init__(self, email: EmailService) -> None:
        self.email = email

    async def __call__(self, args: SendEmailArgs, run: Run) -> str:
        # A job may run twice, as when its worker dies between the mail and the record of it. Id
        # and generation stay the same at each attempt: a key by which the receiver knows.
        key = f"{run.id}/{run.generation}"
        if key in self.email.sent:
            return f"was sent before attempt {run.attempt}"
        await self.email.send(key, args)
        if run.metadata.get("OrderId") == "1002":
            raise ConnectionError("the line dropped just after the mail went out")
        return "sent"


@app.handler(kind="GenerateReport")
async def generate_report(report_type: str) -> str:
    return f"{report_type} is written"


async def enqueue_email(
    order_id: str, subject: str, *, delay: float = 0, replace: bool = False
) -> Handle[Any]:
    job = app.kind("SendEmail").using(
        name=f"send-email-{order_id}",  # to be shown
        unique_key=f"order-{order_id}",  # one live mail for each order
        metadata={"Domain": "Orders", "OrderId": order_id},  # to be found by
        delay=delay,
        on_duplicate="replace" if replace else "existing",
    )
    return await job.enqueue(
        {"to": "customer@example.com", "subject": subject, "body": "Your order has been placed."}
    )


async def main() -> None:
    async with app:
        placed = await enqueue_email("1001", "Order Confirmation")
        flaky = await enqueue_email("1002", "Order Confirmation")
        tomorrow = await enqueue_email("1003", "Reminder", delay=86_400)
        never = await enqueue_email("1004", "Newsletter", delay=86_400)
        report = await app.kind("GenerateReport").enqueue({"report_type": "DailySales"})

        # Find jobs by state, by handler, by metadata.
        print(f"active: {[job.name or job.kind for job in await app.find(state=ACTIVE)]}")
        print(f"reports: {len(await app.find(kind='GenerateReport', state=ACTIVE))}")
        (found,) = await app.find(metadata={"OrderId": "1003"}, state=ACTIVE)
        print(f"order 1003: {found.name} is {found.state}")

        # Update: another time, or other args while it has not started.
        await tomorrow.reschedule(delay=0.1)
        await enqueue_email("1003", "Reminder, corrected", delay=0.1, replace=True)

        # Cancel what shall not happen, then delete its record. A live job cannot be deleted.
        print(f"deleted while it waits: {await never.delete()}")
        await never.cancel(reason="unsubscribed")
        print(f"deleted once cancelled: {await never.delete()}")

        async with app.worker():
            for handle in (placed, flaky, tomorrow, report):
                print(f"result: {await handle.result(timeout=10)}")

        for attempt in await flaky.attempts():
            print(f"order 1002, attempt {attempt.number}: {attempt.outcome}, {attempt.error}")


if __name__ == "__main__":
    asyncio.run(main())
