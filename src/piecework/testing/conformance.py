"""What every store must do: inherit from StoreConformance, give it your store, run pytest.

from piecework.testing import StoreConformance

class TestMyStore(StoreConformance):
    @pytest.fixture
    async def store(self, clock):
        store = MyStore(clock=clock)
        yield store
        await store.close()
"""

from __future__ import annotations

import pytest

# Before they are imported, so that their asserts show what they compared.
pytest.register_assert_rewrite("piecework.testing.suite")

from piecework.testing.suite.base import AnyStore, StoreFixtures  # noqa: E402
from piecework.testing.suite.claiming import Claiming  # noqa: E402
from piecework.testing.suite.ending import Ending  # noqa: E402
from piecework.testing.suite.inserting import Inserting  # noqa: E402
from piecework.testing.suite.interfering import Interfering  # noqa: E402
from piecework.testing.suite.reading import Reading  # noqa: E402
from piecework.testing.suite.serial_keys import SerialKeys  # noqa: E402
from piecework.testing.suite.unique_keys import UniqueKeys  # noqa: E402
from piecework.testing.suite.upkeep import Upkeep  # noqa: E402

__all__ = ["AnyStore", "StoreConformance"]


class StoreConformance(
    Inserting,
    UniqueKeys,
    SerialKeys,
    Claiming,
    Ending,
    Interfering,
    Upkeep,
    Reading,
    StoreFixtures,
):
    """The suite that accepts a Store and Reader.

    Override the fixture `store`, and `reopen` where the store outlives its object. The ids in the
    tests (I4, F01, C12) are those of Piecework's correctness model: invariants, faults, and the
    conformance list.
    """
