"""The main job, as a user runs it: in processes of its own, killed, stopped, run again."""

import ctypes
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from piecework import State
from piecework.cli.demo import Demo
from piecework.cli.meter import Lines
from piecework.cli.signals import stopper
from piecework.cli.summary import Summary
from tests.cli.conftest import COMMAND, Shell, until

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals"),
    pytest.mark.timeout(60),
]

MANY = 3_000


def make_tree(root: Path, count: int) -> None:
    for number in range(count):
        file = root / f"d{number % 13}" / f"e{number % 7}" / f"f{number:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"some words \t\n of file %d\n" % number * (number % 50))


def expected(root: Path) -> dict[str, dict[str, Any]]:
    """What sha256sum and wc say, or Python where they are missing: path -> sums."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if shutil.which("sha256sum") is None or shutil.which("wc") is None:
        return {
            str(file): {
                "sha256": hashlib.sha256(data := file.read_bytes()).hexdigest(),
                "bytes": len(data),
                "lines": data.count(b"\n"),
                "words": len(data.split()),
            }
            for file in files
        }
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(files), 1_000):
        batch = [str(file) for file in files[start : start + 1_000]]
        hashes = tool("sha256sum", *batch)
        counts = tool("wc", "-lwc", *batch)
        for path, digest, numbers in zip(batch, hashes, counts, strict=False):
            lines, words, size = (int(text) for text in numbers.split()[:3])
            found[path] = {
                "sha256": digest.split()[0], "bytes": size, "lines": lines, "words": words,
            }  # fmt: skip
    return found


def tool(*words: str) -> list[str]:
    env = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(words, capture_output=True, check=True, env=env, text=True)
    return done.stdout.splitlines()


def stored(shell: Shell, db: str = "piecework-demo.db") -> dict[str, dict[str, Any]]:
    """Every job in the file: path -> job."""
    listed = shell.run("jobs", "list", f"sqlite:///{db}", "--limit", "100000", "--json")
    return {job["args"]["path"]: job for job in json.loads(listed.stdout)}


def completed(db: Path) -> int:
    """How many jobs of a file that another process writes have completed; 0 while there is none."""
    try:
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
            select = "SELECT count(*) FROM piecework_job WHERE state = 'completed'"
            (count,) = connection.execute(select).fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(count)


def check(shell: Shell, out: str, tree: Path) -> dict[str, dict[str, Any]]:
    """The summary and every single job say what the tools say."""
    summary, wanted, jobs = json.loads(out), expected(tree), stored(shell)
    assert (summary["files"], summary["done"], summary["failed"]) == (len(wanted), len(wanted), 0)
    for name in ("bytes", "lines", "words"):
        assert summary[name] == sum(each[name] for each in wanted.values())
    assert {path: job["result"] for path, job in jobs.items()} == wanted
    largest = [(each["path"], each["bytes"]) for each in summary["largest"]]
    ranked = sorted(wanted.items(), key=lambda item: (-item[1]["bytes"], item[0]))
    assert largest == [(path, each["bytes"]) for path, each in ranked[:10]]
    return jobs


def test_sums_are_right_and_a_second_run_redoes_nothing(shell: Shell) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 300)
    code, out, err = shell.spawn("demo", "tree", "--json")
    assert (code, err) == (0, "300 files\n300/300 done, 0 failed\n")
    first = check(shell, out, tree)
    code, out, err = shell.spawn("demo", "./tree/", "--json")
    assert (code, err) == (0, "300 files, 300 handled by earlier runs, 0 to go\n")
    assert json.loads(out)["new"] == 0
    assert check(shell, out, tree) == first


def test_after_a_kill_the_same_command_goes_on_and_keeps_what_was_done(shell: Shell) -> None:
    tree, db = shell.folder / "tree", shell.folder / "piecework-demo.db"
    make_tree(tree, MANY)
    process = shell.start("demo", "tree")
    until(lambda: completed(db) > MANY // 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stored(shell)
    done = {path: job for path, job in before.items() if job["state"] == "completed"}
    assert len(done) > MANY // 10
    code, out, err = shell.spawn("demo", "tree", "--json")
    assert code == 0
    assert f"{MANY:,} files, {len(done):,} handled by earlier runs" in err
    after = check(shell, out, tree)
    assert {path: after[path] for path in done} == done
    for path, job in after.items():
        held = before[path]["state"] == "running"  # and so it has crashed with its worker
        assert (job["attempt"], job["crashes"]) == ((2, 1) if held else (1, 0))


def test_ctrl_c_drains_and_the_same_command_goes_on(shell: Shell) -> None:
    tree, db = shell.folder / "tree", shell.folder / "piecework-demo.db"
    make_tree(tree, MANY)
    process = shell.start("demo", "tree")
    until(lambda: completed(db) > MANY // 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    first, *_, last = err.splitlines()
    assert first == f"{MANY:,} files"
    assert "stopping: what runs is finished" in err
    jobs = stored(shell)
    states = [job["state"] for job in jobs.values()]
    assert set(states) == {"completed", "available"}  # nothing is left running
    assert all(job["attempt"] == (job["state"] == "completed") for job in jobs.values())
    done = states.count("completed")
    assert last == (
        f"stopped: {done:,} of {MANY:,} files are done; the same command goes on from there"
    )
    code, out, err = shell.spawn("demo", "tree", "--json")
    assert code == 0
    assert f"{done:,} handled by earlier runs" in err
    assert {job["attempt"] for job in check(shell, out, tree).values()} == {1}


def test_a_second_ctrl_c_does_not_wait(shell: Shell) -> None:
    tree = shell.folder / "tree"
    tree.mkdir()
    with (tree / "huge").open("wb") as file:
        file.truncate(500 * 2**30)  # a hole: it takes no room, and half an hour to read
    process = shell.start("demo", "tree")
    assert process.stderr is not None
    until(lambda: any(job["state"] == "running" for job in stored(shell).values()))
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    (job,) = stored(shell).values()
    assert (job["state"], job["attempt"]) == ("available", 0)


def test_a_changed_file_is_a_new_job_and_what_has_gone_does_not_count(shell: Shell) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 20)
    shell.spawn("demo", "tree")
    files = sorted(path for path in tree.rglob("*.txt"))
    files[0].write_text("changed")
    files[1].unlink()
    (tree / "fresh").write_text("three new words")
    code, out, _ = shell.spawn("demo", "tree", "--json")
    summary, wanted = json.loads(out), expected(tree)
    assert code == 0
    assert (summary["files"], summary["done"], summary["new"]) == (20, 20, 2)
    assert summary["words"] == sum(each["words"] for each in wanted.values())


def test_the_database_may_lie_in_the_folder_and_does_not_count_itself(shell: Shell) -> None:
    (shell.folder / "one").write_text("1")
    for _ in range(2):
        code, out, _ = shell.spawn("demo", ".", "--json")
        assert (code, json.loads(out)["files"]) == (0, 1)


def test_two_paths_in_one_database_are_two_runs(shell: Shell) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 30)
    for path in (tree, tree / "d0", tree / "d0" / "e0" / "f00000.txt"):
        for _ in range(2):
            code, out, _ = shell.spawn("demo", path, "--json")
            count = 1 if path.is_file() else len(expected(path))
            assert (code, json.loads(out)["done"]) == (0, count)


def test_an_empty_folder_is_nothing_to_do(shell: Shell) -> None:
    (shell.folder / "empty").mkdir()
    code, out, err = shell.spawn("demo", "empty")
    assert (code, err) == (0, "0 files\n")
    assert out.splitlines()[1].split() == ["0"] * 5


# ── what cannot be read ──────────────────────────────────────────────────────────────────────


def obey_modes() -> None:
    """Root, too, may not read what its mode forbids, in this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities")
