"""One job -> one Outcome: call the handler where it belongs, and judge how it ended.

It touches no store. What is recorded follows the cause a run was stopped for, not the exception
its handler happened to raise.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import traceback
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from piecework.core.errors import Cancelled, GiveUp, Snooze
from piecework.core.lifecycle import (
    Completed,
    ErrorInfo,
    Failed,
    Outcome,
    Released,
    Snoozed,
    Stopped,
)
from piecework.core.retry import Retry
from piecework.handlers.codec import ResultUnstorable
from piecework.handlers.injection import open_services
from piecework.observe import current_logs

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from concurrent.futures import ThreadPoolExecutor

    import svcs

    from piecework.handlers.definition import Definition
    from piecework.handlers.run import Run

__all__ = ["Driven", "Executor", "calm", "describe", "judge", "retry_delay"]

_log: Final = logging.getLogger("piecework.engine")
_NOTHING: Final[dict[Any, Any]] = {}
_LONGEST_WAIT: Final = 365 * 86_400.0


async def calm() -> None:
    """No cancel that was meant for the run is left over for what this task does next."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # one that was asked for, but not thrown yet, is thrown here
    while task.cancelling():
        task.uncancel()


class Driven:
    """Awaits a coroutine inside the current task, each of its steps in a context of its own.

    The task stays the handler's: asyncio.timeout, TaskGroup and anyio find one to cancel. A Task
    for each job would cost 4 µs more.
    """

    __slots__ = ("_context", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
        self._coroutine = coroutine
        self._context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw = self._context.run, self._coroutine.send, self._coroutine.throw
        try:
            waiting = run(send, None)
            while True:
                try:
                    got = yield waiting
                except BaseException as error:  # noqa: BLE001 - it belongs to the handler
                    waiting = run(throw, error)
                else:
                    waiting = run(send, got)
        except StopIteration as stop:
            return stop.value


class Executor:
    """Runs handlers: async ones in the calling task, sync ones in threads.

    `threads` is None in a child process, where a sync handler has the main thread to itself.
    """

    def __init__(
        self,
        services: svcs.Registry,
        threads: ThreadPoolExecutor | None,
    ) -> None:
        self._services = services
        self._threads = threads

    async def execute(self, definition: Definition, value: Any, run: Run) -> Outcome | None:
        """Return how the run ended; None if it lost its job and nothing may be recorded."""
        context = copy_context()
        context.run(current_logs.set, run.logs)
        container: svcs.Container | None = None
        try:
            services = _NOTHING
            if definition.needs:
                opening = open_services(definition, self._services)
                container, services = await Driven(opening, context)
            if definition.is_async:
                returned = await Driven(definition.invoke(value, run, services), context)
            elif self._threads is None:
                returned = context.run(definition.invoke, value, run, services)
            else:
                run.threaded = True
                call = partial(context.run, _guarded, definition, value, run, services)
                loop = asyncio.get_running_loop()
                returned = await loop.run_in_executor(self._threads, call)  # pyright: ignore[reportArgumentType] - loses count of a partial
                if isinstance(returned, _Raised):
                    raise returned.error
            outcome: Outcome | None = self._returned(definition, run, returned)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            outcome = judge(definition, run, error)
        run.ended = True
        await calm()
        if container is not None:
            await self._close(container, context, run)
        return outcome

    def _returned(self, definition: Definition, run: Run, value: Any) -> Outcome | None:
        if run.halted and not _finished_first(run):
            return judge(definition, run, Cancelled(run.stopping))
        try:
            return Completed(definition.encode_result(value))
        except ResultUnstorable as error:
            return Failed(ErrorInfo(type(error).__name__, str(error)), None)

    async def _close(self, container: svcs.Container, context: Context, run: Run) -> None:
        try:
            await Driven(container.aclose(), context)
        except Exception:
            run.log.exception("a service could not be closed")


def _finished_first(run: Run) -> bool:
    """Whether a run that returned although it was stopped counts as finished."""
    if run.stopping == "shutdown":
        return run.threaded and not run.interrupted  # nothing cut it short: it is whole
    return run.stopping == "cancel"


class _Raised:
    """What a thread's handler raised. A StopIteration could not pass through a future."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _guarded(definition: Definition, value: Any, run: Run, services: Any) -> Any:
    try:
        return definition.invoke(value, run, services)
    except BaseException as error:  # noqa: BLE001 - SystemExit must not end the thread
        return _Raised(error)


def judge(definition: Definition, run: Run, error: BaseException) -> Outcome | None:
    """Return what an error means for the job."""
    if run.halted:
        match run.stopping:
            case "lost":
                return None
            case "cancel":
                return Stopped()
            case "shutdown":
                return Released()
            case "timeout":
                return _time_limit(definition, run, error)
            case None:
                pass
    if isinstance(error, Cancelled):
        return Stopped(error.reason)
    if isinstance(error, Snooze):
        return Snoozed(error.delay, error.why)
    info = describe(error)
    if isinstance(error, GiveUp):
        return Failed(info, None)
    return Failed(info, retry_delay(definition, run, error))


def _time_limit(definition: Definition, run: Run, error: BaseException) -> Outcome:
    limit = run.time_limit or 0.0
    late = TimeoutError(f"ran longer than its time limit of {limit:g} s")
    shown = describe(error).traceback
    info = ErrorInfo("TimeoutError", str(late), shown)
    return Failed(info, retry_delay(definition, run, late))


def retry_delay(definition: Definition, run: Run, error: BaseException) -> timedelta | None:
    """Return the wait before the next attempt, or None to give up.

    A policy of the user's that raises or answers nonsense counts as the default one.
    """
    policy = definition.options.retry
    default = Retry()
    seconds: float | None
    if isinstance(policy, Retry):
        if policy.gives_up_on(error):
            return None
        seconds = policy.delay(run.attempt, spread=random.random())  # noqa: S311 - no secret
    else:
        try:
            seconds = policy(run, error)
            if seconds is None:
                return None
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"a delay must be finite and at least 0, not {seconds}")
        except BaseException:  # noqa: BLE001 - the user's own function
            _log.exception("retry= of %s failed; the default back-off is used", run.kind)
            seconds = default.delay(run.attempt, spread=random.random())  # noqa: S311 - no secret
    return timedelta(seconds=min(seconds, _LONGEST_WAIT))


def describe(error: BaseException) -> ErrorInfo:
    """Return the error as data, whatever its own methods do."""
    name = type(error).__qualname__
    try:
        message = str(error)
    except BaseException as broken:  # noqa: BLE001 - an unprintable error must still be recorded
        message = f"(its message cannot be printed: {type(broken).__qualname__})"
    try:
        # Our own frames, from here up to the handler's first one, tell nobody anything.
        frames = error.__traceback__
        while frames is not None and _is_ours(frames.tb_frame.f_globals.get("__name__", "")):
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        shown: str | None = "".join(lines)
    except BaseException:  # noqa: BLE001 - as above
        shown = None
    return ErrorInfo(name, message, shown)


def _is_ours(module: str) -> bool:
    return module.startswith(("piecework.engine", "piecework.handlers")) or module in {
        "concurrent.futures.thread",
        "asyncio.futures",
    }
