"""Jobs that kill the process they run in, and children whose worker is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from piecework import Piecework, State
from tests.helpers import until, until_state

PROGRAM = Path(__file__).with_name("poison.py")
Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROGRAM), str(tmp_path / "jobs.db"), str(tmp_path)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.kill()
        worker.communicate()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "code", "why"),
    [
        ("segv", -signal.SIGSEGV, "its process was killed by SIGSEGV"),
        ("exit", 7, "its process exited with code 7"),
    ],
)
async def test_poison_kills_one_worker_once_and_is_buried_by_the_next(
    start: Start, sqlite_app: Piecework, tmp_path: Path, how: str, code: int, why: str
) -> None:
    """F09: after the first crash it runs in a process of its own, and nobody else is harmed."""
    poison = await sqlite_app.kind("die").enqueue({"how": how})
    victim = start()
    assert await until(lambda: victim.poll() is not None)
    assert victim.returncode == code
    assert (await poison.get()).state is State.RUNNING, "nobody knows yet"
    survivor = start()
    others = [await sqlite_app.kind("work").enqueue({"n": n}) for n in range(20)]
    for n, other in enumerate(others):
        assert await other.result(timeout=20) == n
    view = await until_state(poison, "failed", seconds=30)
    assert (view.crashes, view.attempt) == (3, 3)
    assert view.reason == f"crashed its worker 3 times: {why}"
    assert survivor.poll() is None, "it lives"
    deaths = (tmp_path / "deaths").read_text().split()
    assert len(deaths) == len(set(deaths)) == 3
    assert deaths[0] == str(victim.pid)
    assert str(survivor.pid) not in deaths
    for other in others:
        assert (await other.get()).crashes == 0


@pytest.mark.timeout(60)
async def test_a_child_goes_with_its_killed_worker(
    start: Start, sqlite_app: Piecework, tmp_path: Path
) -> None:
    """F08: what nobody can stop or record any more must not run on."""
    handle = await sqlite_app.kind("spin").enqueue()
    worker = start()
    spinning = tmp_path / "spinning"
    pid = int(await until(lambda: spinning.exists() and spinning.read_text()))
    assert psutil.pid_exists(pid)
    worker.kill()
    worker.communicate()
    await until(lambda: not psutil.pid_exists(pid))
    assert await handle.cancel()
    start()

    assert (await until_state(handle, "cancelled")).crashes == 1
