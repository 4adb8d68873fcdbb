import json

import pytest

from piecework import Piecework
from piecework.ports import Finding
from tests.cli.conftest import Shell, with_app

URL = "sqlite:///jobs.db"


def found(shell: Shell, target: str) -> dict[str, tuple[str, str]]:
    result = shell.run("check", target, "--json")
    assert result.exit_code == 0, result.output
    return {each["topic"]: (each["level"], each["text"]) for each in json.loads(result.stdout)}


def test_a_new_store_is_fine(shell: Shell) -> None:
    topics = found(shell, URL)
    assert topics["integrity"] == ("ok", "ok")
    assert topics["workers"] == ("ok", "none is alive, and no job waits")
    assert "handlers" not in topics
    shown = shell.run("check", URL).stdout
    assert all(
        line.split()[0] in ("ok", "warning") for line in shown.splitlines() if line[0] != " "
    )


def test_what_waits_in_vain_is_a_warning(shell: Shell) -> None:
    async def work(app: Piecework) -> None:
        for _ in range(2):
            await app.kind("strange").enqueue({})
        await app.run_until_idle()
        await app.queues.pause("mails")

    with_app(URL, work)
    topics = found(shell, URL)
    assert topics["workers"] == (
        "warning", "none is alive, and 2 jobs wait: start `piecework worker`",
    )  # fmt: skip
    level, text = topics["parked"]
    assert level == "warning"
    assert text.startswith("2 jobs wait for a worker that can run them: no handler for kind")
    assert topics["queues"] == ("warning", "paused: mails")


def test_an_app_is_asked_for_its_handlers(shell: Shell) -> None:
    source = f'from piecework import Piecework\napp = Piecework("{URL}")\n'
    (shell.folder / "bare.py").write_text(source)
    assert found(shell, "bare:app")["handlers"][0] == "warning"
    (shell.folder / "full.py").write_text(f"{source}@app.handler\ndef work() -> None: ...\n")
    assert found(shell, "full:app")["handlers"] == ("ok", "work")


def test_an_error_makes_the_command_fail(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Piecework) -> list[Finding]:
        return [Finding("error", "integrity", "row 7 is \x1b[31mmissing")]

    monkeypatch.setattr(Piecework, "check", broken)
    result = shell.run("check", URL)
    assert result.exit_code == 1
    assert r"error  integrity  row 7 is \x1b[31mmissing" in result.stdout
