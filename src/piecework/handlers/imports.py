"""Where a handler can be imported from, for processes that start fresh."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

from piecework.core.errors import NotImportable
from piecework.handlers.signature import where

__all__ = ["ImportPath", "import_path_of", "main_module"]


class ImportPath(NamedTuple):
    """How to import a function: by module name, or by `file` where the module is a script."""

    module: str
    file: str | None
    qualname: str


def import_path_of(fn: Any) -> ImportPath:
    """Return where another process finds the function. NotImportable if nowhere."""
    if isinstance(fn, functools.partial) or not hasattr(fn, "__qualname__"):
        raise NotImportable(where(fn), "it has no name of its own: make it a function with def")
    qualname: str = fn.__qualname__
    if "<lambda>" in qualname:
        raise NotImportable(where(fn), "a lambda has no name: make it a function with def")
    if "<locals>" in qualname:
        raise NotImportable(
            where(fn), "it is defined inside a function: move it to the top level of its module"
        )
    if fn.__module__ != "__main__":
        return ImportPath(fn.__module__, None, qualname)
    module, file = main_module()
    if module is None and file is None:
        raise NotImportable(
            where(fn), "the program has no file (a prompt, a notebook or -c): move it to a module"
        )
    return ImportPath(module or "__main__", None if module else file, qualname)


def main_module() -> tuple[str | None, str | None]:
    """Return the real name of `__main__` (`python -m name`) or else its file, if it has one."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name: str = spec.name
        return name, None
    file: str | None = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():
        return None, None
    return None, str(Path(file).resolve())
