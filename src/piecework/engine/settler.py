"""Record how runs ended: in batches, until it is done, without ever running a handler again."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from piecework.core import lifecycle
from piecework.core.errors import StoreUnavailable
from piecework.core.job import FINAL, Attempt, Claimed, LogLine, State
from piecework.core.lifecycle import (
    Completed,
    Crashed,
    ErrorInfo,
    Failed,
    GivenBack,
    Outcome,
    Parked,
    Released,
    Snoozed,
    Stopped,
)
from piecework.engine.loop import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from piecework.core.job import JobId, WorkerId
    from piecework.core.lifecycle import Transition
    from piecework.ports import Refused, Store

__all__ = ["BATCH", "Claim", "Ending", "Settler"]

_log: Final = logging.getLogger("piecework.engine")
BATCH: Final = 512

Claim: TypeAlias = "tuple[JobId, int]"
"""Whose job it is: its id, and the fence of the claim."""


class Ending(NamedTuple):
    """How a claim ended, and what is still to be written of its run."""

    job: Claimed
    outcome: Outcome
    started_at: datetime | None = None
    progress: str | None = None
    logs: tuple[LogLine, ...] = ()


class Settler:
    """The outbox of one worker. `refused` counts late writes: the job was another's by then."""

    def __init__(
        self, store: Store, node: str, worker: WorkerId, settled: Callable[[], None]
    ) -> None:
        self._store = store
        self._node = node
        self.worker = worker
        self._settled = settled
        self._outbox: deque[Ending] = deque()
        self._in_flight: list[Ending] = []
        self.refused = 0
        self.rounds = 0
        self.wake: Callable[[], None] = lambda: None

    def add(self, ending: Ending) -> None:
        """The ending will be written soon."""
        self._outbox.append(ending)
        if len(self._outbox) == 1 and not self._in_flight:
            self.wake()

    def __len__(self) -> int:
        """Return how many endings are not written yet."""
        return len(self._outbox) + len(self._in_flight)

    def claims(self) -> set[Claim]:
        """Return the claims whose ending is on its way."""
        return {
            (ending.job.id, ending.job.fence)
            for endings in (self._outbox, self._in_flight)
            for ending in endings
        }

    async def tick(self) -> float:
        """A batch of endings is written; what fails for want of the store stays here."""
        if not self._in_flight:
            outbox = self._outbox
            self._in_flight = [outbox.popleft() for _ in range(min(BATCH, len(outbox)))]
        batch = self._in_flight
        if not batch:
            return FOREVER
        for ending, answer in await self._write(batch):
            again = self._after_refusal(ending, answer)
            if again is not None:
                self._outbox.append(again)
        self._in_flight = []
        self.rounds += 1
        self._settled()
        return 0.0 if self._outbox else FOREVER

    async def _write(self, batch: Sequence[Ending]) -> list[tuple[Ending, Refused]]:
        moves = [self._move(ending) for ending in batch]
        try:
            refused = await self._store.apply(moves)
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(batch) > 1:
                _log.warning("a batch of outcomes holds one that cannot be stored: %s", error)
                return [pair for ending in batch for pair in await self._write([ending])]
            bare = Ending(batch[0].job, Failed(_UNSTORABLE, None))
            if batch[0] == bare:
                raise  # nothing is left that could be left out: it is the store's own trouble
            _log.exception("the outcome of job %s cannot be stored", batch[0].job.id)
            return await self._write([bare])
        if not refused:
            return []
        by_move = {id(move): ending for move, ending in zip(moves, batch, strict=True)}
        return [(by_move[id(answer.transition)], answer) for answer in refused]

    def _move(self, ending: Ending) -> Transition:
        job, outcome, started_at, progress, logs = ending
        return lifecycle.settle(
            job,
            outcome,
            ended=None if started_at is None else self._attempt(job, outcome, started_at),
            progress=progress,
            logs=logs,
        )

    def _attempt(self, job: Claimed, outcome: Outcome, started_at: datetime) -> Attempt | None:
        if isinstance(outcome, (Completed, Stopped)):
            return None  # the job's own row tells of it
        name, info = _NAMES[type(outcome)], _error_of(outcome)
        return Attempt(
            number=job.attempt,
            generation=job.generation,
            fence=job.fence,
            started_at=started_at,
            ended_at=None,
            outcome=name,
            error=None if info is None else str(info),
            traceback=None if info is None else info.traceback,
            worker=self.worker,
            node=self._node,
        )

    def _after_refusal(self, ending: Ending, answer: Refused) -> Ending | None:
        """Return what to write instead, or None: it was ours already, or is another's now."""
        job, move, claim = answer.job, answer.transition, ending.job
        if job is None:
            return None  # pruned, so it had ended before
        if job.fence == move.fence and job.state in FINAL:
            return None  # the reply of our own write was lost
        if job.fence == move.fence and job.state is State.RUNNING and job.cancel_requested:
            return ending._replace(outcome=Stopped())  # a cancel wish came first
        went_back = "fence" in move.changes and job.fence > move.fence
        if went_back and job.crashes == move.changes.get("crashes", claim.crashes):
            return None  # as above: nobody took it away, for then it would have crashed
        self.refused += 1
        _log.warning(
            "job %s (%s) was taken from this worker; its late outcome was refused", job.id, job.kind
        )
        return None


_NAMES: Final[dict[type[Outcome], str]] = {
    Failed: "failed",
    Crashed: "crashed",
    Snoozed: "snoozed",
    Released: "released",
    Parked: "parked",
    GivenBack: "given back",
}


_UNSTORABLE: Final = ErrorInfo("Unstorable", "its outcome cannot be stored: see the worker's log")


def _error_of(outcome: Outcome) -> ErrorInfo | None:
    if isinstance(outcome, Failed):
        return outcome.error
    if isinstance(outcome, Crashed):
        return ErrorInfo("WorkerCrashed", outcome.reason)
    return None
