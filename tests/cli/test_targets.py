import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

APP = """
from piecework import Piecework
app = Piecework("sqlite:///jobs.db")
class box:
    inner = app
@app.handler
def work() -> None: ...
number = 3
"""


@pytest.fixture
def module(shell: Shell) -> Path:
    path = shell.folder / "shop.py"
    path.write_text(APP)
    return path


@pytest.mark.usefixtures("module")
def test_an_attribute_of_a_module_in_the_folder_is_a_target(shell: Shell) -> None:
    for target in ("shop:app", "shop:box.inner"):
        assert shell.run("jobs", "list", target).stdout == "no jobs\n"
    assert (shell.folder / "jobs.db").exists()


@pytest.mark.usefixtures("module")
def test_the_target_may_come_from_the_environment(shell: Shell) -> None:
    env: dict[str, str | None] = {"PIECEWORK_TARGET": "shop:app"}
    assert shell.run("jobs", "list", env=env).stdout == "no jobs\n"
    assert shell.run("queues", "pause", "mail", env=env).exit_code == 0
    assert "mail" in shell.run("queues", "list", env=env).stdout
    assert shell.fails(2, "jobs", "show", "mail", env=env).endswith("from `piecework jobs list`")


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("shop", "'shop' is no target: write module:attr"),
        ("shop.py:app", "write shop:app"),
        ("shop:", "is no target"),
        ("nowhere:app", "there is no module 'nowhere'"),
        ("nowhere.at.all:app", "there is no module 'nowhere'"),
        ("shop:ap", "module 'shop' has no 'ap': did you mean shop:app?"),
        ("shop:number", "is no Piecework but of type 'int': did you mean shop:app?"),
        ("shop:work", "is no Piecework but of type 'Handler'"),
        ("json:loads", "name the variable that holds your Piecework"),
        ("bogus://x", "is no store"),
        ("sqlite://x", "sqlite:///file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///x?busy=soon", "busy must be seconds"),
        ("memory://", "lives and dies with its program"),
    ],
)
def test_a_wrong_target_is_wrong_usage(shell: Shell, target: str, says: str) -> None:
    assert says in shell.fails(2, "jobs", "list", target)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('raise RuntimeError("boom\\nand more")', "RuntimeError: boom"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("raise ValueError", "cannot be imported: ValueError"),
    ],
)
def test_a_module_that_fails_to_import_is_named_with_the_reason(
    shell: Shell, source: str, says: str
) -> None:
    (shell.folder / "broken.py").write_text(source)
    for command in (("jobs", "list"), ("worker",), ("check",)):
        line = shell.fails(1, *command, "broken:app")
        assert line.startswith("piecework: module 'broken' cannot be imported: ")
        assert says in line
        assert "and more" not in line


def test_a_place_where_no_store_can_be_is_one_line(shell: Shell) -> None:
    (shell.folder / "folder").mkdir()
    (shell.folder / "text").write_text("no database " * 1_000)
    for command in (("jobs", "list"), ("queues", "list"), ("check",)):
        assert "is a folder" in shell.fails(1, *command, "sqlite:///folder")
        assert "is no intact SQLite database" in shell.fails(1, *command, "sqlite:///text")
        assert "does not exist: make it first" in shell.fails(1, *command, "sqlite:///no/x.db")
    for db, says in (("folder", "is a folder"), ("text", "is no intact"), ("no/x", "make it")):
        assert says in shell.fails(1, "demo", ".", "--db", db)


def test_a_new_file_is_told_of_because_it_may_be_a_slip(shell: Shell) -> None:
    first = shell.run("jobs", "list", "sqlite:///jbos.db")
    assert (first.exit_code, first.stdout) == (0, "no jobs\n")
    assert first.stderr == "note: jbos.db is a new, empty store: was another file meant?\n"
    assert shell.run("jobs", "list", "sqlite:///jbos.db").stderr == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nope"], "No such command 'nope': see piecework --help"),
        (["jobs", "nope"], "see piecework jobs --help"),
        (["jobs", "list"], "Missing argument 'TARGET': see piecework jobs list --help"),
        (["jobs", "list", "sqlite:///a.db", "--nope"], "No such option: --nope"),
        (["jobs", "list", "sqlite:///a.db", "--state", "done"], "'done' is not one of 'scheduled'"),
        (["demo"], "Missing argument 'PATH'"),
        (["demo", "nowhere"], "there is no 'nowhere'"),
        (["demo", "/dev/null"], "is neither a folder nor a regular file"),
        (["demo", ".", "--db", "sqlite:///x.db"], "give the name of a file"),
        (["worker", "sqlite:///x.db"], "has no handlers: name the app that has them"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(
    shell: Shell, words: list[str], says: str
) -> None:
    assert says in shell.fails(2, *words)
    assert list(shell.folder.iterdir()) == []


def test_help_and_version(shell: Shell) -> None:
    assert shell.run("--version").stdout.startswith("piecework ")
    shown = shell.run("--help")
    assert shown.exit_code == 0
    for command in ("demo", "worker", "jobs", "queues", "check", "bench"):
        assert command in shown.stdout
    for words in ((), ("jobs",), ("queues",)):
        alone = shell.run(*words)
        assert alone.exit_code == 2
        assert "Usage: piecework" in alone.output
        assert alone.stderr == ""


def test_a_bug_is_one_line_and_a_traceback_only_when_asked_for(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a\x1b[31m bug")

    monkeypatch.setattr("piecework.cli.jobs.split_ids", broken)
    line = shell.fails(1, "jobs", "retry", "x")
    assert line == (
        r"piecework: LookupError: a\x1b[31m bug (a bug? PIECEWORK_TRACEBACK=1 shows where)"
    )
    shown = shell.run("jobs", "retry", "x", env={"PIECEWORK_TRACEBACK": "1"})
    assert "Traceback" in shown.stderr


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    process = shell.start("--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_help_does_not_wait_for_what_only_commands_need() -> None:
    code = (
        "import sys; from piecework.cli import app; app(['--help'], standalone_mode=False); "
        "sys.exit([m for m in ('rich.progress', 'piecework.bench', 'sqlalchemy') "
        "if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
