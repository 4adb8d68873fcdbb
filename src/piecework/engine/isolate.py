"""Handlers in processes of their own: fresh interpreters, reused, and killed when it must be."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework.core.errors import Cancelled, LeaseLost, NotImportable
from piecework.core.job import LogLine
from piecework.core.lifecycle import Crashed, Outcome
from piecework.core.retry import Retry
from piecework.engine import wire
from piecework.engine.executor import judge
from piecework.handlers.calls import CALL_KIND

if TYPE_CHECKING:
    from piecework.handlers.definition import Definition
    from piecework.handlers.run import Run

__all__ = ["Children", "NotLoadable", "is_importable"]

_log: Final = logging.getLogger("piecework.engine")
MOST_IDLE: Final = 8
MOST_STARTING: Final = max(2, os.cpu_count() or 2)
IDLE_SECONDS: Final = 60.0
LINE_LIMIT: Final = 256 * 1024 * 1024
AFTER_CRASH: Final = Retry()


class NotLoadable(Exception):
    """The child cannot import the handler: it exists only in this process."""


def is_importable(definition: Definition) -> bool:
    """Whether another process can be told where the handler is; an ad-hoc call has none."""
    if definition.kind == CALL_KIND:
        return False
    try:
        definition.import_path()
    except NotImportable:
        return False
    return True


class _Child:
    """One interpreter that runs one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls) -> _Child:
        """Return a child that has begun to start; it imports nothing of the user's yet."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "piecework.engine.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            # Ctrl-C in a terminal goes to the worker, which decides what becomes of its jobs.
            start_new_session=True,
        )
        return cls(process)

    async def send(self, message: dict[str, Any]) -> None:
        """The message is under way; a child that died shows when it is read from."""
        stdin = self.process.stdin
        assert stdin is not None
        with suppress(ConnectionError):
            stdin.write(wire.encode(message))
            await stdin.drain()

    async def read(self) -> dict[str, Any] | None:
        """Return the next message, or None once the child is gone."""
        stdout = self.process.stdout
        assert stdout is not None
        try:
            line = await stdout.readline()
            return wire.decode(line) if line.endswith(b"\n") else None
        except ValueError:
            return None  # torn, or beyond every limit: as good as gone

    def leave(self) -> None:
        """The child ends by itself: nobody talks to it any more."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def kill(self) -> None:
        """The process, and what it started, is gone."""
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        await self.process.wait()


class Children:
    """A pool of children for one job each at a time.

    A child that ended a job in good order is used again, and let go after a minute without one.
    Only a few start at once: an interpreter costs as much as many short jobs.
    """

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._starting = 0
        self._freed = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()

    async def run(self, definition: Definition, run: Run, killed: asyncio.Event) -> Outcome | None:
        """Return how the run ended. Once `killed` is set, the child is killed at once.

        Raises NotLoadable where another process cannot import the handler.
        """
        killing = asyncio.ensure_future(killed.wait())
        taking = asyncio.ensure_future(self._take())
        child: _Child | None = None
        keep = False
        try:
            await asyncio.wait({taking, killing}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                return judge(definition, run, Cancelled(run.stopping))
            child = taking.result()
            await child.send(self._order(definition, run))
            reading = asyncio.ensure_future(self._converse(child, run))
            try:
                await asyncio.wait({reading, killing}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return judge(definition, run, Cancelled(run.stopping))
                message = reading.result()
                keep = message is not None
                return await self._ended(child, message, run)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            killing.cancel()
            taking.cancel()
            await asyncio.gather(killing, taking, return_exceptions=True)
            if child is not None:
                await self._put_back(child, keep=keep)

    async def close(self) -> None:
        """No child is left."""
        self._idle.clear()
        for timer in self._timers:
            timer.cancel()
        for child in list(self._all):
            await self._dismiss(child)

    async def _take(self) -> _Child:
        while not self._idle:
            if self._starting < MOST_STARTING:
                return await self._start()
            self._freed.clear()
            await self._freed.wait()
        return self._idle.pop()

    async def _start(self) -> _Child:
        self._starting += 1
        try:
            child = await _Child.start()
            self._all.add(child)
            try:
                await child.read()  # it says when it has imported what it needs itself
            except BaseException:
                await self._dismiss(child)
                raise
            return child
        finally:
            self._starting -= 1
            self._freed.set()

    async def _put_back(self, child: _Child, *, keep: bool) -> None:
        if not keep or len(self._idle) >= MOST_IDLE:
            await self._dismiss(child)
            return
        self._idle.append(child)
        self._freed.set()
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
        self._timers.add(loop.call_later(IDLE_SECONDS, self._let_go, child))

    def _let_go(self, child: _Child) -> None:
        # The list is used from its end: a child that stands first has waited longest.
        if self._idle and self._idle[0] is child:
            self._idle.pop(0)
            self._all.discard(child)
            child.leave()

    async def _dismiss(self, child: _Child) -> None:
        self._all.discard(child)
        await child.kill()

    def _order(self, definition: Definition, run: Run) -> dict[str, Any]:
        place = definition.import_path()
        return {
            "path": [entry or str(Path.cwd()) for entry in sys.path],
            "argv": sys.argv,
            "module": place.module,
            "file": place.file,
            "qualname": place.qualname,
            "claim": wire.encode_claim(run.claimed),
            "max_bytes": definition.limit_bytes,
            "deadline": None if run.deadline is None else run.deadline.isoformat(),
        }

    async def _converse(self, child: _Child, run: Run) -> dict[str, Any] | None:
        """Pass on what the run reports; return the message that ends it, None for a crash."""
        while (message := await child.read()) is not None:
            match message:
                case {"progress": [done, total, text]}:
                    await run.progress(done, total, text)
                case {"save": partial}:
                    await child.send(await self._save(run, partial))
                case {"log": [at, level, logger, text]}:
                    when = datetime.fromtimestamp(at, UTC)
                    run.logs.append(LogLine(at=when, level=level, logger=logger, message=text))
                case _:
                    return message
        return None

    async def _save(self, run: Run, partial: Any) -> dict[str, Any]:
        try:
            await run.save(partial)
        except LeaseLost:
            return {"saved": False}
        return {"saved": True}

    async def _ended(
        self, child: _Child, message: dict[str, Any] | None, run: Run
    ) -> Outcome | None:
        if message is None:
            code = await child.process.wait()
            delay = AFTER_CRASH.delay(run.claimed.crashes + 1, spread=random.random())  # noqa: S311
            return Crashed(_why(code), timedelta(seconds=delay))
        if "not_loadable" in message:
            raise NotLoadable(message["not_loadable"])
        if run.halted and run.stopping != "cancel":
            return None if run.stopping == "lost" else wire.decode_outcome(message)
        return wire.decode_outcome(message)


def _why(code: int) -> str:
    if code >= 0:
        return f"its process exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"
