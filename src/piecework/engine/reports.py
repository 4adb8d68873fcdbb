"""Progress, partial results and log lines of runs that go on: gathered, and written in batches."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticSerializationError, to_json

from piecework.core import lifecycle
from piecework.core.errors import LeaseLost, PayloadTooLarge, StoreUnavailable
from piecework.engine.loop import FOREVER, backoff
from piecework.handlers.losses import has_constant
from piecework.handlers.run import DONE, Channel, Progress, Run
from piecework.observe import RunLogs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.core.job import JobId
    from piecework.core.lifecycle import Transition
    from piecework.engine.settler import Claim
    from piecework.ports import Refused, Store

__all__ = ["WRITE_SECONDS", "Reports", "encode_partial"]

_log: Final = logging.getLogger("piecework.engine")
WRITE_SECONDS: Final = 0.5


def encode_partial(kind: str, partial: Any, limit_bytes: int) -> str:
    """Return the partial result as JSON; TypeError or ValueError for what JSON cannot hold."""
    try:
        data = to_json(partial, inf_nan_mode="constants", bytes_mode="base64")
    except PydanticSerializationError as error:
        raise TypeError(f"save() takes what JSON can hold: {error}") from error
    if len(data) > limit_bytes:
        raise PayloadTooLarge(kind, len(data), limit_bytes)
    text = data.decode()
    if has_constant(text):
        raise ValueError("save() takes what JSON can hold, and NaN and infinity are not")
    return text


class Reports(Channel):
    """The channel of the runs of one worker. `lost` is told of runs that lost their job."""

    def __init__(
        self,
        store: Store,
        lost: Callable[[Claim], None],
        active: Callable[[], list[Run]],
        max_bytes: int,
    ) -> None:
        self._store = store
        self._lost = lost
        self._active = active
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._pending: dict[Claim, str] = {}
        self._armed = False
        self.wake: Callable[[], None] = lambda: None

    # ── what a run calls, from its task or its thread ────────────────────────────────────

    def progress(self, run: Run, progress: Progress) -> Awaitable[None]:
        """As `Channel.progress`."""
        text = progress.encode()
        if self._is_here():
            self._note(run, text)
        else:
            self._tell(self._note, run, text)
        return DONE

    def save(self, run: Run, partial: Any) -> Awaitable[None]:
        """As `Channel.save`."""
        text = encode_partial(run.kind, partial, self._max_bytes)
        if not self._is_here():
            asyncio.run_coroutine_threadsafe(self._save(run, text), self._loop).result()
            return DONE
        # Begun now, so that a handler which does not await it has called something real.
        return asyncio.ensure_future(self._save(run, text))

    def _is_here(self) -> bool:
        """Whether this is the worker's thread; an async handler may use other threads, too."""
        return threading.get_ident() == self._thread

    def _tell(self, what: Callable[..., object], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed, and a thread runs on
            self._loop.call_soon_threadsafe(what, *args)

    def logs(self, job_id: JobId) -> RunLogs:
        """Return an empty log whose lines are written while the run goes on."""
        return RunLogs(self._logged, job_id)

    def _logged(self) -> None:
        # Maybe from a thread; the runs that have lines are looked for when they are written.
        if not self._armed:
            self._armed = True
            self._tell(self._arm)

    def _note(self, run: Run, text: str) -> None:
        self._pending[run.id, run.fence] = text
        if not self._armed:
            self._armed = True
            self._arm()

    def _arm(self) -> None:
        self._loop.call_later(WRITE_SECONDS, self.wake)

    async def _save(self, run: Run, text: str) -> None:
        noted = self.take(run)
        lines = run.logs.take()
        move = lifecycle.progress(run.claimed, progress=noted, partial=text, logs=lines)
        failures = 0
        refused: list[Refused] = []
        while True:
            try:
                refused = await self._store.apply([move])
                break
            except StoreUnavailable as error:
                failures += 1
                if failures == 1:
                    _log.warning("a partial result waits for the store: %s", error)
                await asyncio.sleep(backoff(failures))
        if refused:
            self._lost((run.id, run.fence))
            raise LeaseLost(run.id)

    # ── what the worker calls ────────────────────────────────────────────────────────────

    def take(self, run: Run) -> str | None:
        """Return the report that was not written yet: the outcome carries it."""
        return self._pending.pop((run.id, run.fence), None)

    async def tick(self) -> float:
        """What was reported or logged since the last tick is written."""
        self._armed = False
        pending, self._pending = self._pending, {}
        moves: list[Transition] = []
        for run in self._active():
            text, lines = pending.get((run.id, run.fence)), run.logs.take()
            if text is not None or lines:
                moves.append(
                    lifecycle.progress(run.claimed, progress=text, partial=None, logs=lines)
                )
        if not moves:
            return FOREVER
        try:
            refused = await self._store.apply(moves)
        except StoreUnavailable:
            self._pending = {**pending, **self._pending}
            lines_of = {(move.id, move.fence): move.logs for move in moves}
            for run in self._active():
                run.logs.put_back(lines_of.get((run.id, run.fence), ()))
            raise
        for answer in refused:
            self._lost((answer.transition.id, answer.transition.fence))
        return FOREVER
