"""What must not type-check: each line is an error for mypy and for pyright, or the check fails."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from piecework import Handle, Piecework, Run, inject

app = Piecework("memory://")


class Mailer: ...


@dataclass(frozen=True)
class OrderJob:
    order_id: str
    order_name: str


@dataclass(frozen=True)
class SendMail:
    to: str


@app.handler(queue="orders")
async def ship(args: OrderJob, run: Run) -> int:
    return 42


@app.handler
def resize(path: str, width: int = 320) -> str:
    return f"{path}@{width}"


@app.handler
def weigh(run: Run, path: str) -> float:
    return 0.0


@app.handler
async def send(to: str, mailer: Mailer = inject()) -> None: ...


@app.handler
class MailHandler:
    def __init__(self, mailer: Mailer) -> None: ...

    async def __call__(self, args: SendMail) -> None: ...


async def wrong_type(run: Run) -> None:
    await ship.enqueue(SendMail("a@b.c"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await resize.enqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await resize.enqueue("a.png", width="64")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await weigh.enqueue(b"a.png")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await send.enqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ship(SendMail("a@b.c"), run)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ship.prepare(SendMail("a@b.c"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize.using(priority=9).prepare(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize.using(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def missing() -> None:
    await ship.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await resize.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await weigh.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await send.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await resize.enqueue(width=64)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ship(OrderJob("1", "tea"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    MailHandler()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def too_much(run: Run) -> None:
    await ship.enqueue(OrderJob("1", "tea"), run)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ship.enqueue(OrderJob("1", "tea"), priority=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await resize.enqueue("a.png", 64, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await resize.enqueue("a.png", height=64)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await weigh.enqueue(run, "a.png")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    await MailHandler.enqueue(SendMail("a@b.c"))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def wrong_result(job_id: UUID) -> list[str]:
    text: str = await (await ship.enqueue(OrderJob("1", "tea"))).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    number: int = await resize.handle(job_id).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    width: int = resize("a.png")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    return [text, str(number), str(width)]


def wrong_handle(job_id: UUID) -> Handle[str]:
    return ship.handle(job_id)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


app.handler(queue=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.handler(isolate="thread")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.handler(timeout="60")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.handler(unknown=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
app.handler(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
