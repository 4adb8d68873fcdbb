import signal
import subprocess
import sys

import pytest

from piecework import Piecework, State
from tests.cli.conftest import Shell, until, with_app

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

URL = "sqlite:///jobs.db"
APP = """
import asyncio, logging, pathlib, time
from piecework import Piecework, Run
app = Piecework("sqlite:///jobs.db")

@app.handler(queue="mails")
async def slow(run: Run, seconds: float) -> str:
    run.log.info("begun\\nin two lines \\x1b[31m")
    await asyncio.sleep(seconds)
    return "done"

@app.handler
def stuck() -> None:
    logging.getLogger("shop").warning("stuck")
    time.sleep(600)

@app.handler
def quick() -> str:
    return "quick"
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    (shell.folder / "shop.py").write_text(APP)
    return shell


def enqueue(kind: str, **args: object) -> str:
    async def work(app: Piecework) -> str:
        queue = "mails" if kind == "slow" else "default"
        return str((await app.kind(kind).using(queue=queue).enqueue(args)).id)

    job_id: str = with_app(URL, work)
    return job_id


def state(job_id: str) -> tuple[State, int]:
    async def work(app: Piecework) -> tuple[State, int]:
        job = await app.job(job_id).get()
        return job.state, job.attempt

    found: tuple[State, int] = with_app(URL, work)
    return found


def started(shell: Shell, *options: object) -> tuple[subprocess.Popen[str], str]:
    process = shell.start("worker", "shop:app", *options)
    assert process.stdout is not None
    return process, process.stdout.readline()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, err = process.communicate(timeout=25)
    return process.returncode, err.splitlines()


def test_a_worker_says_what_it_does_and_drains_on_sigterm(shop: Shell) -> None:
    process, line = started(shop, "--node", "w1", "--queue", "mails", "--concurrency", "3")
    assert line.startswith(f"worker w1 ({process.pid}) runs slow, stuck, quick from mails, 3 at")
    assert "jobs.db" in line
    job, other = enqueue("slow", seconds=0.5), enqueue("quick")
    until(lambda: state(job)[0] is State.RUNNING)
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == 0
    assert state(job) == (State.COMPLETED, 1)
    assert state(other) == (State.AVAILABLE, 0)  # of another queue
    # One record, one line, and nothing for a terminal to obey.
    assert any(each.endswith(r"piecework.run: begun\nin two lines \x1b[31m") for each in log)
    assert all(each.startswith("2") and each.isprintable() for each in log)
    assert any("SIGTERM: stopping; running jobs (1) have 25 s" in each for each in log)


def test_a_second_signal_releases_at_once_even_what_cannot_be_stopped(shop: Shell) -> None:
    process, _ = started(shop)
    jobs = [enqueue("stuck"), enqueue("slow", seconds=600)]
    until(lambda: all(state(job)[0] is State.RUNNING for job in jobs))
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    until(lambda: "stopping" in process.stderr.readline() if process.stderr else False)
    process.send_signal(signal.SIGINT)
    code, log = ended(process)
    assert code == 0
    assert any("SIGINT again: releasing the running jobs (2)" in each for each in log)
    assert [state(job) for job in jobs] == [(State.AVAILABLE, 0)] * 2


def test_the_deadline_of_a_drain_is_kept(shop: Shell) -> None:
    process, _ = started(shop, "--shutdown-timeout", "0.2", "--log-level", "warning")
    job = enqueue("slow", seconds=600)
    until(lambda: state(job)[0] is State.RUNNING)
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert (code, log) == (0, [])
    assert state(job) == (State.AVAILABLE, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lease", "1", "--beat", "5"], "at most half of lease"),
        (["--queue", ""], "queue is empty"),
        (["--concurrency", "0"], "greater than or equal to 1"),
        (["--log-level", "loud"], "is not one of"),
        (["--poll", "0"], "must be positive"),
    ],
)
def test_settings_that_cannot_be_meant_are_wrong_usage(
    shop: Shell, words: list[str], says: str
) -> None:
    assert says in shop.fails(2, "worker", "shop:app", *words)
