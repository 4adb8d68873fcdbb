import json

import pytest

from piecework import Piecework
from tests.cli.conftest import Shell, with_app

URL = "sqlite:///jobs.db"


@pytest.fixture(autouse=True)
def one_job(shell: Shell) -> None:
    async def work(app: Piecework) -> None:
        await app.kind("mail").using(queue="mails").enqueue({})

    with_app(URL, work)


def queue(shell: Shell, name: str) -> dict[str, object]:
    found = json.loads(shell.run("queues", "list", URL, "--json").stdout)
    (one,) = [each for each in found if each["name"] == name]
    del one["oldest"]
    return dict(one)


def test_controls_are_set_shown_and_lifted(shell: Shell) -> None:
    plain = {
        "name": "mails", "paused": False, "limit": None, "rate": None, "jobs": {"available": 1},
    }  # fmt: skip
    assert queue(shell, "mails") == plain
    assert "nothing more is taken" in shell.run("queues", "pause", URL, "mails").stdout
    assert queue(shell, "mails") == {**plain, "paused": True}
    assert shell.run("queues", "resume", URL, "mails").stdout == "mails is active\n"
    both = shell.run("queues", "limit", URL, "mails", "--running", "5", "--rate", "100/min")
    assert both.stdout == "mails: running 5, rate 100/min\n"
    assert queue(shell, "mails") == {**plain, "limit": 5, "rate": "100/min"}
    shell.run("queues", "limit", URL, "mails", "--rate", "10/30s")
    assert queue(shell, "mails") == {**plain, "limit": 5, "rate": "10/30s"}
    shown = shell.run("queues", "list", URL).stdout.splitlines()
    assert shown[0].split() == [
        "QUEUE", "STATE", "RUNNING", "AVAILABLE", "SCHEDULED", "BLOCKED", "RATE", "OLDEST",
    ]  # fmt: skip
    assert shown[1].split()[:7] == ["mails", "active", "0/5", "1", "0", "0", "10/30s"]
    shell.run("queues", "limit", URL, "mails", "--running", "none", "--rate", "none")
    assert queue(shell, "mails") == plain


def test_the_table_fits_a_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.run("queues", "limit", URL, "q" * 200, "--running", "5", "--rate", "100/min")
    monkeypatch.setenv("COLUMNS", "80")
    lines = shell.run("queues", "list", URL).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].split()[1:3] == ["active", "0/5"]


def test_no_queue_is_said(shell: Shell) -> None:
    shell.run("jobs", "list", "sqlite:///empty.db")
    assert "no queue has" in shell.run("queues", "list", "sqlite:///empty.db").stdout
    assert shell.run("queues", "list", "sqlite:///empty.db", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pause", "mails"], "no TARGET before 'mails'"),
        (["pause", URL], "no queue was named"),
        (["pause", URL, ""], "queue is empty"),
        (["resume", URL, "a\nb"], "control character"),
        (["resume", URL, "a", "b"], "one queue at a time"),
        (["limit", URL, "mails"], "say what to limit"),
        (["limit", URL, "mails", "--running", "0"], "to stop the queue, pause it"),
        (["limit", URL, "mails", "--running", "x"], "give a number of jobs"),
        (["limit", URL, "mails", "--rate", "5/parsec"], 'write "n/unit"'),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(shell: Shell, words: list[str], says: str) -> None:
    assert says in shell.fails(2, "queues", *words)
