"""See queues and control them, while jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from piecework.client.client import make_filter
from piecework.core.job import WAITING
from piecework.core.rate import parse_rate
from piecework.handlers.names import check_name
from piecework.ports import QueueChange, QueueInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.client.client import Client
    from piecework.client.views import Report

__all__ = ["Queues"]

MANY: Final = 100_000
_MOST: Final = 2**31 - 1


class Queues:
    """`app.queues`: a queue is only a name, made by use."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self) -> list[QueueInfo]:
        """Return every queue with live jobs or a control, by name."""
        return await self._client.reader.queues()

    async def pause(self, name: str) -> None:
        """A claim that begins from now on takes nothing of the queue; what runs goes on."""
        await self._change(QueueChange(name=check_name("queue", name), paused=True))

    async def resume(self, name: str) -> None:
        """The queue is claimed from again."""
        await self._change(QueueChange(name=check_name("queue", name), paused=False))

    async def limit(
        self,
        name: str,
        *,
        running: int | Literal["unset"] | None = "unset",
        rate: str | None = "unset",
    ) -> None:
        """At most `running` jobs of the queue run at once over the whole fleet, from now on.

        `rate` is "n/window", such as "100/min": a bucket of n tokens, refilled evenly. None lifts
        a limit. ValueError for less than 1 (pause the queue instead), ScheduleInvalid for a rate
        that is not understood.
        """
        if running == "unset" and rate == "unset":
            raise ValueError("give running= or rate=; None lifts a limit")
        if running not in (None, "unset"):
            if isinstance(running, bool) or not isinstance(running, int):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
                raise TypeError(f"running must be an int or None, not {type(running).__name__}")
            if not 1 <= running <= _MOST:
                raise ValueError(
                    f"running={running}: 1 to {_MOST:,} fit; to stop the queue, pause it"
                )
        if rate is not None and not isinstance(rate, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the door
            raise TypeError(f'rate must be text such as "100/min", not {type(rate).__name__}')
        change = QueueChange(
            name=check_name("queue", name),
            running=running,
            rate=rate if rate is None or rate == "unset" else parse_rate(rate),  # type: ignore[arg-type]
        )
        await self._change(change)

    async def clear(self, name: str) -> Sequence[Report]:
        """Cancel what waits in the queue; what runs goes on. One report for each job."""
        waiting = make_filter(queue=check_name("queue", name), state=sorted(WAITING))
        reports: Sequence[Report] = []
        while jobs := await self._client.reader.find(waiting, after=None, limit=MANY):
            done = await self._client.cancel_many([job.id for job in jobs], "queue cleared")
            reports = [*reports, *done]
        return reports

    async def _change(self, change: QueueChange) -> None:
        await self._client.store.configure([change])
