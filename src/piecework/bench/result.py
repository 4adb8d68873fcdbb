"""What a measurement found: ours, the yardstick's, and whether the aim is met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Result"]

_WORDS: Final = {True: "yes", False: "no", None: "–"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the table.

    `ours` is one figure, or two (p50 and p99); `theirs` the yardstick's, in the same unit.
    `least` and `most` bound ours divided by theirs, `ceiling` bounds our figures themselves.
    `broken` says what was not only slow but wrong.
    """

    what: str
    ours: tuple[float, ...]
    unit: str
    yardstick: str = ""
    theirs: float | None = None
    least: float | None = None
    most: float | None = None
    ceiling: tuple[float, ...] | None = None
    note: str = ""
    broken: str = ""

    @property
    def ratio(self) -> float | None:
        """Return ours divided by the yardstick's."""
        return None if self.theirs is None else self.ours[0] / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        if self.broken:
            return False
        verdicts: list[bool] = []
        if self.ratio is not None:
            if self.least is not None:
                verdicts.append(self.ratio >= self.least)
            if self.most is not None:
                verdicts.append(self.ratio <= self.most)
        if self.ceiling is not None:
            verdicts += [a <= b for a, b in zip(self.ours, self.ceiling, strict=True)]
        return all(verdicts) if verdicts else None

    @property
    def aim(self) -> str:
        """The aim in words, empty where there is none: of the ratio with ×, else of ours."""
        parts = [] if self.least is None else [f"≥ {self.least:g}×"]
        parts += [] if self.most is None else [f"≤ {self.most:g}×"]
        if self.ceiling is not None:
            parts.append(f"≤ {' / '.join(f'{bound:g}' for bound in self.ceiling)}")
        return ", ".join(parts)

    def cells(self) -> tuple[str, ...]:
        """Return what, ours, yardstick, ratio, aim, met."""
        remark = self.broken or self.note
        what = f"{self.what} ({remark})" if remark else self.what
        ours = f"{' / '.join(map(_figure, self.ours))} {self.unit}"
        theirs = "" if self.theirs is None else f"{self.yardstick}\n{_figure(self.theirs)}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return what, ours, theirs, ratio, self.aim, _WORDS[self.met]

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "what": self.what,
            "ours": list(self.ours),
            "unit": self.unit,
            "yardstick": self.yardstick or None,
            "theirs": self.theirs,
            "ratio": self.ratio,
            "aim": self.aim or None,
            "met": self.met,
            "note": self.broken or self.note or None,
        }


def _figure(value: float) -> str:
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
