import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from piecework import Piecework
from piecework.cli import app as commands

COMMAND = [sys.executable, "-c", "from piecework.cli import main; main()"]


class Shell:
    """The command line in a folder of its own: `run` within this process, `start` in another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *words: object, env: dict[str, str | None] | None = None) -> Result:
        """Return how the command ended; anything but an exit is raised."""
        result = CliRunner(env=env or {}).invoke(commands, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def fails(self, code: int, *words: object, **options: Any) -> str:
        """Return the one line that says why the command ended with this code."""
        result = self.run(*words, **options)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Return the command as a process of its own."""
        process = subprocess.Popen(
            [*COMMAND, *[str(word) for word in words]],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **options,
        )
        self.started.append(process)
        return process

    def spawn(self, *words: object, **options: Any) -> tuple[int, str, str]:
        """Return (exit code, stdout, stderr) of the command in a process of its own."""
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=50)
        return process.returncode, out, err


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIECEWORK_TARGET", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    made = Shell(tmp_path)
    yield made
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(met: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """Return what `met` returns once that is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := met()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)  # what is waited for happens in another process
    return value


def with_app(url: str, work: Callable[[Piecework], Any]) -> Any:
    """Return what the async function returns, given an open app."""

    async def run() -> Any:
        async with Piecework(url) as app:
            return await work(app)

    return asyncio.run(run())
