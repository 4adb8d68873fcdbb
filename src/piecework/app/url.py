"""A store's URL -> the store."""

from __future__ import annotations

import re
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlencode

from piecework.ports import Reader, Store
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore

__all__ = ["AnyStore", "open_url"]

_NAMESPACE: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


class AnyStore(Store, Reader, Protocol):
    """What every store of ours is: both ends in one."""


def open_url(url: str, namespace: str) -> AnyStore:
    """Return the store of a URL; nothing is opened yet. ValueError for a URL nobody knows."""
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"namespace={namespace!r}: use up to 40 lower-case letters, digits and underscores"
        )
    scheme, separator, rest = url.partition(":")
    if not separator:
        raise ValueError(
            f'{url!r} is no store URL: write "sqlite:///jobs.db" for a file, '
            '"postgresql://host/database", or "memory://"'
        )
    if scheme == "memory":
        if rest != "//":
            raise ValueError(f'{url!r}: write "memory://" alone, a memory store has no options')
        return MemoryStore()
    if scheme == "sqlite":
        return _sqlite(url, rest, namespace)
    if scheme in ("postgresql", "postgres"):
        return _postgres(url, namespace)
    raise ValueError(
        f"{scheme}: is no store: there are sqlite:///file, postgresql://host/database and memory://"
    )


def _sqlite(url: str, rest: str, namespace: str) -> SqliteStore:
    if not rest.startswith("///"):
        raise ValueError(f"{url!r}: write sqlite:///file, or sqlite:////absolute/file")
    name, _, query = rest[3:].partition("?")
    path = unquote(name)
    if path in ("", ":memory:"):
        raise ValueError(f'{url!r} names no file: use "memory://" for jobs that need none')
    if "\x00" in path:
        raise ValueError(f"{url!r}: a file name cannot have a NUL character")
    options = dict(parse_qsl(query, keep_blank_values=True))
    given: dict[str, Any] = {}
    if "busy" in options:
        given["busy_seconds"] = _seconds(url, options.pop("busy"))
    if "migrate" in options:
        given["migrate"] = _switch(url, "migrate", options.pop("migrate"))
    if options:
        raise ValueError(
            f"{url!r}: unknown option {next(iter(options))!r}; there are busy, migrate"
        )
    return SqliteStore(path, namespace=namespace, **given)


def _postgres(url: str, namespace: str) -> AnyStore:
    try:
        from piecework.stores.postgres import PostgresStore  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise ImportError(
            "PostgreSQL needs asyncpg: install it with `pip install piecework[postgres]`",
            name="asyncpg",
        ) from error
    base, _, query = url.partition("?")
    _, _, place = base.partition("://")
    user_and_host, _, database = place.partition("/")
    shown = f"postgresql://{user_and_host.rpartition('@')[2]}/{database}"
    if not database:
        raise ValueError(f"{shown!r} names no database: write postgresql://host/database")
    options = dict(parse_qsl(query, keep_blank_values=True))
    given: dict[str, Any] = {}
    for name in ("migrate", "listen"):
        if name in options:
            given[name] = _switch(shown, name, options.pop(name))
    if "pool" in options:
        given["pool"] = _pool(shown, options.pop("pool"))
    # What is left (host, port, sslmode, ...) is the driver's.
    rest = f"?{urlencode(options)}" if options else ""
    return PostgresStore(f"postgresql://{place}{rest}", namespace=namespace, **given)


def _pool(url: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise ValueError(f"{url!r}: pool must be a number from 1 to 100, not {text!r}")
    return int(text)


def _seconds(url: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise ValueError(f"{url!r}: busy must be seconds between 0 and 3600, not {text!r}")
    return seconds


def _switch(url: str, name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f'{url!r}: {name} must be "on" or "off", not {text!r}')
    return text == "on"
