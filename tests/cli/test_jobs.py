import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from piecework import GiveUp, Piecework, Run, State
from tests.cli.conftest import Shell, with_app

URL = "sqlite:///jobs.db"
NOBODY = "01a1fd01-6118-711f-b099-cd92276aa520"
EVIL = "red\x1b[31m\nnext \u202eline"
ESCAPED = r"red\x1b[31m\nnext \u202eline"


def fill() -> dict[str, str]:
    """Jobs in several states are in the file: name -> id."""

    async def work(app: Piecework) -> dict[str, str]:
        @app.handler(kind="mail", queue="mails", max_attempts=1)
        async def mail(run: Run, to: str) -> str:
            await run.progress(1, total=2, message=EVIL)
            run.log.info("sent to %s\nin two lines %s", to, EVIL)
            if to == EVIL:
                raise GiveUp(EVIL)
            return to.upper()

        done = await mail.using(name="welcome", metadata={"who": "me"}).enqueue("a@b.c")
        failed = await mail.using(unique_key="k").enqueue(EVIL)
        await app.run_until_idle()
        later = await mail.using(delay=3_600).enqueue("later")
        parked = await app.kind("strange").enqueue({"x": 1})
        await app.run_until_idle()
        waits = await mail.using(priority=3, expires_in=60, serial_key="s").enqueue("now")
        return {
            name: str(handle.id)
            for name, handle in {
                "done": done, "failed": failed, "later": later, "parked": parked, "waits": waits,
            }.items()
        }  # fmt: skip

    found: dict[str, str] = with_app(URL, work)
    return found


@pytest.fixture
def ids(shell: Shell) -> dict[str, str]:
    return fill()


def listed(shell: Shell, *words: object) -> list[str]:
    result = shell.run("jobs", "list", URL, "--json", *words)
    assert result.exit_code == 0, result.output
    return [job["id"] for job in json.loads(result.stdout)]


def names(ids: dict[str, str], found: Sequence[str]) -> list[str]:
    back = {job_id: name for name, job_id in ids.items()}
    return [back[job_id] for job_id in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["waits", "parked", "later", "failed", "done"]),
        (["--state", "completed", "--state", "failed"], ["failed", "done"]),
        (["--kind", "strange"], ["parked"]),
        (["--queue", "mails"], ["waits", "later", "failed", "done"]),
        (["--text", "WELCOME"], ["done"]),
        (["--parked"], ["parked"]),
        (["--not-parked", "--state", "scheduled"], ["later"]),
        (["--meta", "who=me"], ["done"]),
        (["--meta", "who=you"], []),
        (["--since", "1h"], ["waits", "parked", "later", "failed", "done"]),
        (["--until", "1.5h"], []),
        (["--limit", "2"], ["waits", "parked"]),
    ],
)
def test_list_obeys_its_filters(
    shell: Shell, ids: dict[str, str], words: list[str], expected: list[str]
) -> None:
    assert names(ids, listed(shell, *words)) == expected


