"""What must type-check, in mypy and pyright: every way to write and to enqueue a handler."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type
from uuid import UUID

from piecework import Handle, Piecework, Run, inject

app = Piecework("memory://")


class Mailer:
    async def send(self, to: str) -> None: ...


@dataclass(frozen=True)
class OrderJob:
    order_id: str
    order_name: str


@dataclass(frozen=True)
class SendMail:
    to: str


# ── ways to write a handler ──────────────────────────────────────────────────────────────────


@app.handler(queue="orders", max_attempts=3, timeout=60)
async def ship(args: OrderJob, run: Run) -> int:
    return 42


@app.handler
async def pack(args: OrderJob) -> str:
    return args.order_name


@app.handler
def resize(path: str, width: int = 320) -> str:
    return f"{path}@{width}"


@app.handler(isolate="process", timeout=timedelta(seconds=5))
def crunch(n: int) -> int:
    return n


@app.handler
def weigh(run: Run, path: str, *, tare: float = 0.0) -> float:
    return tare


@app.handler
async def nightly() -> None: ...


@app.handler()
async def beat(run: Run) -> bool:
    return True


@app.handler
async def send(to: str, mailer: Mailer = inject()) -> None:
    await mailer.send(to)


@app.handler
async def bill(args: OrderJob, run: Run, mailer: Mailer = inject()) -> dict[str, int]:
    return {}


@app.handler
def keep(data: object) -> str:
    return str(data)


@app.handler
async def store(key: str, data: Any) -> str:
    return key


def by_day(path: str, day: str) -> str | None:
    return f"{path} {day}"


@app.handler(serial_key=by_day, retry=lambda run, error: None if run.attempt > 3 else 1.5)
def report(path: str, day: str) -> bytes:
    return b""


@app.handler(unique_key=lambda args: args.to, aliases=["OldMail"], metadata={"team": "mail"})
class MailHandler:
    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    async def __call__(self, args: SendMail) -> None:
        await self.mailer.send(args.to)


# ── called as before ─────────────────────────────────────────────────────────────────────────


async def called_as_before(run: Run, mailer: Mailer) -> None:
    assert_type(await ship(OrderJob("1", "tea"), run), int)
    assert_type(await pack(OrderJob("1", "tea")), str)
    assert_type(resize("a.png", width=64), str)
    assert_type(crunch(3), int)
    assert_type(weigh(run, "a.png", tare=0.5), float)
    assert_type(await beat(run), bool)
    await send("a@b.c", mailer)
    await send(to="a@b.c", mailer=mailer)
    assert_type(await bill(OrderJob("1", "tea"), run, mailer), dict[str, int])
    assert_type(keep({"any": "thing"}), str)
    built = MailHandler(mailer)
    await built(SendMail("a@b.c"))


# ── enqueued ─────────────────────────────────────────────────────────────────────────────────


async def enqueued() -> None:
    assert_type(await ship.enqueue(OrderJob("1", "tea")), Handle[int])
    assert_type(await (await ship.enqueue(OrderJob("1", "tea"))).result(timeout=10), int)
    assert_type(await pack.enqueue(OrderJob("1", "tea")), Handle[str])
    assert_type(await resize.enqueue("a.png"), Handle[str])
    assert_type(await resize.enqueue("a.png", width=64), Handle[str])
    assert_type(await resize.enqueue(path="a.png", width=64), Handle[str])
    assert_type(await crunch.enqueue(n=3), Handle[int])
    assert_type(await weigh.enqueue("a.png"), Handle[float])
    assert_type(await weigh.enqueue(path="a.png", tare=1), Handle[float])
    assert_type(await beat.enqueue(), Handle[bool])
    assert_type(await bill.enqueue(OrderJob("1", "tea")), Handle[dict[str, int]])
    assert_type(await report.enqueue("a", "monday"), Handle[bytes])
    await nightly.enqueue()
    await send.enqueue("a@b.c")
    await send.enqueue(to="a@b.c")
    assert_type(await keep.enqueue({"any": "thing"}), Handle[str])
    await store.enqueue("k", data=[1])
    await store.enqueue(key="k", data=[1])


async def enqueued_with_options() -> None:
    later = resize.using(delay=timedelta(minutes=5), serial_key="a.png")
    assert_type(await later.enqueue("a.png", 64), Handle[str])
    await app.enqueue_many(
        [
            OrderJob("1", "tea"),
            resize.prepare("b.png"),
            resize.using(priority=9).prepare("c.png"),
            weigh.prepare("d.png", tare=0.1),
        ]
    )


async def enqueued_by_type() -> None:
    assert_type(await app.enqueue(OrderJob("1", "tea"), delay=30, priority=5), Handle[Any])
    assert_type(await app.enqueue(SendMail("a@b.c")), Handle[Any])


async def followed(job_id: UUID) -> None:
    assert_type(await ship.handle(job_id).result(), int)
    await app.job(job_id).result()
