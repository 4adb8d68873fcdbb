"""For tests: a clock, jobs, runs to call handlers by hand with, and suites for stores.

The suites need pytest, the machine needs hypothesis; the rest needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from piecework.testing.clock import FakeClock
from piecework.testing.factories import claimed, job, new_job
from piecework.testing.helpers import FakeRun, assert_enqueued, assert_enqueued_sync, make_run

if TYPE_CHECKING:
    from piecework.testing.conformance import StoreConformance
    from piecework.testing.machine import StoreMachine, make_machine

__all__ = [
    "FakeClock",
    "FakeRun",
    "StoreConformance",
    "StoreMachine",
    "assert_enqueued",
    "assert_enqueued_sync",
    "claimed",
    "job",
    "make_machine",
    "make_run",
    "new_job",
]

_LATER: Final = {
    "StoreConformance": ("piecework.testing.conformance", "pytest"),
    "StoreMachine": ("piecework.testing.machine", "hypothesis"),
    "make_machine": ("piecework.testing.machine", "hypothesis"),
}


def __getattr__(name: str) -> Any:
    """Import what needs pytest or hypothesis at its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needs = _LATER[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != needs:
            raise
        raise ImportError(
            f"piecework.testing.{name} needs {needs}: install it with `pip install {needs}`",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return __all__