def test_list_takes_instants_with_a_zone_and_a_cursor(shell: Shell, ids: dict[str, str]) -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert listed(shell, "--since", soon) == []
    assert names(ids, listed(shell, "--until", soon, "--after", ids["later"])) == ["failed", "done"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--since", "yesterday"], "write 2h for two hours ago"),
        (["--until", "2026-01-01T00:00:00"], "has no time zone: add Z"),
        (["--meta", "who"], "write KEY=VALUE"),
        (["--after", "zzz"], "is no job id"),
        (["--limit", "0"], "greater than or equal to 1"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_wrong_usage(
    shell: Shell, words: list[str], says: str
) -> None:
    fill()
    assert says in shell.fails(2, "jobs", "list", URL, *words)


def test_tables_fit_a_terminal_and_never_cut_an_id(
    shell: Shell, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = shell.run("jobs", "list", URL, "--limit", "4")
    head, *rows = shown.stdout.splitlines()
    assert head.split() == ["ID", "STATE", "TRIES", "AGE", "KIND"]
    assert len(rows) == 4
    assert all(len(row) <= 80 and UUID(row.split()[0]) for row in rows)
    assert rows[1].split()[1:3] == ["parked", "0/5"]
    assert shown.stderr == f"only 4 are shown; the next ones: --after {ids['failed']}\n"
    monkeypatch.setenv("COLUMNS", "140")
    shown = shell.run("jobs", "list", URL, "--state", "failed")
    assert r"GiveUp: red\x1b[31m\nnext \u202eline" in shown.stdout


def test_show_tells_everything_and_nothing_of_it_harms_a_terminal(
    shell: Shell, ids: dict[str, str]
) -> None:
    shown = shell.run("jobs", "show", URL, ids["failed"], "--logs").stdout
    assert r"error       GiveUp: red\x1b[31m\nnext \u202eline" in shown
    assert "unique key  k" in shown
    assert r"1 of 2 (50%) red\x1b[31m" in shown
    assert "raise GiveUp(EVIL)" in shown
    assert r"in two lines red\x1b[31m" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    waits = shell.run("jobs", "show", URL, ids["waits"]).stdout
    assert "expires" in waits
    assert "serial key  s" in waits
    assert "priority    3" in waits
    assert "parked: no worker" in shell.run("jobs", "show", URL, ids["parked"]).stdout
    assert "nothing was logged" in shell.run("jobs", "show", URL, ids["later"], "--logs").stdout


def test_show_as_json_is_one_document(shell: Shell, ids: dict[str, str]) -> None:
    shown = json.loads(shell.run("jobs", "show", URL, ids["done"], "--json", "--logs").stdout)
    assert shown["state"] == "completed"
    assert shown["result"] == "A@B.C"
    assert shown["metadata"] == {"who": "me"}
    assert shown["progress"]["percent"] == 50.0
    assert datetime.fromisoformat(shown["finished_at"]).tzinfo is not None
    (attempt,) = shown["attempts"]
    assert attempt["outcome"] == "completed"
    (line,) = shown["logs"]
    assert line["level"] == "INFO"
    assert "logs" not in json.loads(shell.run("jobs", "show", URL, ids["done"], "--json").stdout)


def test_an_unknown_id_fails_and_a_bad_one_is_wrong_usage(shell: Shell) -> None:
    fill()
    for command in ("show", "watch"):
        assert f"no job {NOBODY}" in shell.fails(1, "jobs", command, URL, NOBODY)
    for command in ("cancel", "retry", "delete"):
        assert shell.fails(1, "jobs", command, URL, NOBODY) == (
            f"{NOBODY}  nothing done: no such job"
        )
    for command in ("show", "watch", "cancel", "retry", "delete"):
        assert "'zzz' is no job id" in shell.fails(2, "jobs", command, URL, "zzz")
        assert "no job was named" in shell.fails(2, "jobs", command, URL)
        assert "no TARGET before" in shell.fails(2, "jobs", command, NOBODY)
    assert "one job at a time" in shell.fails(2, "jobs", "show", URL, NOBODY, NOBODY[:-1] + "1")


def state(job_id: str) -> Any:
    async def work(app: Piecework) -> Any:
        return await app.job(job_id).get()

    return with_app(URL, work)


def test_cancel_retry_and_delete_do_what_they_say(shell: Shell, ids: dict[str, str]) -> None:
    both = shell.run("jobs", "cancel", URL, ids["waits"], ids["done"], "--reason", "no more")
    assert both.exit_code == 1
    assert both.stdout == f"{ids['waits']}  cancelled\n"
    assert both.stderr == f"{ids['done']}  nothing done: it is completed already\n"
    assert state(ids["waits"]).reason == "no more"

    again = shell.run("jobs", "retry", URL, ids["failed"], ids["later"])
    assert again.exit_code == 0
    assert again.stdout.count("will run again") == 2
    assert state(ids["failed"]).state is State.AVAILABLE
    assert state(ids["later"]).due_at <= datetime.now(UTC)

    refused = shell.run("jobs", "delete", URL, ids["failed"], ids["done"], "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout) == [
        {"id": ids["failed"], "done": False, "reason": "it is available: cancel it first"},
        {"id": ids["done"], "done": True, "reason": None},
    ]
    assert "deleted" in shell.run("jobs", "delete", URL, ids["waits"]).stdout
    assert names(ids, listed(shell)) == ["parked", "later", "failed"]


def test_watch_follows_to_the_end(shell: Shell, ids: dict[str, str]) -> None:
    done = shell.run("jobs", "watch", URL, ids["done"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "completed  attempt 1  1 of 2 (50%)" in done.stdout
    failed = shell.run("jobs", "watch", URL, ids["failed"], "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["state"] == "failed"
    assert failed.stderr == f"job {ids['failed']} failed: GiveUp: {ESCAPED}\n"
