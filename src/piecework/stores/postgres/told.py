"""What a write is to be told of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.core.job import NOW
from piecework.ports import Hint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.core.job import NewJob
    from piecework.core.lifecycle import Transition

__all__ = ["CONTROL", "WORK", "of_jobs", "of_moves"]

WORK: Final = Hint(frozenset({"work"}))
WORK_AND_DUE: Final = Hint(frozenset({"work", "due"}))
CONTROL: Final = Hint(frozenset({"control", "work"}))


def of_jobs(jobs: Sequence[NewJob]) -> Hint:
    """Return the hint of an insert."""
    return WORK if all(job.due is NOW for job in jobs) else WORK_AND_DUE


def of_moves(transitions: Sequence[Transition], *, promoted: int) -> Hint:
    """Return the hint of transitions."""
    what = set[Any]()
    if promoted:
        what.add("work")
    for move in transitions:
        state = move.changes["state"].value
        if state == "scheduled":
            what.add("due")
        elif state == "available":
            what.add("work")
        elif state == "running":
            if "cancel_requested" in move.changes:
                what.add("control")
        else:
            what.add("done")
    return Hint(frozenset(what))
