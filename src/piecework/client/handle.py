"""A handle: one job to follow and to act on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from piecework.client.client import ended
from piecework.client.options import as_due, as_wait
from piecework.core.job import Attempt, JobId, LogLine, Moment
from piecework.handlers.run import Progress

if TYPE_CHECKING:
    from piecework.client.client import Client
    from piecework.client.views import JobEvent, JobView
    from piecework.handlers.definition import Definition

__all__ = ["Handle", "due_of"]

R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """A job by its id. `created` is False where another job stands for the enqueue.

    Every method raises JobNotFound where there is no such job (any more).
    """

    __slots__ = ("_client", "_definition", "created", "id")

    def __init__(
        self,
        client: Client,
        job_id: JobId,
        definition: Definition | None = None,
        *,
        created: bool = False,
    ) -> None:
        self._client = client
        self._definition = definition
        self.id: JobId = job_id
        self.created = created

    def __repr__(self) -> str:
        """Return the id."""
        return f"<Handle {self.id}>"

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same job."""
        return isinstance(other, Handle) and other.id == self.id

    def __hash__(self) -> int:
        """Return the id's hash."""
        return hash(self.id)

    async def get(self) -> JobView:
        """Return the job with all its fields, as plain data."""
        return await self._client.get(self.id)

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Return what the handler returned, once the job has completed.

        TimeoutError after `timeout` seconds; JobFailed, JobCancelled or JobExpired where the job
        ended otherwise; ResultInvalid where the stored result does not fit the handler's type.
        """
        text = ended(await self._client.wait(self.id, timeout))
        result: R_co = self.decode(text)
        return result

    def decode(self, text: str) -> Any:
        """Return a stored result: typed where the handler is known, else as plain JSON."""
        return (
            json.loads(text) if self._definition is None else self._definition.decode_result(text)
        )

    async def progress(self) -> Progress | None:
        """Return the run's last report with its saved partial result, or None."""
        return await self._client.progress(self.id)

    def watch(self) -> AsyncIterator[JobEvent]:
        """Yield the job as it is, then each change of state or progress, until it is final."""
        return self._client.watch(self.id)

    async def attempts(self) -> list[Attempt]:
        """Return every attempt, oldest first, with its error, worker and node."""
        return await self._client.attempts(self.id)

    async def logs(self) -> list[LogLine]:
        """Return what the runs of the job logged, in order."""
        return await self._client.logs(self.id)

    async def cancel(self, reason: str | None = None) -> bool:
        """Cancel the job.

        True: it is cancelled and never starts, or the wish is recorded and the running handler is
        told within a beat (it may still finish first). False: it had ended otherwise.
        """
        return await self._client.cancel(self.id, reason)

    async def retry(self) -> bool:
        """Run the job again: a final one as a new generation, one put off for later at once.

        False where it runs already or is about to. DuplicateJob while another job holds its key.
        """
        return await self._client.retry(self.id)

    async def reschedule(
        self, *, at: datetime | None = None, delay: float | timedelta | None = None
    ) -> bool:
        """Let the waiting job be due at another time; False where it runs or has ended."""
        return await self._client.reschedule(self.id, due_of(at, delay))

    async def delete(self) -> bool:
        """Remove the ended job with its attempts and logs; False where it is live."""
        return await self._client.delete(self.id)


def due_of(at: datetime | None, delay: float | timedelta | None) -> Moment:
    """Return the moment of exactly one of the two."""
    if (at is None) == (delay is None):
        raise ValueError("give at= or delay=, and not both")
    return as_due(at) if at is not None else as_wait("delay", delay or 0)
