"""The main program of a child process: read an order, run the handler, say how it ended.

Started as `python -m piecework.engine.child`. What the handler prints goes to stderr, because
stdin and stdout belong to the conversation. When the parent goes, so does the child.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import queue
import sys
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pydantic_core import from_json

from piecework.core.errors import LeaseLost
from piecework.engine import wire
from piecework.engine.executor import Executor
from piecework.engine.reports import encode_partial
from piecework.handlers.codec import Undecodable
from piecework.handlers.definition import Definition, Registered
from piecework.handlers.run import DONE, Channel, Progress, Run
from piecework.observe import LogCapture, RunLogs

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import ModuleType

    import svcs

    from piecework.core.job import JobId, LogLine

MAIN_NAME: Final = "__piecework_main__"


class Parent(Channel):
    """The other end: orders come on stdin, what is said goes to the former stdout."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._sink = sink
        self._source = source
        self._lock = threading.Lock()
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.max_bytes = 0
        threading.Thread(target=self._read, name="piecework-parent", daemon=True).start()

    def _read(self) -> None:
        for line in self._source:
            self._said.put(wire.decode(line))
        os._exit(1)  # the parent is gone, and nobody would take the outcome

    def hear(self) -> dict[str, Any]:
        """Return the next message, waiting for it."""
        return self._said.get()

    def say(self, message: dict[str, Any]) -> None:
        """The parent will read the message."""
        with self._lock:
            self._sink.write(wire.encode(message))
            self._sink.flush()

    def progress(self, run: Run, progress: Progress) -> Awaitable[None]:  # noqa: ARG002 - as the port
        """As `Channel.progress`."""
        self.say({"progress": [progress.done, progress.total, progress.message]})
        return DONE

    def save(self, run: Run, partial: Any) -> Awaitable[None]:
        """As `Channel.save`."""
        text = encode_partial(run.kind, partial, self.max_bytes)
        self.say({"save": from_json(text)})
        if not self.hear()["saved"]:
            raise LeaseLost(run.id)
        return DONE


class _ToldLogs(RunLogs):
    """Each line goes to the parent at once: who is killed has told what led to it."""

    __slots__ = ("_parent",)

    def __init__(self, parent: Parent, job_id: JobId) -> None:
        super().__init__(job_id=job_id)
        self._parent = parent

    def append(self, line: LogLine) -> None:
        """The line is said."""
        self._parent.say({"log": [line.at.timestamp(), line.level, line.logger, line.message]})


class _Loader:
    """Imports handlers; a program that was run as a script is imported under another name."""

    def __init__(self) -> None:
        self._main: ModuleType | None = None

    def load(self, order: dict[str, Any]) -> tuple[Definition, svcs.Registry]:
        """Return the handler of an order, and the services of its app."""
        sys.argv = order["argv"]
        for entry in reversed(order["path"]):
            if entry not in sys.path:
                sys.path.insert(0, entry)
        module = self._script(order["file"]) if order["file"] else self._module(order["module"])
        found: Any = module
        for part in order["qualname"].split("."):
            found = getattr(found, part)
        link: Registered = found.__piecework__
        return link

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(name)

    def _script(self, file: str) -> ModuleType:
        if self._main is None:
            spec = importlib.util.spec_from_file_location(MAIN_NAME, file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} cannot be imported")
            module = sys.modules[MAIN_NAME] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._main = module  # only now: who fails half-way is tried again, and says why
        return self._main


def _run(loop: asyncio.AbstractEventLoop, parent: Parent, loader: _Loader) -> None:
    order = parent.hear()
    try:
        definition, services = loader.load(order)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's module does
        parent.say({"not_loadable": f"{type(error).__name__}: {error}"})
        return
    claim = wire.decode_claim(order["claim"])
    parent.max_bytes = order["max_bytes"]
    deadline = None if order["deadline"] is None else datetime.fromisoformat(order["deadline"])
    run = Run(claim, parent, deadline=deadline, logs=_ToldLogs(parent, claim.id))
    try:
        value = definition.decode(claim.args)
        missing = [needed for needed in definition.needs if needed not in services]
    except Undecodable as error:  # the worker could read them: something is not as it is there
        parent.say({"not_loadable": str(error)})
        return
    if missing:
        name = getattr(missing[0], "__name__", missing[0])
        why = f"{name} is not registered by its module: register services where it is imported"
        parent.say({"not_loadable": why})
        return
    outcome = loop.run_until_complete(Executor(services, None).execute(definition, value, run))
    parent.say(wire.encode_outcome(outcome))


def main() -> None:
    """Run orders until the parent is gone."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the handler reads or prints, or a program that it starts, is not the conversation.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    logging.lastResort = None
    parent, loader = Parent(source, sink), _Loader()
    LogCapture().install()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    parent.say({"ready": True})
    while True:
        _run(loop, parent, loader)


if __name__ == "__main__":
    main()