def test_unreadable_files_fail_with_the_reason_and_do_not_stop_the_rest(shell: Shell) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 50)
    for name in ("secret", "d0/secret\x1b[31m"):
        (tree / name).write_text("secret words")
        (tree / name).chmod(0)
    (tree / "locked").mkdir(mode=0)
    options: dict[str, Callable[[], None]] = {"preexec_fn": obey_modes}
    code, out, err = shell.spawn("demo", "tree", **options)
    assert code == 0, err
    assert out.splitlines()[1].split()[:2] == ["53", "3"]
    failed = [line.split("  ") for line in out[out.index("Failed:") :].splitlines()[2:5]]
    assert [[part.strip() for part in line if part.strip()] for line in failed] == [
        ["secret", "Permission denied"],
        [r"d0/secret\x1b[31m", "Permission denied"],
        ["locked", "cannot be listed: Permission denied"],
    ]
    jobs = [job for job in stored(shell).values() if job["state"] == "failed"]
    assert [(job["attempt"], job["error"]) for job in jobs] == [
        (1, "GiveUp: Permission denied")
    ] * 2
    # Made readable, they are worth another job; what was done is not done again.
    for path in (tree / "secret", tree / "locked"):
        path.chmod(0o700)
    code, out, _ = shell.spawn("demo", "tree", "--json", **options)
    summary = json.loads(out)
    assert (summary["done"], summary["failed"], summary["new"]) == (51, 1, 1)
    assert [each["reason"] for each in summary["failures"]] == ["Permission denied"]


