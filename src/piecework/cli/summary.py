"""What became of the demo's files: added up page by page, shown as tables or as JSON."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from piecework import State
from piecework.cli.files import Sums, decode_path, encode_path, relative
from piecework.cli.show import cell, out, print_table, printable

if TYPE_CHECKING:
    from rich.text import Text

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
        insort(self.largest, (-sums["bytes"], path, sums))
        del self.largest[LARGEST:]

    def add_failure(self, path: str, reason: str) -> None:
        """One more file could not be summed up."""
        self.files += 1
        self.failed += 1
        if self.keep is None or len(self.failures) < self.keep:
            self.failures.append((path, reason))

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
            "largest": [{"path": path, **sums} for _, path, sums in self.largest],
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
        }

    def print(self) -> None:
        """Print the tables."""
        numbers = (self.files, self.failed, self.bytes, self.lines, self.words)
        print_table(_TOTALS, [[cell(f"{number:,}") for number in numbers]], right=_TOTALS)
        if self.largest:
            out("\nLargest:")
            rows = [
                [
                    *[cell(f"{sums[name]:,}") for name in ("bytes", "lines", "words")],
                    cell(f"{sums['sha256'][:8]}…"),
                    self._name(path),
                ]
                for _, path, sums in self.largest
            ]
            head = ("BYTES", "LINES", "WORDS", "SHA-256", "FILE")
            print_table(head, rows, right=_TOTALS, fold=["FILE"])
        if self.failures:
            out("\nFailed:")
            rows = [[self._name(path), cell(reason, "red")] for path, reason in self.failures]
            print_table(("FILE", "REASON"), rows, fold=["FILE", "REASON"])
            if self.failed > len(self.failures):
                out(f"and {self.failed - len(self.failures):,} more")

    def _name(self, path: str) -> Text:
        name = printable(relative(decode_path(path), self.root))
        return cell(name if name == name.strip() else f"'{name}'")


_TOTALS: Final = ("FILES", "FAILED", "BYTES", "LINES", "WORDS")
