"""Every program in examples/ runs as its user would run it: as a process, from an empty folder."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

SAID = {
    "orders": [
        "stored: tea is available",
        "stored: coffee is scheduled",
        "exec job: 1001 tea (attempt 1)",
        "result: coffee, packed at Harbour Street",
        "too late: ice is expired",
    ],
    "tracking": [
        "completed: step 50 of 50, so far 1275",
        "result: 1275",
        "failed: ValueError: -1 is negative; the partial result is 55",
        "cancelled: it takes too long",
    ],
    "background_tasks": [
        "again: created False, the same job True",
        "High: runs first (group Test)",
        "Low: runs last of what is due (group Test)",
        "Once: runs after 0.5 s (group Test)",
        "no network, attempt 2 of 10",
        "Send sms message: Message from a background task (attempt 3)",
        "in group Test: High, Low, Once, Serial 1, Serial 2, Unique",
    ],
    "email_jobs": [
        "order 1003: send-email-1003 is scheduled",
        "deleted while it waits: False",
        "deleted once cancelled: True",
        "mail to customer@example.com: Reminder, corrected",
        "result: was sent before attempt 2",
        "result: DailySales is written",
        "order 1002, attempt 2: completed, None",
    ],
    "email_queue": [
        "  Task B                               blocked",
        "  log: b@example.com was welcomed",
        "  Task C                               cancelled  not needed any more",
        "  Broken                               failed     ValueError: less than no time",
    ],
}


def run(folder: Path, name: str, *args: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.rstrip() for line in done.stdout.splitlines()]


def in_order(lines: list[str], *wanted: str) -> bool:
    places = [lines.index(line) for line in wanted]
    return places == sorted(places)


def test_every_example_is_run() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert programs == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_an_example_says_what_it_promises_and_a_second_time_on_the_same_file(
    name: str, tmp_path: Path
) -> None:
    for _ in range(2):
        lines = run(tmp_path, name, "--db", "jobs.db")
        assert [line for line in SAID[name] if line not in lines] == []
    assert (tmp_path / "jobs.db").is_file()


def test_high_priority_comes_first_and_low_last_each_announced(tmp_path: Path) -> None:
    lines = run(tmp_path, "background_tasks", "--delay", "1")
    assert in_order(
        lines,
        "High: runs first (group Test)",
        "Serial 1: one (group Test)",
        "Serial 2: at a time (group Test)",
        "Low: runs last of what is due (group Test)",
        "Once: runs after 1 s (group Test)",
    )
    assert lines.count("  before") == lines.count("  after") == 6


def test_one_queue_runs_in_order_and_others_beside_it(tmp_path: Path) -> None:
    """Without --db the jobs of this one are in memory, and no file is left."""
    lines = run(tmp_path, "email_queue")
    assert in_order(lines, "  Task A starts", "  Task A ends", "  Task B starts", "  Task B ends")
    assert in_order(lines, "  Task X starts", "  Task Y starts", "  Task X ends")
    assert "  Task C starts" not in lines
    assert list(tmp_path.iterdir()) == []
