"""How often a queue may start jobs, as people write it: "100/min"."""

from __future__ import annotations

import re
from typing import Final

from piecework.core.errors import ScheduleInvalid

__all__ = ["parse_rate"]

_SECONDS: Final = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86_400.0,
    "day": 86_400.0,
}
_RATE: Final = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{1,9}(?:\.\d{1,6})?)?\s*([a-z]+)\s*")


def parse_rate(text: str) -> tuple[int, float]:
    """Return (n, window in seconds) of "n/window": "5/s", "100/min", "10/30s", "1000/hour".

    ScheduleInvalid for anything else, and for a rate of 0 (pause the queue instead).
    """
    match = _RATE.fullmatch(text.lower())
    unit = _SECONDS.get(match[3].removesuffix("s") or "s") if match else None
    if match is None or unit is None:
        raise ScheduleInvalid(
            f'rate {text!r} is not understood: write "n/unit" with s, min, hour or day, '
            'such as "100/min" or "10/30s"'
        )
    n, window = int(match[1]), float(match[2] or 1) * unit
    if n < 1 or window <= 0:
        raise ScheduleInvalid(f"rate {text!r} lets nothing through: pause the queue instead")
    return n, window
