"""What a worker says: each record is one line, with control characters escaped."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

from piecework.cli.show import printable

__all__ = ["Level", "configure"]

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class OneLine(logging.Formatter):
    """A record, its traceback included, is one line; times are UTC."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format: str | None = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))


class StderrNow(logging.Handler):
    """Writes to what sys.stderr is at that moment: a live display may stand in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """The line is written."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging: it reports, and lives
            self.handleError(record)


def configure(level: str) -> None:
    """From this level on, records go to stderr. A module that sets up logging itself prevails."""
    handler = StderrNow()
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
