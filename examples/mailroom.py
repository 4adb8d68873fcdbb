"""The services of email_queue.py.

They are in a module of their own because a stored job tells by name what it calls, and what is in
a started script has no name that another process could import.
"""

import asyncio


class EmailSender:
    async def send_email(self, to: str, subject: str, body: str) -> None:
        print(f"  mail to {to}: {subject}")


class LogService:
    def write(self, text: str) -> None:
        print(f"  log: {text}")


class JobHandlerService:
    """The composite service: a job that needs two services calls one that has both."""

    def __init__(self, sender: EmailSender, log: LogService) -> None:
        self.sender = sender
        self.log = log

    async def welcome(self, to: str) -> None:
        await self.sender.send_email(to, "Welcome", "…")
        self.log.write(f"{to} was welcomed")


class Reports:
    async def export(self, task: str, seconds: float = 0.2) -> str:
        if seconds < 0:
            raise ValueError("less than no time")
        print(f"  {task} starts")
        await asyncio.sleep(seconds)
        print(f"  {task} ends")
        return f"{task}.csv"
