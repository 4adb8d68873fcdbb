"""How to reach the database, and what a driver's error means to whoever reads it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import asyncpg

from piecework.core.errors import SchemaOutdated, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DRIVER_ERRORS", "Settings", "is_lost", "is_retryable", "is_unstorable", "translate"]

OLDEST_SERVER: Final = 14

# Every statement of ours is to follow an index, also where the planner's numbers are stale: a plan
# that was made for an empty table must not scan or sort a full one.
STEADY_PLANS: Final[Mapping[str, str]] = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_sort": "off",
    "jit": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`pooled` means a pooler in transaction mode may stand between: no session state at all.

    `patience` is for how many seconds a lost connection is tried again.
    """

    url: str = field(repr=False)
    namespace: str = "piecework"
    migrate: bool = True
    pooled: bool = False
    pool_size: int = 3
    patience: float = 5.0
    command_seconds: float = 60.0

    @property
    def shown(self) -> str:
        """The URL without its password and options."""
        base, _, query = self.url.partition("?")
        user_and_host, _, database = base.partition("://")[2].partition("/")
        host = user_and_host.rpartition("@")[2] or dict(parse_qsl(query)).get("host", "")
        return f"postgresql://{host}/{database}"


_RETRYABLE: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # Somebody took a serial or unique key between our look and our write: look again.
    asyncpg.UniqueViolationError,
)
DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""Whatever asyncpg raises."""

_LOST: Final[tuple[type[BaseException], ...]] = (
    asyncpg.PostgresConnectionError,
    # A connection that broke in the midst of a write is in no state that the driver knows.
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    OSError,
    TimeoutError,
)
_UNSTORABLE: Final = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, UnicodeError)


def is_retryable(error: BaseException) -> bool:
    """Whether the transaction was rolled back and may simply be done again."""
    return isinstance(error, _RETRYABLE)


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that nobody knows what became of the transaction."""
    if isinstance(error, asyncpg.InterfaceError):
        # The same class tells of arguments that cannot be encoded, and of a closed connection.
        return "clos" in str(error) or "terminat" in str(error) or "lost" in str(error)
    return isinstance(error, _LOST)


def is_unstorable(error: BaseException) -> bool:
    """Whether a value was refused: the server is well, and refuses it for ever."""
    return isinstance(error, _UNSTORABLE) or (
        isinstance(error, asyncpg.InterfaceError) and not is_lost(error)
    )


def translate(error: BaseException, settings: Settings) -> Exception:
    """Return what went wrong in words that say what to do; a bad value is a ValueError."""
    if isinstance(error, StoreUnavailable):
        return error
    if is_unstorable(error):
        return ValueError(f"PostgreSQL cannot store this: {_line(error)}")
    where = settings.shown
    if isinstance(error, (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)):
        return SchemaOutdated(
            f"{where} has no tables, or other ones, in schema {settings.namespace!r} "
            f"({_line(error)}): open it once with a URL that does not say migrate=off"
        )
    return StoreUnavailable(f"{where}: {_advice(error, settings)}")


def _advice(error: BaseException, settings: Settings) -> str:
    text = _line(error)
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return f"{text}: check the user and the password in the URL"
        case asyncpg.InvalidCatalogNameError():
            return f"{text}: create it, or name another one in the URL"
        case asyncpg.InsufficientPrivilegeError() | asyncpg.InvalidSchemaNameError():
            return (
                f"{text}: let the user create the schema (GRANT CREATE ON DATABASE ...), or have "
                f"its owner make it and grant all on schema {settings.namespace}"
            )
        case asyncpg.TooManyConnectionsError():
            return (
                f"{text}: raise max_connections, or let fewer processes in (each takes up to "
                f"{2 * settings.pool_size + 2}; ?pool=1 takes fewer)"
            )
        case asyncpg.CannotConnectNowError() | asyncpg.AdminShutdownError():
            return f"{text}: the server restarts; try again in a moment"
        case asyncpg.ReadOnlySQLTransactionError():
            return f"{text}: this server is a standby; name the primary in the URL"
        case socket.gaierror():
            return f"unknown host ({text}): check the host in the URL"
        case TimeoutError():
            return "no answer in time: check that the server runs and the network lets it through"
        case OSError():
            return f"no server answers ({text}): start it, or check host and port in the URL"
        case _:
            return text


def _line(error: BaseException) -> str:
    first: Any = str(error).strip().splitlines() or [type(error).__name__]
    return str(first[0])
