"""Apps in several processes and several apps on one file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from piecework import Piecework, State
from tests.helpers import until_state

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run(program: str, *args: str) -> str:
    """Run a program of its own and return what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            textwrap.dedent(program),
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ── two apps, one file ───────────────────────────────────────────────────────────────────────


async def test_two_apps_on_one_file_see_each_others_jobs(sqlite_url: str) -> None:
    async with Piecework(sqlite_url) as one, Piecework(sqlite_url) as two:

        @one.handler
        async def note(text: str) -> str:
            return text

        here = await one.enqueue(note.prepare("a"))
        there = await two.kind("note").using(unique_key="k").enqueue({"text": "b"})
        again = await one.enqueue(note.using(unique_key="k").prepare("b"))
        assert (again.id, again.created) == (there.id, False)
        assert (await two.job(here.id).get()).args == {"text": "a"}
        assert await one.count() == await two.count() == {("default", State.AVAILABLE): 2}
        await two.queues.pause("default")
        await one.run_until_idle()
        assert (await here.get()).state is State.AVAILABLE
        await one.queues.resume("default")
        await one.run_until_idle()
        assert await two.job(here.id).result(timeout=5) == "a"
        assert await there.result(timeout=5) == "b"
        assert await two.job(here.id).delete()
        assert [view.id for view in await one.find()] == [there.id]


async def test_a_worker_is_woken_by_another_app_on_the_file(sqlite_url: str) -> None:
    """It polls only every ten minutes here."""
    async with Piecework(sqlite_url) as one, Piecework(sqlite_url) as two:

        @one.handler
        async def note(text: str) -> str:
            return text

        async with one.worker(poll=600):
            handle = await two.kind("note").enqueue({"text": "a"})
            assert await handle.result(timeout=10) == "a"
            assert [node.pid for node in await two.nodes()] == [os.getpid()]


async def test_a_running_job_is_cancelled_by_another_app_on_the_file(sqlite_url: str) -> None:
    async with Piecework(sqlite_url) as one, Piecework(sqlite_url) as two:

        @one.handler
        async def slow() -> None:
            await asyncio.Event().wait()

        async with one.worker(beat=0.1):
            handle = await slow.enqueue()
            await until_state(handle, "running")
            assert await two.job(handle.id).cancel("from outside")
            view = await until_state(handle, "cancelled")
    assert view.reason == "from outside"


async def test_namespaces_on_one_file_do_not_meet(sqlite_url: str) -> None:
    async with Piecework(sqlite_url) as one, Piecework(sqlite_url, namespace="other") as two:
        await one.kind("a").enqueue({})
        assert await two.find() == []
        await two.kind("b").enqueue({})
        assert [view.kind for view in await one.find()] == ["a"]
        assert [view.kind for view in await two.find()] == ["b"]


# ── close and use again ──────────────────────────────────────────────────────────────────────


async def test_an_app_that_was_closed_opens_again_at_the_next_use(app: Piecework) -> None:
    @app.handler
    async def note() -> int:
        return 1

    handle = await note.enqueue()
    await app.close()
    await app.close()
    await app.run_until_idle()
    assert await handle.result(timeout=5) == 1
    await app.close()
    assert (await handle.get()).state is State.COMPLETED
    async with app:
        assert await app.count() == {("default", State.COMPLETED): 1}


def test_one_app_serves_one_event_loop_after_the_other(url: str) -> None:
    app = Piecework(url)

    @app.handler
    async def note(n: int) -> int:
        return n

    async def main(n: int) -> Any:
        handle = await note.enqueue(n)
        waiting = asyncio.create_task(handle.result(timeout=10))
        await asyncio.sleep(0)
        await app.run_until_idle()
        return await waiting

    assert [asyncio.run(main(n)) for n in range(3)] == [0, 1, 2]
    assert app.sync.count() == {("default", State.COMPLETED): 3}
    assert len(app._client._followers) <= 2
    app.sync.close()


# ── fork ─────────────────────────────────────────────────────────────────────────────────────

FORK_ASYNC = """
import asyncio, os, sys
from piecework import Piecework

app = Piecework(sys.argv[1])

@app.handler(kind="note")
async def note(who: str) -> str:
    return who

async def enqueue(who):
    handle = await note.enqueue(who)
    await handle.get()
    return str(handle.id)

asyncio.run(enqueue("before"))
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(enqueue("child"))
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
asyncio.run(enqueue("parent"))

async def finish():
    await app.run_until_idle()
    views = await app.find()
    print(sorted(view.result for view in views))
    await app.close()

asyncio.run(finish())
"""

FORK_SYNC = """
import os, sys
from piecework import Piecework

app = Piecework(sys.argv[1])

@app.handler(kind="note")
def note(who: str) -> str:
    return who

app.sync.enqueue(note.prepare("before"))
children = []
for name in ("one", "two"):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            handle = app.sync.enqueue(note.prepare(name))
            assert handle.get().args == {"who": name}
            app.sync.close()
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
app.sync.enqueue(note.prepare("parent"))
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
app.sync.run_until_idle()
print(sorted(view.result for view in app.sync.find()))
app.sync.close()
"""


@needs_fork
def test_a_fork_after_open_leaves_both_processes_with_connections_of_their_own(
    sqlite_url: str,
) -> None:
    assert run(FORK_ASYNC, sqlite_url).strip() == "['before', 'child', 'parent']"


@needs_fork
def test_a_fork_after_use_of_the_twin_leaves_it_working_in_all_processes(sqlite_url: str) -> None:
    assert run(FORK_SYNC, sqlite_url).strip() == "['before', 'one', 'parent', 'two']"


@needs_fork
def test_a_forked_child_has_its_own_copy_of_a_memory_store() -> None:
    assert run(FORK_SYNC, "memory://").strip() == "['before', 'parent']"


# ── processes ────────────────────────────────────────────────────────────────────────────────


async def test_a_job_of_another_process_is_followed_here(sqlite_url: str, tmp_path: Path) -> None:
    program = """
        import sys
        from piecework import Piecework
        app = Piecework(sys.argv[1])
        handle = app.sync.kind("note").enqueue({"text": "from afar"})
        print(handle.id)
        print(handle.result(timeout=15))
        app.sync.close()
    """
    async with Piecework(sqlite_url) as app:

        @app.handler
        async def note(text: str) -> str:
            return text

        async with app.worker(poll=600):
            out = await asyncio.to_thread(run, program, sqlite_url)
        job_id, result = out.split("\n", 1)
        assert result.strip() == "from afar"
        assert (await app.job(job_id).get()).state is State.COMPLETED
