"""Closing an app ends what it started, whoever waited for what, and wherever it was used."""

import asyncio
from pathlib import Path

import pytest

from piecework import Piecework
from piecework.client.follow import Follower
from piecework.stores.memory import MemoryStore
from piecework.testing import new_job


async def noop() -> None: ...


async def test_an_app_whose_sync_twin_was_used_closes_on_an_event_loop(tmp_path: Path) -> None:
    """The twin's loop was once run on the calling thread, which has a running loop of its own."""
    app = Piecework(f"sqlite:///{tmp_path / 'jobs.db'}")
    handler = app.handler(noop)
    await asyncio.to_thread(app.sync.enqueue, handler.prepare())
    await app.close()


@pytest.mark.timeout(5)
@pytest.mark.parametrize("turns", range(8))
async def test_a_hint_that_meets_the_close_does_not_keep_the_follower(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 swallows a cancellation that comes with its answer."""
    store, job = MemoryStore(), new_job()
    await store.insert([job])
    follower = Follower(store, store)
    await follower.wait(job.id, lambda _: True)
    follower._hinted.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    await follower.close()
