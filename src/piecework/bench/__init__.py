"""Measure Piecework beside bare code and its peers, alternately in one run: ratios, not records."""

from piecework.bench.run import main

__all__ = ["main"]
