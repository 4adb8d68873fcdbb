"""Take turns: ours, the yardstick, ours, the yardstick, so that a noisy machine disturbs both."""

from __future__ import annotations

import gc
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Stopwatch", "alternate", "p50_p99"]


def alternate(rounds: int, *contestants: Callable[[], float]) -> list[float]:
    """Return the median of each one's figures, taken in turns."""
    figures: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for measure, taken in zip(contestants, figures, strict=True):
            gc.collect()  # nobody pays for what another left behind
            taken.append(measure())
    return [median(taken) for taken in figures]


def p50_p99(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the two in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[98] * 1e3


class Stopwatch:
    """`with Stopwatch() as watch: ...`, then `watch.seconds`."""

    def __enter__(self) -> Self:
        """Start."""
        self.seconds = 0.0
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = perf_counter() - self._began

    def rate(self, count: int) -> float:
        """Return so many in the time taken, by the second."""
        return count / self.seconds
