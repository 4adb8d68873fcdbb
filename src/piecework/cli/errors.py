"""How a command ends when it cannot do what was asked: one line and an exit code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from typer import TyperException

__all__ = ["DONE", "FAILED", "WRONG", "Failure", "WrongUsage", "usage"]

DONE = 0
FAILED = 1
WRONG = 2
INTERRUPTED = 130


class Failure(TyperException):
    """The command was right, but what it asked for could not be done."""

    exit_code = FAILED


class WrongUsage(TyperException):
    """The command cannot be meant; the message says how to write it."""

    exit_code = WRONG


@contextmanager
def usage() -> Generator[None]:
    """A value that is refused inside the block came from the command line."""
    try:
        yield
    except ValueError as error:
        raise WrongUsage(str(error)) from error
