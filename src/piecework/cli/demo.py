"""`piecework demo`: every file below a folder becomes a job; killed and run again, it goes on.

The jobs stay in the database, each under a unique key made of path, size and times: the same
command again enqueues only what is new or has changed. The jobs of one PATH are one queue.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote
from uuid import UUID

import typer

from piecework import Handler, Piecework, Prepared, Retention, Retry, Run, State
from piecework.cli import logs
from piecework.cli.errors import WrongUsage
from piecework.cli.files import (
    Found,
    Sums,
    Trouble,
    decode_path,
    encode_path,
    relative,
    scan,
    sum_up,
)
from piecework.cli.meter import Meter, Tally, make_meter
from piecework.cli.show import json_out, out, printable
from piecework.cli.signals import Stopper, stopper
from piecework.cli.summary import SHOWN_FAILURES, Summary
from piecework.core.job import LIVE

if TYPE_CHECKING:
    import signal

    from piecework import JobView

__all__ = ["command"]

KIND: Final = "demo.file"
LEASE_SECONDS: Final = 5
MANY: Final = 100
MAX_CRASHES: Final = 10
BATCH: Final = 1_000
PAGE: Final = 500
ID_BYTES: Final = 16
FIRST_POLL_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.5
GONE: Final = "its file has changed or gone"
NO_SUCH_FILE: Final = os.strerror(errno.ENOENT)
_UNHAPPY: Final = frozenset({State.CANCELLED, State.FAILED})
KEPT: Final = Retention(completed=None, failed=None, cancelled=None, expired=None)


def command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", show_default=False, help="A folder, or a file.")
    ],
    *,
    db: Annotated[
        str, typer.Option(metavar="FILE", help="The SQLite file that keeps the jobs.")
    ] = "piecework-demo.db",
    concurrency: Annotated[int, typer.Option(min=1, max=1_000, help="Files at once.")] = 8,
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON document.")
    ] = False,
) -> None:
    """Sum up every file below PATH, each as a job: SHA-256, bytes, lines, words.

    Stop it, or kill it, and run the same command again: it goes on where it stopped. A file that
    cannot be read fails alone and is listed at the end; the exit code is 0 all the same. Ctrl-C
    lets running jobs finish (a second one does not) and ends with exit code 130.
    """
    root = Path(os.path.realpath(path))
    if not root.exists():
        raise WrongUsage(f"there is no {path!r}: name a folder, or a file")
    if not (root.is_dir() or root.is_file()):
        raise WrongUsage(f"{path!r} is neither a folder nor a regular file")
    if "://" in db or db.startswith("sqlite:"):
        raise WrongUsage(f"--db {db!r}: give the name of a file, such as piecework-demo.db")
    logs.configure("ERROR")
    demo = Demo(str(root), os.path.realpath(db), concurrency)
    summary = asyncio.run(demo.run(Summary(str(root), keep=None if json else SHOWN_FAILURES)))
    if summary is None:
        raise typer.Exit(demo.exit_code)
    if json:
        json_out({**summary.plain(), "new": demo.created})
    else:
        summary.print()
        out(f"\nEach file's sums: piecework jobs list sqlite:///{printable(quote(db))} --json")


class Demo:
    """One run of the command: find the files, enqueue them, work, sum up.

    `ids` are the jobs of this PATH as it is now; `stale` counts what ended of the others in its
    queue: files that have changed, or gone, since an earlier run.
    """

    def __init__(self, root: str, db: str, concurrency: int) -> None:
        self.root = root
        self.db = db
        name = printable(Path(root).name)[:40] or "root"
        mark = hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()
        self.queue = f"demo-{name}-{mark}"
        self.app = Piecework(f"sqlite:///{quote(db)}", retention=KEPT)
        self.digest = _register(self.app)
        self.worker = self.app.make_worker(
            queues=[self.queue], concurrency=concurrency, lease=LEASE_SECONDS
        )
        self.ids = bytearray()  # packed: a million jobs are 16 MB
        self.created = 0
        self.stale: Counter[State] = Counter()
        self.troubles: list[Trouble] = []
        self.exit_code = 0

    async def run(self, summary: Summary) -> Summary | None:
        """Return the summary; None, with `exit_code` set, if a signal came before the end."""
        async with self.app:
            meter = make_meter()

            def told(received: signal.Signals, count: int) -> None:
                if count == 1:
                    meter.tell("stopping: what runs is finished; once more releases it at once")
                elif count > 2:
                    os._exit(128 + received)

            with stopper(told) as stop:
                try:
                    complete = await self._enqueue(stop, meter)
                    if complete:
                        await self._sort_out()
                    tally = await self._work(stop, meter) if complete else await self._tally()
                finally:
                    meter.close()
            if not complete or tally.live:
                self.exit_code = stop.exit_code
                found = "files" if complete else "files found so far"
                meter.tell(
                    f"stopped: {tally.ended:,} of {tally.total:,} {found} are done; "
                    "the same command goes on from there"
                )
                return None
            await self._sum_up(summary)
        return summary

    # ── enqueue ──────────────────────────────────────────────────────────────────────────────

    async def _enqueue(self, stop: Stopper, meter: Meter) -> bool:
        """Every file is a job; False if a signal came before all were found."""
        files = scan(self.root, {self.db + end for end in ("", "-wal", "-shm", "-journal")})
        while batch := await asyncio.to_thread(lambda: list(islice(files, BATCH))):
            if stop.asked.is_set():
                return False
            self.troubles += [each for each in batch if isinstance(each, Trouble)]
            jobs = [self._prepare(each) for each in batch if isinstance(each, Found)]
            for handle in await self.app.enqueue_many(jobs):
                self.ids += handle.id.bytes
                self.created += handle.created
            meter.found(len(self.ids) // ID_BYTES)
        return True

    def _prepare(self, file: Found) -> Prepared[Sums]:
        name = printable(relative(file.path, self.root))[-200:]
        using = self.digest.using(
            queue=self.queue,
            unique_key=file.key,
            unique="forever",
            name=name if name.strip() else None,
        )
        return using.prepare(encode_path(file.path))

    async def _sort_out(self) -> None:
        """What an earlier run left for files that have changed or gone since is set aside."""
        counts = await self.app.count()
        mine = {state: n for (queue, state), n in counts.items() if queue == self.queue}
        if sum(mine.values()) == self._total and mine.keys().isdisjoint(_UNHAPPY):
            return
        ours = {job_id.bytes for page in self._pages() for job_id in page}
        async for jobs in self._in_queue():
            stale = [job for job in jobs if job.id.bytes not in ours]
            self.stale.update(State.CANCELLED if job.state in LIVE else job.state for job in stale)
            if gone := [job.id for job in stale if job.state in LIVE]:
                await self.app.cancel_many(ids=gone, reason=GONE)
            # It had gone, but here it is again: in a folder that was moved away and back, say.
            if back := [job.id for job in jobs if job.id.bytes in ours and _was_gone(job)]:
                await self.app.retry_many(ids=back)

    async def _in_queue(self) -> AsyncIterator[list[JobView]]:
        last: JobView | None = None
        while jobs := await self.app.find(queue=self.queue, after=last, limit=PAGE):
            yield jobs
            last = jobs[-1]

    @property
    def _total(self) -> int:
        return len(self.ids) // ID_BYTES

    def _pages(self) -> Iterator[list[UUID]]:
        for start in range(0, len(self.ids), PAGE * ID_BYTES):
            page = bytes(self.ids[start : start + PAGE * ID_BYTES])
            yield [UUID(bytes=page[at : at + ID_BYTES]) for at in range(0, len(page), ID_BYTES)]

    # ── work ─────────────────────────────────────────────────────────────────────────────────

    async def _work(self, stop: Stopper, meter: Meter) -> Tally:
        tally = await self._tally()
        meter.begin(tally)
        if tally.live and not stop.asked.is_set():
            await self.worker.start()
            try:
                await self._watch(stop, meter)
            finally:
                await self.worker.stop(now=stop.now)
                await self.worker.abandon()
            tally = await self._tally()
            meter.show(tally)
        return tally

    async def _watch(self, stop: Stopper, meter: Meter) -> None:
        """Show how far it is, until all is done or a signal came."""
        loop = asyncio.get_running_loop()
        delay = FIRST_POLL_SECONDS
        while not stop.asked.is_set():
            began = loop.time()
            tally = await self._tally()
            if not tally.live:
                return
            meter.show(tally)
            delay = max(min(2 * delay, POLL_SECONDS), 10 * (loop.time() - began))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.asked.wait(), delay)

    async def _tally(self) -> Tally:
        count: Counter[State] = Counter()
        for (queue, state), n in (await self.app.count()).items():
            if queue == self.queue:
                count[state] = max(0, n - self.stale[state])
        return Tally(
            done=count[State.COMPLETED],
            failed=count[State.FAILED] + count[State.CANCELLED] + count[State.EXPIRED],
            live=sum(count[state] for state in LIVE),
            running=count[State.RUNNING],
        )

    # ── sum up ───────────────────────────────────────────────────────────────────────────────

    async def _sum_up(self, summary: Summary) -> None:
        for ids in self._pages():
            found = {job.id.bytes: job for job in await self.app.find(ids=ids, limit=PAGE)}
            for job in (found[each.bytes] for each in ids if each.bytes in found):
                summary.add(job)
        for trouble in self.troubles:
            summary.add_failure(encode_path(trouble.path), trouble.reason)


def _was_gone(job: JobView) -> bool:
    return job.state in _UNHAPPY and (job.reason == GONE or job.error == f"GiveUp: {NO_SUCH_FILE}")


def _register(app: Piecework) -> Handler[[Run, str], Sums, [str], Sums]:
    # Nothing is tried twice: a file that cannot be read now has said why. Crashes, though, are
    # this command being killed, so they hardly count.
    @app.handler(
        kind=KIND, max_attempts=MANY, max_crashes=MAX_CRASHES, retry=Retry(give_up_on=(Exception,))
    )
    def digest(run: Run, path: str) -> Sums:
        return sum_up(decode_path(path), run.check)

    return digest
