"""A run that goes on in a slot, and how it is stopped: once, for a cause, until it obeys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from piecework.handlers.definition import Definition
    from piecework.handlers.run import Cause, Run

__all__ = ["GRACE_SECONDS", "Active"]

GRACE_SECONDS: Final = 1.0
"""How long a cancelled handler has before it is cancelled again."""


class Active:
    """A run that goes on in a slot: what it takes to stop it."""

    __slots__ = ("definition", "killed", "run", "task", "timer")

    def __init__(self, run: Run, definition: Definition, task: asyncio.Task[Any]) -> None:
        self.run = run
        self.definition = definition
        self.task = task
        self.timer: asyncio.TimerHandle | None = None
        self.killed = asyncio.Event() if definition.mode == "process" else None

    def stop(self, cause: Cause) -> None:
        """The run is told to stop, and why; the first cause stands, but a lost job tops all."""
        run = self.run
        if run.halted and cause != "lost":
            return
        run.stopping = cause
        run.halted = True
        self.press()

    def press(self) -> None:
        """Interrupt the run now: cancel its task, or kill its process. A thread sees check()."""
        if self.run.ended:
            return  # only its services are being closed: whoever returned first has completed
        if self.killed is not None:
            self.killed.set()
        elif not self.run.threaded:
            self.task.cancel()
            self.release()  # pressed twice, a timer left over would hit the slot's next run
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(GRACE_SECONDS, self.press)  # until it obeys

    def release(self) -> None:
        """The run is over: no timer fires into the next one."""
        if self.timer is not None:
            self.timer.cancel()
