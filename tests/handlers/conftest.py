import uuid
from collections.abc import Callable
from typing import Any

import pytest
import svcs

from piecework.core.job import Claimed, JobId
from piecework.handlers.injection import open_services
from piecework.handlers.registry import Definition, Registry
from piecework.handlers.run import DONE, Progress, Run


class _Nowhere:
    def progress(self, run: Run, progress: Progress) -> Any:
        return DONE

    def save(self, run: Run, partial: Any) -> Any:
        return DONE


@pytest.fixture
def run() -> Run:
    claimed = Claimed(
        id=JobId(uuid.UUID(int=1)),
        fence=1,
        kind="test",
        args="{}",
        attempt=1,
        max_attempts=5,
        crashes=0,
        max_crashes=3,
        generation=1,
        queue="default",
        name=None,
        timeout=None,
        metadata=None,
        schedule=None,
        tick=None,
        count=None,
        parked=0,
        result_ttl=None,
    )
    return Run(claimed, _Nowhere())


@pytest.fixture
def registry() -> Registry:
    return Registry(svcs.Registry())


Call = Callable[..., Any]


@pytest.fixture
def call(registry: Registry, run: Run) -> Call:
    """Enqueue and run: through the stored text, with services, as a worker does."""

    async def call(definition: Definition, *args: Any, **kwargs: Any) -> Any:
        value = definition.decode(definition.encode(args, kwargs))
        container, services = await open_services(definition, registry.services)
        try:
            returned = definition.invoke(value, run, services)
            return await returned if definition.is_async else returned
        finally:
            await container.aclose()

    return call
