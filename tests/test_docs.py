"""The reference page of the command line names every command and option there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from piecework.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "command-line.md"


def walk(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, found in getattr(command, "commands", {}).items():
        yield from walk(found, f"{name} {child}".strip())


def options_of(command: Any) -> list[str]:
    options = [each for param in command.params for each in (*param.opts, *param.secondary_opts)]
    return [each for each in options if each.startswith("--") and each != "--help"]


def test_every_command_and_option_is_in_the_reference() -> None:
    page, commands = PAGE.read_text("utf-8"), dict(walk(get_command(app)))
    assert [name for name in commands if not re.search(rf"(`|piecework ){name}\b", page)] == []
    assert {
        f"{name} {option}"
        for name, command in commands.items()
        for option in options_of(command)
        if not re.search(rf"{option}\b", page)
    } == set()
