"""Which of the waiting jobs a claim may take, and what a rate allows: pure, shared by stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from piecework.ports import Ask

__all__ = ["PASSED_OVER", "Candidate", "QueueCap", "pick", "refill", "take"]

PASSED_OVER: Final = 10
"""How many rows a claim passes over at most, for each that it asks for."""

_ALMOST: Final = 1e-9


class QueueCap(NamedTuple):
    """What a controlled queue still allows: running jobs, and whole tokens; None: any number."""

    running: int | None = None
    tokens: float | None = None

    @property
    def room(self) -> int | None:
        """How many more jobs may be claimed from it; None: any number."""
        # 0.6 s at 100 a minute is one token, but for the last bit of a float.
        tokens = None if self.tokens is None else int(self.tokens + _ALMOST)
        if self.running is None or tokens is None:
            return tokens if self.running is None else self.running
        return min(self.running, tokens)

    @property
    def closed(self) -> bool:
        """Whether nothing may be claimed from it."""
        room = self.room
        return room is not None and room <= 0


class Row(Protocol):
    """What `take` looks at."""

    @property
    def kind(self) -> str:
        """Its kind."""
        ...

    @property
    def queue(self) -> str:
        """Its queue."""
        ...

    @property
    def affordable(self) -> bool:
        """Whether it can afford a crash: none so far, and an attempt left after this one."""
        ...


class Candidate(NamedTuple):
    """A waiting job as `pick` sees it; `id` is whatever the store calls its rows."""

    id: Any
    kind: str
    queue: str
    affordable: bool


R = TypeVar("R", bound=Row)


def pick(candidates: Iterable[R], ask: Ask, caps: Mapping[str, QueueCap]) -> list[R]:
    """The candidates that the ask may have, in their order.

    The first `free` are any; `ahead` more only those that can afford a crash. No kind gets more
    than its room in the worker, no queue more than its cap.
    """
    left = {name: room for name, cap in caps.items() if (room := cap.room) is not None}
    return take(candidates, ask, left)


def take(candidates: Iterable[R], ask: Ask, left: dict[str, int]) -> list[R]:
    """As `pick`; `left` maps each capped queue to its room, and is lowered by what was chosen."""
    want = ask.free + ask.ahead
    chosen: list[R] = []
    if want <= 0:
        return chosen
    free, rooms, patience = ask.free, dict(ask.rooms), PASSED_OVER * want
    for row in candidates:
        queue_left = left.get(row.queue) if left else None
        if queue_left is not None and queue_left <= 0:
            continue
        room = rooms.get(row.kind) if rooms else None
        if (room is not None and room <= 0) or (len(chosen) >= free and not row.affordable):
            patience -= 1
            if patience <= 0:
                break
            continue
        if queue_left is not None:
            left[row.queue] = queue_left - 1
        if room is not None:
            rooms[row.kind] = room - 1
        chosen.append(row)
        if len(chosen) == want:
            break
    return chosen


def refill(tokens: float, refilled_at: datetime, now: datetime, n: int, window: float) -> float:
    """The tokens in the bucket at `now`: at most n, n of them coming evenly in `window` seconds.

    Keep the later of `refilled_at` and `now` with them: then a clock that steps back, and forward
    again, adds none, and claims in any span T stay within n + n · T / window (I14).
    """
    passed = (now - refilled_at).total_seconds()
    return min(float(n), tokens + max(0.0, passed) * n / window)
