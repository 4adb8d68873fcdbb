"""Real processes on one SQLite file, killed and frozen, against a ledger kept outside the store."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from piecework import Attempt, JobView, Piecework, State
from tests.helpers import until

PROGRAM = Path(__file__).with_name("program.py")


@dataclass
class Fleet:
    """Workers in processes of their own, and what they wrote down."""

    folder: Path
    lease: float = 1.0
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "jobs.db"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def start(self) -> subprocess.Popen[str]:
        arguments = ["worker", str(self.file), str(self.ledger), str(self.lease)]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments], stdin=pipe, stdout=pipe, text=True
        )
        self.workers.append(worker)
        return worker

    def ready(self, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"

    def stop(self, worker: subprocess.Popen[str]) -> str:
        """Let it drain; return the last line it said."""
        self.workers.remove(worker)
        out, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0
        return out.strip().splitlines()[-1]

    def kill(self, worker: subprocess.Popen[str]) -> None:
        self.workers.remove(worker)
        worker.kill()
        worker.communicate()

    def lines(self) -> list[tuple[str, ...]]:
        return [tuple(line.split()) for line in self.ledger.read_text().splitlines()]

    def close(self) -> None:
        for worker in list(self.workers):
            os.kill(worker.pid, signal.SIGCONT)
            self.kill(worker)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


async def ended(app: Piecework, count: int, seconds: float) -> None:
    """Return when so many jobs are final."""
    deadline = time.monotonic() + seconds
    while True:
        counts = await app.count()
        final = sum(n for (_, s), n in counts.items() if s in {State.COMPLETED, State.FAILED})
        if final == count:
            return
        assert time.monotonic() < deadline, counts
        await asyncio.sleep(0.05)


async def every(app: Piecework) -> list[JobView]:
    return await app.find(limit=100_000)


def check_story(job: JobView, attempts: list[Attempt], starts: int) -> None:
    """What the store tells of a job agrees with itself, and with how often its handler began."""
    outcomes = Counter(attempt.outcome for attempt in attempts)
    assert job.state is State.COMPLETED, job
    assert outcomes["completed"] == 1
    assert outcomes["crashed"] == job.crashes
    assert job.attempt == job.crashes + 1 == len(attempts)
    assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
    # A claim that died before its handler began is charged, too: fewer starts, never more.
    assert 1 <= starts <= job.attempt


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("count", "kills"), [(400, 5), pytest.param(5_000, 10, marks=pytest.mark.slow)]
)
async def test_a_worker_killed_again_and_again_loses_nothing(
    fleet: Fleet, count: int, kills: int
) -> None:
    """F01, F02, F03: every job ends, its outcome is recorded once, attempts and crashes add up."""
    chance = random.Random(count)
    app = Piecework(f"sqlite:///{fleet.file}")
    await app.enqueue_many(
        [app.kind("work").prepare({"n": n, "ms": chance.randrange(40)}) for n in range(count)]
    )
    for _ in range(kills):
        worker = fleet.start()
        fleet.ready(worker)
        before = len(fleet.lines())
        pause = chance.randrange(10, 2 * count // kills)
        await until(partial(has_written, fleet, before + pause, count))
        fleet.kill(worker)
    last = fleet.start()
    await ended(app, count, 60)
    fleet.stop(last)
    starts = Counter(line[0] for line in fleet.lines() if line[5] == "start")
    jobs = await every(app)
    assert len(jobs) == count
    for job in jobs:
        check_story(job, await app.job(job.id).attempts(), starts[str(job.id)])
        assert job.result == job.args["n"] ** 2
    assert sum(job.crashes for job in jobs) > 0, "no kill hit a running job: the storm was calm"
    await app.close()


def has_written(fleet: Fleet, lines: int, count: int) -> bool:
    """Whether there are more lines than that, or every job has ended once."""
    if len(fleet.lines()) > lines:
        return True
    return len({line[0] for line in fleet.lines() if line[5] == "end"}) == count


@pytest.mark.timeout(60)
async def test_a_frozen_worker_changes_nothing_when_it_comes_back(fleet: Fleet) -> None:
    """F04, T-FENCE-1: its late write is refused and counted, and its handler is stopped."""
    app = Piecework(f"sqlite:///{fleet.file}")
    long = await app.kind("stubborn").enqueue({"ms": 60_000})
    # It blocks its worker's loop, so that nobody can tell it to stop before it has ended.
    handle = await app.kind("block").enqueue({"seconds": 0.5})
    frozen = fleet.start()
    await until(lambda: fleet.ledger.exists() and len(fleet.lines()) == 2)
    os.kill(frozen.pid, signal.SIGSTOP)
    other = fleet.start()
    assert await handle.result(timeout=20) == "done"
    story = await handle.attempts()
    view = await handle.get()
    assert [attempt.outcome for attempt in story] == ["crashed", "completed"]
    fleet.ready(frozen)
    os.kill(frozen.pid, signal.SIGCONT)
    # What it finishes late is refused; what still runs is stopped, because the job is another's.
    await until(lambda: any(line[5] == "stopped-lost" for line in mine(fleet, frozen)))
    assert await long.cancel()
    assert fleet.stop(frozen) == "refused 1"
    assert await handle.get() == view
    assert await handle.attempts() == story
    fleet.stop(other)
    await app.close()


def mine(fleet: Fleet, worker: subprocess.Popen[str]) -> list[tuple[str, ...]]:
    return [line for line in fleet.lines() if line[4] == str(worker.pid)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("each", [50, pytest.param(2_000, marks=pytest.mark.slow)])
async def test_four_workers_and_eight_enqueuers_share_a_file(fleet: Fleet, each: int) -> None:
    """F29: no error reaches anyone, and without a crash no job runs twice."""
    fleet.lease = 30
    app = Piecework(f"sqlite:///{fleet.file}")
    for _ in range(4):
        fleet.start()
    enqueuers = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), "enqueue", str(fleet.file), str(each), f"e{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for enqueuer in enqueuers:
        out, errors = await asyncio.to_thread(enqueuer.communicate, timeout=100)
        assert (enqueuer.returncode, out, errors) == (0, f"{each}\n", "")
    await ended(app, 8 * each, 60)
    for worker in list(fleet.workers):
        assert fleet.stop(worker) == "refused 0"
    runs: dict[str, int] = defaultdict(int)
    for line in fleet.lines():
        runs[line[0]] += line[5] == "start"
    assert set(runs.values()) == {1}
    assert len(runs) == 8 * each
    workers = {line[4] for line in fleet.lines()}
    assert len(workers) > 1, "one worker did it all: nothing was shared"
    await app.close()


@pytest.mark.timeout(60)
async def test_a_handler_that_blocks_the_loop_keeps_its_lease(fleet: Fleet) -> None:
    """F06: beats have a thread of their own; nobody takes the job over, and it ends once."""
    fleet.lease = 0.5
    app = Piecework(f"sqlite:///{fleet.file}")
    handle = await app.kind("block").enqueue({"seconds": 2.0})
    for _ in range(2):
        fleet.start()
    assert await handle.result(timeout=20) == "done"
    assert [attempt.outcome for attempt in await handle.attempts()] == ["completed"]
    assert [line[5] for line in fleet.lines()] == ["start", "end"]
    await app.close()
