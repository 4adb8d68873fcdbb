"""The command `piecework`: run the demo and workers, look at jobs and queues and act on them.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Errors are one line on stderr that
says what to do; PIECEWORK_TRACEBACK=1 shows the traceback of an error as well.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from io import TextIOWrapper
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from piecework.cli import bench, check, demo, jobs, queues, worker
from piecework.cli.errors import FAILED, INTERRUPTED, WRONG
from piecework.cli.show import say
from piecework.cli.signals import leftover_threads
from piecework.core.errors import NaiveTime, PieceworkError, ScheduleInvalid

__all__ = ["app", "main"]

TRACEBACK: Final = "PIECEWORK_TRACEBACK"


class Door(TyperGroup):
    """The whole command line: whatever goes wrong behind it becomes one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,  # noqa: ARG002 - it has one name, however it is started
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - Typer's own signature
        windows_expand_args: bool = True,  # noqa: FBT001, FBT002 - as above
        **extra: Any,
    ) -> Any:
        """The command has run; the process ends with its exit code."""
        _survive_odd_text()
        run = super().main
        code = _guarded(
            lambda: run(
                args,
                "piecework",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        )
        if standalone_mode:
            sys.exit(code)
        return code


def _survive_odd_text() -> None:
    """A terminal that cannot show a character shows its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _guarded(run: Callable[[], Any]) -> int:
    try:
        code = run()
    except typer.TyperException as error:
        return _tell(error, _with_hint(error), error.exit_code)
    except (NaiveTime, ScheduleInvalid) as error:
        return _tell(error, str(error), WRONG)
    except PieceworkError as error:
        return _tell(error, str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as error:
        return _tell(error, str(error), FAILED)
    except Exception as error:  # noqa: BLE001 - the door: a user never sees a traceback unasked
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return _tell(error, f"{what} (a bug? {TRACEBACK}=1 shows where)", FAILED)
    return code if isinstance(code, int) else 0


def _with_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    message = error.format_message().replace("Value error, ", "")
    if context is None or not message:  # no message: its help was shown
        return message
    return f"{message.rstrip('.')}: see {context.command_path} --help"


def _tell(error: BaseException, message: str, code: int) -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if message:
        say(f"piecework: {' '.join(message.split())}")
    return code


app = typer.Typer(
    cls=Door,
    help="Durable background jobs: run workers, look at jobs and queues, and act on them.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if wanted:
        typer.echo(f"piecework {metadata.version('piecework')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback has the say
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        context.get_help()
        raise typer.Exit(WRONG)


app.command("demo")(demo.command)
app.command("worker")(worker.command)
app.add_typer(jobs.app, name="jobs")
app.add_typer(queues.app, name="queues")
app.command("check")(check.command)
app.command("bench")(bench.command)


def main() -> None:
    """The command line of this process has been carried out; the process ends."""
    code = app(standalone_mode=False)
    if leftover_threads():
        # What runs on in a thread would keep the process. Its job has been released.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
