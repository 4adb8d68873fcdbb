"""Progress, partial results and log lines of runs that go on: gathered, and written in batches."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticSerializationError, to_json

from piecework.core import lifecycle
from piecework.core.errors import LeaseLost, PayloadTooLarge, StoreUnavailable
from piecework.engine.loop import FOREVER, backoff
from piecework.handlers.run import DONE, Channel, Progress, Run
from piecework.observe import RunLogs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.core.job import JobId
    from piecework.core.lifecycle import Transition
    from piecework.ports import Refused, Store

__all__ = ["WRITE_SECONDS", "Reports", "encode_partial"]

_log: Final = logging.getLogger("piecework.engine")
WRITE_SECONDS: Final = 0.5


def encode_partial(kind: str, partial: Any, limit_bytes: int) -> str:
    """Return the partial result as JSON; TypeError for what JSON cannot hold."""
    try:
        text = to_json(partial, inf_nan_mode="constants").decode()
    except PydanticSerializationError as error:
        raise TypeError(f"save() takes what JSON can hold: {error}") from error
    if len(text) > limit_bytes:
        raise PayloadTooLarge(kind, len(text), limit_bytes)
    return text


class Reports(Channel):
    """The channel of the runs of one worker. `lost` is told of runs that lost their job."""

    def __init__(
        self,
        store: Store,
        lost: Callable[[JobId, int], None],
        active: Callable[[], list[Run]],
        max_bytes: int,
    ) -> None:
        self._store = store
        self._lost = lost
        self._active = active
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._pending: dict[JobId, tuple[Run, str]] = {}
        self._armed = False
        self.wake: Callable[[], None] = lambda: None

    # ── what a run calls, from its task or its thread ────────────────────────────────────

    def progress(self, run: Run, progress: Progress) -> Awaitable[None]:
        """As `Channel.progress`."""
        text = progress.encode()
        if run.threaded:
            self._loop.call_soon_threadsafe(self._note, run, text)
        else:
            self._note(run, text)
        return DONE

    def save(self, run: Run, partial: Any) -> Awaitable[None]:
        """As `Channel.save`."""
        text = encode_partial(run.kind, partial, self._max_bytes)
        if run.threaded:
            asyncio.run_coroutine_threadsafe(self._save(run, text), self._loop).result()
            return DONE
        # Begun now, so that a handler which does not await it has called something real.
        return asyncio.ensure_future(self._save(run, text))

    def logs(self, job_id: JobId) -> RunLogs:
        """Return an empty log whose lines are written while the run goes on."""
        return RunLogs(self._logged, job_id)

    def _logged(self) -> None:
        # Maybe from a thread; the runs that have lines are looked for when they are written.
        if not self._armed:
            self._armed = True
            self._loop.call_soon_threadsafe(self._arm)

    def _note(self, run: Run, text: str) -> None:
        self._pending[run.id] = (run, text)
        if not self._armed:
            self._armed = True
            self._arm()

    def _arm(self) -> None:
        self._loop.call_later(WRITE_SECONDS, self.wake)

    async def _save(self, run: Run, text: str) -> None:
        noted = self._pending.pop(run.id, None)
        move = lifecycle.progress(
            run.claimed,
            progress=None if noted is None else noted[1],
            partial=text,
            logs=run.logs.take(),
        )
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
            self._lost(run.id, run.fence)
            raise LeaseLost(run.id)

    # ── what the worker calls ────────────────────────────────────────────────────────────

    def take(self, job_id: JobId) -> str | None:
        """Return the report that was not written yet: the outcome carries it."""
        noted = self._pending.pop(job_id, None)
        return None if noted is None else noted[1]

    async def tick(self) -> float:
        """What was reported or logged since the last tick is written."""
        self._armed = False
        pending, self._pending = self._pending, {}
        moves: list[Transition] = []
        for run in self._active():
            noted, lines = pending.get(run.id), run.logs.take()
            if noted is not None or lines:
                text = None if noted is None else noted[1]
                moves.append(
                    lifecycle.progress(run.claimed, progress=text, partial=None, logs=lines)
                )
        if not moves:
            return FOREVER
        try:
            refused = await self._store.apply(moves)
        except StoreUnavailable:
            self._pending = {**pending, **self._pending}
            for run in self._active():
                for move in moves:
                    if move.id == run.id:
                        run.logs.put_back(move.logs)
            raise
        for answer in refused:
            self._lost(answer.transition.id, answer.transition.fence)
        return FOREVER
