"""Orders: a job, its handler class, and a SQLite file that keeps what is to be done.

Run it with `python examples/orders.py`; `--db FILE` names the file, else it is orders.db.
"""

import argparse
import asyncio
from dataclasses import dataclass
from datetime import timedelta

from piecework import Piecework, Retention, Retry, Run


def store() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="orders.db", metavar="FILE", help="keeps the jobs")
    return f"sqlite:///{parser.parse_args(None if __name__ == '__main__' else []).db}"


# The app is the one object to know. It opens nothing before its first use. Finished orders stay
# for a day, then a worker removes them.
app = Piecework(store(), retention=Retention(completed=timedelta(days=1)))


# The job is plain data: it is stored as JSON, and checked against these types on both ways.
@dataclass(frozen=True)
class OrderJob:
    order_id: str
    order_name: str


# A service. Whoever asks for a Shop gets what is registered for it.
class Shop:
    def __init__(self, place: str) -> None:
        self.place = place

    async def pack(self, what: str) -> str:
        await asyncio.sleep(0.2)
        return f"{what}, packed at {self.place}"


app.services.register_value(Shop, Shop("Harbour Street"))


# The handler is built anew for each run: the constructor gets services, the call gets the job.
# It has three attempts, a minute apart, and belongs to the queue "orders".
@app.handler(queue="orders", max_attempts=3, retry=Retry(delays=[60], jitter=False))
class OrderJobHandler:
    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def __call__(self, job: OrderJob, run: Run) -> str:
        parcel = await self.shop.pack(job.order_name)
        print(f"exec job: {job.order_id} {job.order_name} (attempt {run.attempt})")
        return parcel


async def main() -> None:
    async with app:
        # The type of the job says which handler it is for. Once enqueue returns, the order is on
        # the disk, and no crash of this program loses it.
        tea = await app.enqueue(OrderJob("1001", "tea"))
        coffee = await app.enqueue(OrderJob("1002", "coffee"), delay=0.5)
        ice = await app.enqueue(OrderJob("1003", "ice"), expires_in=0.1)
        for handle in (tea, coffee, ice):
            job = await handle.get()
            print(f"stored: {job.args['order_name']} is {job.state}")

    # The app is closed here, as at the end of a program. What is stored waits in the file.
    await asyncio.sleep(0.2)

    # A worker inside this program; `piecework worker orders:app` starts one of its own.
    async with app, app.worker(queues=["orders"], concurrency=10):
        print(f"result: {await tea.result(timeout=10)}")
        print(f"result: {await coffee.result(timeout=10)}")
        print(f"too late: ice is {(await ice.get()).state}")


if __name__ == "__main__":
    asyncio.run(main())
