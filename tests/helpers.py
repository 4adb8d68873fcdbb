"""Short words for what many tests of engine and client do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from piecework import Attempt, Handle, JobView, Piecework, State

T = TypeVar("T")
MakeApp = Callable[..., Piecework]

DEADLINE = 10.0
"""Seconds until a test gives up on something that should happen at once."""


async def until(look: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Return the first truthy answer; AssertionError if none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"nothing came in {seconds} s"
        await asyncio.sleep(0.005)


def until_sync(look: Callable[[], T], seconds: float = DEADLINE) -> T:
    """As `until`, for code without a loop."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"nothing came in {seconds} s"
        time.sleep(0.005)


async def state_of(handle: Handle[Any]) -> State:
    return (await handle.get()).state


async def until_state(
    handle: Handle[Any], *states: State | str, seconds: float = DEADLINE
) -> JobView:
    """Return the job once it is in one of the states."""
    wanted = {State(state) for state in states}

    async def look() -> JobView | None:
        view = await handle.get()
        return view if view.state in wanted else None

    found: JobView = await until(look, seconds)
    return found


async def outcomes(handle: Handle[Any]) -> list[str | None]:
    """Return how each attempt ended, oldest first."""
    return [attempt.outcome for attempt in await handle.attempts()]


async def last_attempt(handle: Handle[Any]) -> Attempt:
    return (await handle.attempts())[-1]


class Around:
    """A store around a store, in which each call passes through `around`."""

    CALLS = frozenset(
        {
            *("open", "close", "check", "insert", "claim", "apply", "stage", "beat", "retire"),
            *("orphans", "prune", "configure", "get", "find", "count", "statuses", "attempts"),
            *("logs", "queues", "nodes"),
        }
    )

    def __init__(self, store: Any) -> None:
        self.inner = store
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def app(self, **options: Any) -> Piecework:
        """Return an app on it."""
        store: Any = self
        return Piecework(store, **options)

    async def around(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make the call; to be overridden."""
        return await call()

    def times(self, name: str) -> int:
        return sum(each == name for each, _ in self.calls)

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self.inner, name)
        if name not in self.CALLS:
            return inner

        async def through(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args))
            return await self.around(name, lambda: inner(*args, **kwargs))

        return through
