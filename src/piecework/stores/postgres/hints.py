"""Hints between processes: NOTIFY after the commit, at most one in 5 ms; one LISTEN for all."""

from __future__ import annotations

import asyncio
import logging
import random
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from piecework.core.errors import StoreUnavailable
from piecework.ports import Hint
from piecework.stores.postgres.pool import connect
from piecework.stores.postgres.settings import DRIVER_ERRORS, is_lost, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from piecework.stores._hints import Hub
    from piecework.stores.postgres.lane import Lane
    from piecework.stores.postgres.settings import Settings

__all__ = ["NOTIFY", "Ears", "Voice", "channel", "new_sender", "payload"]

_log: Final = logging.getLogger("piecework.stores.postgres")

QUIET_SECONDS: Final = 0.005
PING_SECONDS: Final = 30.0
PING_TIMEOUT: Final = 5.0
SLOWEST_RETRY: Final = 5.0
SHORT_LIFE: Final = 1.0
_LETTERS: Final = {"work": "w", "due": "u", "control": "c", "done": "d"}
_WORDS: Final = {letter: word for word, letter in _LETTERS.items()}
_EVERYTHING: Final = frozenset(_LETTERS)

NOTIFY: Final = "SELECT pg_notify($1, $2)"
# A notification is a commit: without this it would wait for the disk, and hold up others' commits.
NOTIFY_ALONE: Final = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


def channel(namespace: str) -> str:
    """Return the namespace's channel: a hash, since names are limited and ours are not."""
    return "piecework_" + blake2s(namespace.encode(), digest_size=10).hexdigest()


def payload(what: Iterable[str], sender: str = "") -> str:
    """Return what is told, and by whom; the listeners of the sender's process know already."""
    return "".join(sorted(_LETTERS[word] for word in what)) + ":" + sender


class Voice:
    """Tells the listeners of this process at once, and those of others after at most 5 ms."""

    def __init__(self, settings: Settings, hub: Hub, sender: str, lane: Lane) -> None:
        self._settings = settings
        self._channel = channel(settings.namespace)
        self._hub = hub
        self._sender = sender
        self._lane = lane
        self._pending: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.sent = 0

    def tell(self, hint: Hint) -> None:
        """Everybody who listens hears of it soon."""
        self._hub.tell(hint)
        if self._settings.pooled or not hint.what:
            return
        self._pending |= hint.what
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="piecework notify")

    async def _send(self) -> None:
        while self._pending:
            what, self._pending = self._pending, set()
            try:
                await self._notify(what)
            except StoreUnavailable as error:
                _log.debug("a hint was lost: %s", error)
            await asyncio.sleep(QUIET_SECONDS)

    async def _notify(self, what: set[str]) -> None:
        text = payload(what, self._sender)
        self.sent += 1
        await self._lane.run(
            lambda tx: tx.fetch(NOTIFY_ALONE, self._channel, text), transaction=False, again=False
        )

    async def flush(self) -> None:
        """What was told is on its way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._pending:
            what, self._pending = self._pending, set()
            try:
                await asyncio.wait_for(self._notify(what), 1)
            except (StoreUnavailable, TimeoutError) as error:
                _log.debug("the last hint was lost: %s", error)


class Ears:
    """One connection of this event loop that listens, while anybody here wants to hear."""

    def __init__(self, settings: Settings, hub: Hub, sender: str) -> None:
        self._settings = settings
        self._channel = channel(settings.namespace)
        self._hub = hub
        self._sender = sender
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    def hold(self) -> None:
        """One more wants to hear."""
        self._listeners += 1
        if not self._settings.pooled and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._listen(), name="piecework ears")

    async def release(self) -> None:
        """One fewer wants to hear."""
        self._listeners -= 1
        if self._listeners == 0:
            await self.close()

    async def close(self) -> None:
        """Nothing is heard from others any more."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self) -> None:
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._listen_once(again=failures > 0)
                error = StoreUnavailable("the server closed the connection")
            except StoreUnavailable as lost:
                error = lost
            failures = 1 if clock() - began > SHORT_LIFE else failures + 1
            if failures == 1:
                _log.warning("hints are not heard until the listener is back: %s", error)
            wait = min(SLOWEST_RETRY, 0.1 * 2 ** min(failures - 1, 10))
            await asyncio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - no secret

    async def _listen_once(self, *, again: bool) -> None:
        connection = await connect(self._settings, "listen")
        ended = asyncio.Event()
        try:
            connection.add_termination_listener(ended_by(ended))
            await connection.add_listener(self._channel, self._heard)
            # What was told while nobody listened is told now.
            self._hub.tell(Hint(cast("Any", _EVERYTHING if again else frozenset({"work", "due"}))))
            while not connection.is_closed():
                try:
                    await asyncio.wait_for(ended.wait(), PING_SECONDS)
                except TimeoutError:
                    # Of a connection that is half open nobody tells: ask.
                    await connection.execute("SELECT 1", timeout=PING_TIMEOUT)
        except DRIVER_ERRORS as error:
            if not is_lost(error):
                raise translate(error, self._settings) from error
        finally:
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, _channel: str, text: object) -> None:
        letters, _, sender = str(text).partition(":")
        if sender == self._sender:
            return
        # Anybody may notify on a channel: what is not understood is no hint.
        what = frozenset(_WORDS[letter] for letter in letters[:8] if letter in _WORDS)
        if what:
            self._hub.tell(Hint(cast("Any", what)))


def ended_by(ended: asyncio.Event) -> Callable[[object], None]:
    """Return a listener that sets the event."""
    return lambda _: ended.set()


def new_sender() -> str:
    """Return a name for this process's notifications."""
    return uuid4().hex[:16]
