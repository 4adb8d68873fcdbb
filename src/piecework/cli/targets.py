"""TARGET -> the app: an attribute of a module, or a store's URL."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import unquote, urlsplit
from uuid import UUID

import typer

from piecework.cli.errors import Failure, WrongUsage, usage
from piecework.cli.show import say

if TYPE_CHECKING:
    from types import ModuleType

    from piecework import Piecework

__all__ = [
    "JsonOption",
    "TargetArgument",
    "is_url",
    "load",
    "split_ids",
    "split_name",
    "with_store",
]

VARIABLE: Final = "PIECEWORK_TARGET"
EXAMPLES: Final = "write module:attr, such as app:app, or a store URL, such as sqlite:///jobs.db"
_ATTRIBUTE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(memory|sqlite|postgres(ql)?):")

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        envvar=VARIABLE,
        show_default=False,
        help="module:attr, such as app:app, or a store URL, such as sqlite:///jobs.db",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def is_url(target: str) -> bool:
    """Whether the target is (meant as) a store's URL."""
    return _URL.match(target) is not None


def load(target: str) -> Piecework:
    """Return the app; its store is not opened yet. WrongUsage or Failure if there is none."""
    if is_url(target):
        from piecework import Piecework

        with usage():
            return Piecework(target)
    if not _ATTRIBUTE.fullmatch(target):
        raise WrongUsage(f"{target!r} is no target: {EXAMPLES}")
    module, _, attribute = target.partition(":")
    if module.endswith(".py"):
        raise WrongUsage(f"{target!r} names a file: write {module.removesuffix('.py')}:{attribute}")
    return _attribute_of(_import(module), module, attribute)


def with_store(target: str, command: Callable[[Piecework], Awaitable[None]]) -> None:
    """The command has been carried out on the app of the target, whose store was opened for it."""
    if is_url(target) and target.startswith("memory:"):
        raise WrongUsage(f"{target} lives and dies with its program: name a file, or module:attr")
    app = load(target)
    new = _file_to_be(target)

    async def run() -> None:
        async with app:
            if new is not None:
                say(f"note: {new} is a new, empty store: was another file meant?")
            await command(app)

    asyncio.run(run())


def _file_to_be(target: str) -> Path | None:
    if not target.startswith("sqlite:"):
        return None
    file = Path(unquote(urlsplit(target).path[1:]))
    return None if file.exists() else file


def _import(module: str) -> ModuleType:
    here = str(Path.cwd())
    if sys.path[:1] not in ([here], [""]):
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise WrongUsage(
                f"there is no module {error.name!r}, neither in {here} nor installed: "
                "run this in your project's folder"
            ) from error
        raise Failure(_why(module, error)) from error
    except (Exception, SystemExit) as error:
        raise Failure(_why(module, error)) from error


def _why(module: str, error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"module {module!r} cannot be imported: {type(error).__name__}: {said}".rstrip(": ")


def _attribute_of(module: ModuleType, name: str, attribute: str) -> Piecework:
    from piecework import Piecework

    found: object = module
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            raise WrongUsage(
                f"module {name!r} has no {attribute!r}{_instead(module, name)}"
            ) from None
    if not isinstance(found, Piecework):
        kind = type(found).__name__
        raise WrongUsage(
            f"{name}:{attribute} is no Piecework but of type {kind!r}{_instead(module, name)}"
        )
    return found


def _instead(module: ModuleType, name: str) -> str:
    from piecework import Piecework

    apps = [each for each, value in vars(module).items() if isinstance(value, Piecework)]
    if not apps:
        return ": name the variable that holds your Piecework(...)"
    return f": did you mean {' or '.join(f'{name}:{each}' for each in apps[:3])}?"


# ── TARGET and what follows it ───────────────────────────────────────────────────────────────


def split_ids(words: list[str]) -> tuple[str, list[UUID]]:
    """Return the target and the job ids of `[TARGET] ID...`."""
    first = words[0]
    if ":" in first and not first.startswith("urn:"):
        target, ids = first, words[1:]
    else:
        target, ids = _default(first), words
    if not ids:
        raise WrongUsage("no job was named: give its ID after the TARGET")
    return target, list(dict.fromkeys(_job_id(text) for text in ids))


def split_name(words: list[str]) -> tuple[str, str]:
    """Return the target and the queue's name of `[TARGET] NAME`."""
    match words:
        case [target, name]:
            return target, name
        case [name]:
            if is_url(name):
                raise WrongUsage("no queue was named: give its NAME after the TARGET")
            return _default(name), name
        case _:
            raise WrongUsage(f"one queue at a time: {len(words)} words were given")


def _default(first: str) -> str:
    target = os.environ.get(VARIABLE)
    if not target:
        raise WrongUsage(f"no TARGET before {first!r} (and no {VARIABLE} is set): {EXAMPLES}")
    return target


def _job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise WrongUsage(
            f"{text!r} is no job id: copy the whole UUID from `piecework jobs list`"
        ) from None
