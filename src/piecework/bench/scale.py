"""How much of everything is measured: a quick look, the whole, or a token amount for a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "QUICK", "TINY", "Scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Numbers of jobs, unless the name says otherwise."""

    rounds: int
    memory: int
    drain: int
    one_by_one: int
    producers: int
    keyed: int
    stored: int
    few_stored: int
    peers: int
    latencies: int
    busy_seconds: float
    idle_seconds: float
    soak: int


QUICK: Final = Scale(
    rounds=3,
    memory=20_000,
    drain=10_000,
    one_by_one=500,
    producers=5_000,
    keyed=10_000,
    stored=50_000,
    few_stored=10_000,
    peers=1_000,
    latencies=150,
    busy_seconds=1.5,
    idle_seconds=5.0,
    soak=40_000,
)
FULL: Final = Scale(
    rounds=5,
    memory=100_000,
    drain=50_000,
    one_by_one=3_000,
    producers=20_000,
    keyed=100_000,
    stored=1_000_000,
    few_stored=10_000,
    peers=10_000,
    latencies=1_000,
    busy_seconds=10.0,
    idle_seconds=10.0,
    soak=1_000_000,
)
TINY: Final = Scale(
    rounds=1,
    memory=50,
    drain=50,
    one_by_one=10,
    producers=200,
    keyed=20,
    stored=200,
    few_stored=20,
    peers=10,
    latencies=5,
    busy_seconds=0.1,
    idle_seconds=0.1,
    soak=200,
)
