"""How long to wait before the next attempt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Retry", "exponential"]

_MAX_SECONDS = 365 * 86_400.0


def exponential(attempt: int, *, base: float, factor: float, cap: float) -> float:
    """The seconds before attempt + 1: base · factor^(attempt-1), at most cap.

    `attempt` counts from 1; ValueError if it is smaller. No jitter.
    Source: truncated binary exponential back-off, IEEE 802.3.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    try:
        return min(cap, base * factor ** (attempt - 1))
    except OverflowError:
        return cap


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off in seconds, or fixed `delays` of which the last repeats.

    With `jitter` the wait is uniform between 0 and the computed one ("full jitter", Brooker,
    AWS Architecture Blog 2015). Errors of a `give_up_on` class are not retried.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: bool = True
    delays: Sequence[float] | None = None
    give_up_on: Sequence[type[BaseException]] | type[BaseException] = ()

    def __post_init__(self) -> None:
        for name in ("base", "factor", "cap"):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Retry({name}={value}): give a finite number of at least 0")
        if self.delays is not None and not all(math.isfinite(d) and d >= 0 for d in self.delays):
            raise ValueError(f"Retry(delays={self.delays}): give finite seconds of at least 0")

    def gives_up_on(self, error: BaseException) -> bool:
        """Whether this error is never retried."""
        classes = self.give_up_on
        return isinstance(error, classes if isinstance(classes, type) else tuple(classes))

    def delay(self, attempt: int, *, spread: float = 1.0) -> float:
        """The seconds before attempt + 1, at most a year. `spread` in [0, 1] is the dice."""
        if self.delays:
            seconds = self.delays[min(attempt, len(self.delays)) - 1]
        else:
            seconds = exponential(attempt, base=self.base, factor=self.factor, cap=self.cap)
        if self.jitter:
            seconds *= spread
        return min(seconds, _MAX_SECONDS)