async def test_a_file_removed_before_its_turn_fails_alone_and_is_done_once_it_is_back(
    shell: Shell,
) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 5)
    gone = tree / "d3"
    away = shell.folder / "away"

    async def run(between: Callable[[], object]) -> Summary:
        demo = Demo(str(tree), str(shell.folder / "x.db"), 2)
        summary, meter = Summary(str(tree)), Lines()
        async with demo.app:
            with stopper(lambda *_: None) as stop:
                assert await demo._enqueue(stop, meter)
                between()
                await demo._sort_out()
                await demo._work(stop, meter)
            await demo._sum_up(summary)
        return summary

    summary = await run(lambda: gone.rename(away))
    assert (summary.done, summary.failed) == (4, 1)
    assert summary.failures == [(str(gone / "e3" / "f00003.txt"), "No such file or directory")]
    away.rename(gone)
    summary = await run(lambda: None)
    assert (summary.done, summary.failed) == (5, 0)


async def test_a_job_left_for_a_file_that_has_gone_is_cancelled(shell: Shell) -> None:
    tree = shell.folder / "tree"
    make_tree(tree, 5)
    gone, away = tree / "d3", shell.folder / "away"
    for step, wanted in (("leave", None), ("away", 4), ("back", 5)):
        demo = Demo(str(tree), str(shell.folder / "x.db"), 2)
        if step == "leave":
            async with demo.app:
                with stopper(lambda *_: None) as stop:
                    assert await demo._enqueue(stop, Lines())
            continue
        if step == "away":
            gone.rename(away)
        else:
            away.rename(gone)
        summary = await demo.run(Summary(str(tree)))
        assert summary is not None
        assert (summary.done, summary.failed) == (wanted, 0)
        async with demo.app:
            cancelled = await demo.app.find(state=State.CANCELLED)
        assert len(cancelled) == (step == "away")


def test_only_some_failures_are_listed_but_all_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = Summary("/r")
    for number in range(25):
        summary.add_failure(f"/r/{number:02}", "no")
    summary.print()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["25", "25"]
    assert lines[-2:] == ["19    no", "and 5 more"]


# ── names, terminals ─────────────────────────────────────────────────────────────────────────

ODD = [b"caf\xc3\xa9", b"latin\xe9", b"new\nline", b"\x1b[31mred", b"100%25", b" ", b"-n",
       b"\xe2\x80\xaetxt.exe", b"[red]x?=&#", b"x" * 255]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_odd_names_break_nothing_and_are_shown_harmless(shell: Shell) -> None:
    tree = shell.folder / "tree"
    tree.mkdir()
    for name in ODD:
        (tree / os.fsdecode(name)).write_text("one two\n")
    code, out, _ = shell.spawn("demo", "tree")
    assert code == 0
    assert out.splitlines()[1].split() == ["10", "0", "80", "10", "20"]
    assert all(line.isprintable() for line in out.split("\n"))
    for shown in (r"new\nline", r"\x1b[31mred", "' '", r"latin\xe9", "café", "[red]x"):
        assert shown in out
    assert {job["state"] for job in stored(shell).values()} == {"completed"}
    assert any(path.endswith("/latin%E9") for path in stored(shell))
    code, out, _ = shell.spawn("demo", "tree", "--json")
    assert json.loads(out)["new"] == 0


def test_a_terminal_sees_a_live_bar(shell: Shell) -> None:
    make_tree(shell.folder / "tree", 500)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "demo", "tree"],
        cwd=shell.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65_536)
        except OSError:  # the other end has gone
            break
    os.close(ours)
    assert process.wait(20) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "━━━" in text
    assert re.search(r"\d+/500 done, 0 failed, [\d,.]+ jobs/s, .* left", text)
    assert "500/500 done, 0 failed" in text
    lines = text.replace("\r", "\n").split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert any(line.split() == ["FILES", "FAILED", "BYTES", "LINES", "WORDS"] for line in lines)
