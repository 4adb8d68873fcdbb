"""The files of the demo: find them, name them safely, and add up what is in one."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import unquote_to_bytes

from piecework import GiveUp

__all__ = ["Found", "Sums", "Trouble", "decode_path", "encode_path", "relative", "scan", "sum_up"]

CHUNK: Final = 256 * 1024
_SPACE: Final = b" \t\n\v\f\r"
_BLANKS: Final = bytes(0x20 if byte in _SPACE else 0x78 for byte in range(256))
# As in wc, a control character neither begins a word nor ends one; bytes of UTF-8 belong to words.
_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {*_SPACE})
_OPEN: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # what became a pipe since the scan must not hold us up
)


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file: its absolute path, and a key that is another one once it has changed."""

    path: str
    key: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """A folder or file that could not even be looked at."""

    path: str
    reason: str


class Sums(TypedDict):
    """What is in a file: `lines` and `words` as `wc` counts them in UTF-8 text."""

    sha256: str
    bytes: int
    lines: int
    words: int


# ── find ─────────────────────────────────────────────────────────────────────────────────────


def scan(root: str, skip: Collection[str]) -> Iterator[Found | Trouble]:
    """Yield every regular file below the root, by name; links are not followed."""
    status = Path(root).stat()
    if stat.S_ISREG(status.st_mode):
        yield Found(root, _key(root, root, status))
        return
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield Trouble(folder, f"cannot be listed: {error.strerror}")
            continue
        below: list[str] = []
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and entry.path not in skip:
                    yield Found(
                        entry.path, _key(root, entry.path, entry.stat(follow_symlinks=False))
                    )
            except FileNotFoundError:
                continue  # gone since it was listed
            except OSError as error:
                yield Trouble(entry.path, f"cannot be looked at: {error.strerror}")
        folders += reversed(below)


def _key(root: str, path: str, status: os.stat_result) -> str:
    # ctime, too: a file that has been made readable is worth another try.
    seen = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    text = b"\0".join([os.fsencode(root), os.fsencode(path), *(b"%d" % each for each in seen)])
    return hashlib.blake2b(text, digest_size=16).hexdigest()


# ── name ─────────────────────────────────────────────────────────────────────────────────────


def encode_path(path: str) -> str:
    """Return the path as text for JSON: "%" and bytes that are no UTF-8 become %XX."""
    text = os.fsencode(path).decode("utf-8", "surrogateescape").replace("%", "%25")
    if text.isascii():
        return text
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def relative(path: str, root: str) -> str:
    """Return the path as a person would say it below the root."""
    return Path(path).name if path == root else os.path.relpath(path, root)


def decode_path(text: str) -> str:
    """Return the path that `encode_path` was given."""
    return os.fsdecode(unquote_to_bytes(text))


# ── add up ───────────────────────────────────────────────────────────────────────────────────


def sum_up(path: str, check: Callable[[], None]) -> Sums:
    """Return what is in the file. `check` is called between chunks, and may raise.

    GiveUp with the system's words if the file cannot be read: trying again would not help.
    """
    try:
        return _sum_up(path, check)
    except OSError as error:
        raise GiveUp(_reason(error)) from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "Not a regular file any more"
    return error.strerror or type(error).__name__


def _sum_up(path: str, check: Callable[[], None]) -> Sums:
    digest = hashlib.sha256()
    size = lines = words = 0
    inside = False
    file = os.open(path, _OPEN)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise GiveUp("Not a regular file any more")
        while chunk := os.read(file, CHUNK):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            blanks = chunk.translate(_BLANKS, _CONTROLS)
            # A word begins where an x follows a blank, or the beginning.
            words += blanks.count(b" x") + (not inside and blanks.startswith(b"x"))
            inside = blanks.endswith(b"x") or (inside and not blanks)
            check()
    finally:
        os.close(file)
    return Sums(sha256=digest.hexdigest(), bytes=size, lines=lines, words=words)
