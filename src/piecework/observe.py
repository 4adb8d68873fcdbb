"""What a run tells the outside: its log lines, kept with the job, and who is running just now."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from piecework.core.attempts import storable
from piecework.core.job import JobId, LogLine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_LINES", "MAX_LOG_BYTES", "LogCapture", "RunLogger", "RunLogs", "current_logs"]

MAX_LINES: Final = 1_000
MAX_LOG_BYTES: Final = 64 * 1024
_FORMATTER: Final = logging.Formatter()


class RunLogs:
    """The log of one attempt: at most 1,000 lines and 64 KiB, INFO and above.

    Appending is safe from any thread. `told` is called when there is a first line to take. What
    goes beyond the bound is counted, and the last line tells how many were left out.
    """

    __slots__ = ("_bytes", "_count", "_dropped", "_fresh", "_told", "job_id")

    def __init__(self, told: Callable[[], None] | None = None, job_id: JobId | None = None) -> None:
        self.job_id = job_id
        self._told = told
        self._fresh: list[LogLine] = []
        self._count = 0
        self._bytes = 0
        self._dropped = 0

    def add(self, record: logging.LogRecord) -> None:
        """The record's line is kept, or counted as left out."""
        if record.levelno < logging.INFO:
            return
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a bad log call must never harm the run
            message = f"{record.msg!r} (cannot be formatted: {error})"
        if record.exc_info:
            message = f"{message}\n{_FORMATTER.formatException(record.exc_info)}"
        message = message.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
        at = datetime.fromtimestamp(record.created, UTC)
        level, name = storable(record.levelname), storable(record.name)
        self.append(LogLine(at=at, level=level, message=message, logger=name))

    def append(self, line: LogLine) -> None:
        """The line is kept, or counted as left out."""
        size = len(line.message.encode())
        # One line is held back for the note that says what was left out.
        if self._count >= MAX_LINES - 1 or self._bytes + size > MAX_LOG_BYTES:
            self._dropped += 1
            return
        self._count += 1
        self._bytes += size
        self._fresh.append(line)
        if self._told is not None and len(self._fresh) == 1:
            self._told()

    def put_back(self, lines: tuple[LogLine, ...]) -> None:
        """Lines that could not be written are taken again next time."""
        self._fresh[:0] = lines

    def take(self, *, last: bool = False) -> tuple[LogLine, ...]:
        """Return the lines not taken before; `last` adds the note on what was left out."""
        fresh, self._fresh = self._fresh, []
        if last and self._dropped:
            note = f"{self._dropped} more lines were left out (1,000 lines or 64 KiB are kept)"
            fresh.append(
                LogLine(at=datetime.now(UTC), level="WARNING", message=note, logger="piecework")
            )
        return tuple(fresh)


current_logs: ContextVar[RunLogs | None] = ContextVar("piecework_run_logs", default=None)
"""The log of the run this code belongs to; it names the job, too."""


class RunLogger(logging.Logger):
    """`run.log`: an ordinary logger whose lines are kept with the job, whatever is configured."""

    def __init__(self, logs: RunLogs) -> None:
        super().__init__("piecework.run", logging.INFO)
        self._logs = logs

    def handle(self, record: logging.LogRecord) -> None:
        """The record is kept, and goes the way of ordinary logging as `piecework.run`."""
        self._logs.add(record)
        record.piecework_kept = True
        outside = logging.getLogger(self.name)
        if outside.isEnabledFor(record.levelno):
            outside.handle(record)


class LogCapture(logging.Handler):
    """Keeps ordinary logging calls made inside a run, from INFO on, while it is installed.

    The root logger usually lets only warnings through; while installed, it lets INFO through to
    this handler, and every other handler of the root goes on seeing what it saw before.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._before: int | None = None
        self._alone: list[logging.Handler] = []

    def install(self) -> None:
        """Calls inside runs are kept from now on."""
        root = logging.getLogger()
        if root.level > logging.INFO:
            self._before = root.level
            for handler in root.handlers:
                handler.addFilter(self._as_before)
                self._alone.append(handler)
            root.setLevel(logging.INFO)
        root.addHandler(self)

    def remove(self) -> None:
        """The root logger is as it was before `install`."""
        root = logging.getLogger()
        root.removeHandler(self)
        heir = next((each for each in root.handlers if isinstance(each, LogCapture)), None)
        for handler in self._alone:
            handler.removeFilter(self._as_before)
            if heir is not None:
                handler.addFilter(heir._as_before)  # noqa: SLF001 - another one of this class
        if heir is not None and self._before is not None:
            heir._before, heir._alone = self._before, self._alone  # noqa: SLF001 - as above
        elif self._before is not None and root.level == logging.INFO:
            root.setLevel(self._before)
        self._before, self._alone = None, []

    def emit(self, record: logging.LogRecord) -> None:
        """The record is kept if a run is going on here."""
        if record.name.startswith("piecework") and record.name != "piecework.run":
            return  # Piecework's own lines are about the worker, not the run
        logs = current_logs.get()
        if logs is not None and not hasattr(record, "piecework_kept"):
            logs.add(record)
            record.piecework_kept = True  # another worker of this process has a capture, too
        last_resort = logging.lastResort
        if last_resort and not self._alone and record.levelno >= last_resort.level:
            handlers = logging.getLogger().handlers
            # Nobody else would print the warning; of several captures, the first one does.
            if handlers[:1] == [self] and all(isinstance(each, LogCapture) for each in handlers):
                last_resort.handle(record)

    def _as_before(self, record: logging.LogRecord) -> bool:
        """Whether the root's former level would have let the record through."""
        before, root = self._before, logging.getLogger()
        if before is None or root.level != logging.INFO or record.levelno >= before:
            return True
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger is not root:
            if logger.level:
                return True  # a level of its own let it through, not the root's
            logger = logger.parent
        return False
