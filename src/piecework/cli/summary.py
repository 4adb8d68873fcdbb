"""What became of the demo's files: added up page by page, shown as tables or as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Any, Final

from piecework import State
from piecework.cli.files import Sums, decode_path, encode_path
from piecework.cli.show import cell, console, out, printable, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework import JobView

__all__ = ["SHOWN_FAILURES", "Summary"]

LARGEST: Final = 10
SHOWN_FAILURES: Final = 20


@dataclass
class Summary:
    """Totals over all files that were read, the largest ones, and what failed.

    At most `keep` failures are kept, None keeps all; `failed` counts them all the same.
    """

    root: str
    keep: int | None = SHOWN_FAILURES
    files: int = 0
    done: int = 0
    failed: int = 0
    bytes: int = 0
    lines: int = 0
    words: int = 0
    largest: list[tuple[int, str, Sums]] = field(default_factory=list[tuple[int, str, Sums]])
    failures: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def add(self, job: JobView) -> None:
        """One more job counts."""
        path: str = job.args["path"]
        if job.state is not State.COMPLETED:
            why = job.error or job.reason
            if job.state is State.FAILED:
                self.add_failure(path, (why or "for no reason").removeprefix("GiveUp: "))
            else:
                self.add_failure(path, f"{job.state}: {why}" if why else job.state)
            return
        sums: Sums = job.result
        self.files += 1
        self.done += 1
        self.bytes += sums["bytes"]
        self.lines += sums["lines"]
        self.words += sums["words"]
        ranked = (sums["bytes"], path, sums)
        if len(self.largest) < LARGEST:
            heappush(self.largest, ranked)
        elif ranked[:2] > self.largest[0][:2]:
            heappushpop(self.largest, ranked)

    def add_failure(self, path: str, reason: str) -> None:
        """One more file could not be summed up."""
        self.files += 1
        self.failed += 1
        if self.keep is None or len(self.failures) < self.keep:
            self.failures.append((path, reason))

    def _ranked(self) -> Sequence[tuple[int, str, Sums]]:
        return sorted(self.largest, key=lambda each: (-each[0], each[1]))

    # ── shown ────────────────────────────────────────────────────────────────────────────────

    def plain(self) -> dict[str, Any]:
        """Return the summary as data; in paths, "%" and what is no UTF-8 are written %XX."""
        return {
            "path": encode_path(self.root),
            "files": self.files,
            "done": self.done,
            "failed": self.failed,
            "bytes": self.bytes,
            "lines": self.lines,
            "words": self.words,
            "largest": [{"path": path, **sums} for _, path, sums in self._ranked()],
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
        }

    def print(self) -> None:
        """Print the tables."""
        terminal = console()
        totals = table("FILES", "FAILED", "BYTES", "LINES", "WORDS", right=_NUMBERS)
        numbers = (self.files, self.failed, self.bytes, self.lines, self.words)
        totals.add_row(*[cell(f"{number:,}") for number in numbers])
        terminal.print(totals)
        if self.largest:
            out(f"\nThe largest{f' {len(self.largest)}' if len(self.largest) > 1 else ''}:")
            shown = table("BYTES", "LINES", "WORDS", "SHA-256", "FILE", right=_NUMBERS)
            shown.columns[-1].overflow, shown.columns[-1].no_wrap = "fold", False
            for size, path, sums in self._ranked():
                shown.add_row(
                    cell(f"{size:,}"),
                    cell(f"{sums['lines']:,}"),
                    cell(f"{sums['words']:,}"),
                    cell(f"{sums['sha256'][:8]}…"),
                    cell(self._relative(path)),
                )
            terminal.print(shown)
        if self.failures:
            out(f"\nFailed: {self.failed:,}")
            shown = table("REASON", "FILE")
            shown.columns[-1].overflow, shown.columns[-1].no_wrap = "fold", False
            for path, reason in self.failures:
                shown.add_row(cell(reason), cell(self._relative(path)))
            terminal.print(shown)
            if self.failed > len(self.failures):
                out(f"and {self.failed - len(self.failures):,} more")

    def _relative(self, path: str) -> str:
        file = decode_path(path)
        shown = os.path.relpath(file, self.root) if file != self.root else os.path.basename(file)
        return printable(shown)


_NUMBERS: Final = ("FILES", "FAILED", "BYTES", "LINES", "WORDS")
