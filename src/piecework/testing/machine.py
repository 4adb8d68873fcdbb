"""Random histories of a store beside a model: after every step both must show the same jobs.

    TestMyStore = make_machine(my_store).TestCase

where `my_store(clock)` is an async context manager that gives a fresh, empty store.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from piecework.core import lifecycle
from piecework.core.errors import DuplicateJob
from piecework.core.job import FINAL, LIVE, WAITING, Attempt, JobId, Retention, State, WorkerId
from piecework.core.lifecycle import (
    EDGES,
    RUNNING,
    Completed,
    Crashed,
    ErrorInfo,
    Failed,
    GivenBack,
    Parked,
    Released,
    Snoozed,
    Stopped,
)
from piecework.ports import Ask, Beat, Fate, QueueChange
from piecework.testing.clock import FakeClock
from piecework.testing.factories import new_job
from piecework.testing.model import Controls, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from piecework.core.job import Claimed, Job, NewJob
    from piecework.core.lifecycle import Outcome, Transition
    from piecework.testing.suite.base import AnyStore

__all__ = ["StoreMachine", "make_machine"]

T = TypeVar("T")
Factory: TypeAlias = "Callable[[FakeClock], AbstractAsyncContextManager[AnyStore]]"

LEASE = timedelta(seconds=30)
WORKERS = 3
DELAYS = st.sampled_from([0.0, 0.0, 1.0, 5.0, 40.0]).map(lambda wait: timedelta(seconds=wait))
ANY = st.integers(0, 10_000)
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.sampled_from([Completed("1"), Stopped(), Released(), GivenBack(), Parked("unknown")]),
    st.builds(Failed, st.just(ErrorInfo("ValueError", "oops")), st.none() | DELAYS),
    st.builds(Crashed, st.just("killed"), DELAYS),
    st.builds(Snoozed, DELAYS),
)
ENDS = st.lists(st.tuples(ANY, OUTCOMES), max_size=2)
DECISIONS = st.sampled_from(["cancel", "stop", "retry", "reschedule"])


@st.composite
def _new_jobs(draw: st.DrawFn) -> NewJob:
    due = draw(DELAYS)
    expires = draw(st.sampled_from([None, None, None, 1, 6, 50]))
    unique = draw(st.sampled_from([None, None, "u", "v"]))
    scope = draw(st.sampled_from(["live", "live", "forever", "until"]))
    return new_job(
        kind=draw(st.sampled_from(["a", "b"])),
        queue=draw(st.sampled_from(["q", "r"])),
        args=draw(st.sampled_from(["1", "2"])),
        priority=draw(st.sampled_from([0, 0, 1, -1])),
        due=due,
        expires=None if expires is None else due + timedelta(seconds=expires),
        unique_key=unique,
        unique_scope=scope if unique else "live",
        unique_window=timedelta(seconds=10) if unique and scope == "until" else None,
        on_duplicate=draw(st.sampled_from(["existing", "existing", "replace", "raise"])),
        serial_key=draw(st.sampled_from([None, "s", "s", "t"])),
        metadata=draw(st.sampled_from([None, {"m": "1"}])),
        node=draw(st.sampled_from([None, None, None, "node-1"])),
        max_attempts=draw(st.sampled_from([1, 2, 5])),
        max_crashes=draw(st.sampled_from([1, 2, 3])),
        result_ttl=draw(st.sampled_from([None, None, timedelta(seconds=5)])),
    )


class StoreMachine(RuleBasedStateMachine):
    """A store, a model of it, three workers, and an operator who decides on old looks."""

    factory: ClassVar[Factory]

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model = Model(self.clock)
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        factory = type(self).factory
        self.store = self.run(self.stack.enter_async_context(factory(self.clock)))
        self.workers: list[WorkerId] = []
        self.hired = 0
        self.claims: list[Claimed] = []
        self.looks: list[Job] = []
        self.moves: list[Transition] = []
        self.inserted: list[NewJob] = []
        self.seen: dict[JobId, Job] = {}
        self.starts: dict[str, list[float]] = {}
        while len(self.workers) < WORKERS:
            self.hire()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the machine's own loop."""
        return self.runner.run(work)

    def teardown(self) -> None:
        """The store is closed; every attempt that has a row is still there."""
        try:
            for job_id, count in self.model.attempts.items():
                if job_id in self.model.jobs:
                    rows = self.run(self.store.attempts(job_id))
                    assert len(rows) == min(count, len(rows) if count > 100 else count)
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    # ── the workers ──────────────────────────────────────────────────────────────────────

    def hire(self) -> None:
        """A new worker begins with its first beat."""
        self.hired += 1
        worker = WorkerId(UUID(int=self.hired))
        self.workers.append(worker)
        assert self.beat_of(worker).fate is Fate.ALIVE

    def beat_of(self, worker: WorkerId) -> Any:
        """Beat for the worker in the store and in the model."""
        now = self.clock.now()
        self.model.beats[worker] = max(now, self.model.beats.get(worker, now))
        node = self.node_of(worker)
        return self.run(
            self.store.beat(
                Beat(worker=worker, node=node, pid=1, lease=LEASE, queues=None, slots=9, running=0)
            )
        )

    def node_of(self, worker: WorkerId) -> str:
        """Return the node it runs on."""
        return f"node-{worker.int % 2}"

    def lapsed(self, worker: WorkerId) -> bool:
        """Whether its lease is over."""
        return self.clock.now() > self.model.beats[worker] + LEASE

    def running_of(self, worker: WorkerId) -> dict[JobId, tuple[int, bool]]:
        """Return what should run in its name."""
        return {
            job.id: (job.fence, job.cancel_requested is not None)
            for job in self.model.jobs.values()
            if job.state is State.RUNNING and job.worker == worker
        }

    # ── enqueue ──────────────────────────────────────────────────────────────────────────

    @rule(news=st.lists(_new_jobs(), min_size=1, max_size=4))
    def insert(self, news: list[NewJob]) -> None:
        """Now, later, unique, serial, in bulk: all or nothing."""
        try:
            expected = self.model.insert(news)
        except DuplicateJob as error:
            try:
                self.run(self.store.insert(news))
            except DuplicateJob as refused:
                assert refused.job_id == error.job_id
            else:
                raise AssertionError("DuplicateJob was not raised") from error
            return
        assert self.run(self.store.insert(news)) == expected
        self.inserted += [new for new in news if new.id in self.model.jobs]

    @precondition(lambda self: self.inserted)
    @rule(pick=ANY)
    def insert_again(self, pick: int) -> None:
        """The answer to an insert was lost (I2)."""
        new = self.inserted[pick % len(self.inserted)]
        if new.id in self.model.jobs:
            self.insert([new])

    # ── work ─────────────────────────────────────────────────────────────────────────────

    @rule(
        pick=ANY,
        free=st.sampled_from([2, 1, 4, 9, 0]),
        ahead=st.sampled_from([0, 0, 2]),
        queues=st.sampled_from([None, None, None, ("q",), ("r", "q")]),
        rooms=st.sampled_from([{}, {}, {}, {"a": 1}, {"a": 0, "b": 2}]),
    )
    def claim(
        self,
        pick: int,
        free: int,
        ahead: int,
        queues: tuple[str, ...] | None,
        rooms: dict[str, int],
    ) -> None:
        """Those whose turn it is, in order; beyond the free slots only what can afford a crash."""
        worker = self.workers[pick % len(self.workers)]
        ask = Ask(
            worker=worker,
            node=self.node_of(worker),
            free=free,
            ahead=ahead,
            queues=queues,
            rooms=rooms,
        )
        expected = [job.id for job in self.model.claimable(ask)]
        taken = self.run(self.store.claim(ask))
        ids = [one.id for one in taken]
        assert ids == expected[: len(ids)]
        # A store may end its search early: among rows of kinds without room, and for the buffer.
        if not rooms or len(self.model.jobs) <= 5 * free:
            assert len(ids) >= min(free, len(expected))
        for one in taken:
            job = self.model.start(one.id, ask)
            for name in one._fields:
                assert (getattr(one, name) or None) == (getattr(job, name) or None), name
            self.starts.setdefault(job.queue, []).append(self.hours())
        self.claims += taken
        self.limits_hold()

    def recent(self, items: Sequence[T], pick: int) -> T:
        """Return one of the last few: what is older has mostly had its say."""
        return items[-1 - pick % min(len(items), 8)]

    def hours(self) -> float:
        """Return the latest instant the clock has shown so far, in seconds."""
        self.latest = max(getattr(self, "latest", 0.0), self.clock.now().timestamp())
        return self.latest

    def limits_hold(self) -> None:
        """I14, counted apart from the model: claims in any span T are ≤ n + n · T / window."""
        for name, queue in self.model.queues.items():
            times = self.starts.get(name, [])
            if queue.rate is not None:
                n, window = queue.rate
                for first, start in enumerate(times):
                    span = times[-1] - start
                    assert len(times) - first <= n + n * span / window + 1e-6

    def move_of(self, pick: int, outcome: Outcome) -> Transition:
        """Return how this claim, which may be long stale, wants to end."""
        claimed = self.recent(self.claims, pick)
        ended = Attempt(
            number=claimed.attempt,
            generation=claimed.generation,
            fence=claimed.fence,
            started_at=self.clock.now(),
            ended_at=None,
            outcome="ended",
        )
        return lifecycle.settle(claimed, outcome, ended=ended)

    def apply(self, moves: Sequence[Transition]) -> None:
        """Exactly those are refused that the model refuses (I4, I5, I13)."""
        refused = [move for move in moves if not self.model.apply(move, last=False)]
        self.model.promote()
        answers = self.run(self.store.apply(moves))
        assert sorted(map(_key, (one.transition for one in answers))) == sorted(map(_key, refused))
        for one in answers:
            job = self.model.jobs.get(one.transition.id)
            assert (one.job and one.job.id) == (job and job.id)
            assert len(moves) > 1 or one.job == job
        self.moves += moves

    @precondition(lambda self: self.claims)
    @rule(picks=st.lists(st.tuples(ANY, OUTCOMES), min_size=1, max_size=4))
    def settle(self, picks: list[tuple[int, Outcome]]) -> None:
        """Complete, fail, crash, snooze, park, stop, release: current or stale, in batches."""
        self.apply([self.move_of(pick, outcome) for pick, outcome in picks])

    @precondition(lambda self: self.claims)
    @rule(pick=ANY, text=st.sampled_from(["1", "2"]))
    def progress(self, pick: int, text: str) -> None:
        """A report while it runs, or from a zombie (I17)."""
        claimed = self.recent(self.claims, pick)
        self.apply([lifecycle.progress(claimed, progress=text, partial=text)])

    @precondition(lambda self: self.moves)
    @rule(pick=ANY)
    def repeat(self, pick: int) -> None:
        """The answer to an apply was lost, and it is written again; what is stale stays out."""
        move = self.recent(self.moves, pick)
        job = self.model.jobs.get(move.id)
        if job is None or job.fence == move.fence:
            self.apply([move])

    # ── the operator ─────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.model.jobs)
    @rule(pick=ANY)
    def look(self, pick: int) -> None:
        """Remember a job as it is now: what is decided later is decided on this."""
        self.looks.append(self.recent([*self.model.jobs.values()], pick))

    def decide(self, pick: int, what: str, due: timedelta) -> Transition | None:
        """Return what an operator decides on a fresh look, or an old one."""
        fitting = {"retry": FINAL, "reschedule": WAITING, "stop": RUNNING}.get(what, LIVE)
        jobs = [job for job in self.model.jobs.values() if job.state in fitting]
        looks = self.looks if self.looks and pick % 4 == 0 else jobs
        if not looks:
            return None
        job, now = self.recent(looks, pick // 4), self.clock.now()
        match what:
            case "retry":
                return lifecycle.retry(job)
            case "reschedule":
                return lifecycle.reschedule(job, due, now=now)
            case _:
                return lifecycle.cancel(job, "operator")

    @precondition(lambda self: self.model.jobs)
    @rule(picks=st.lists(st.tuples(ANY, DECISIONS, DELAYS), min_size=1, max_size=3), more=ENDS)
    def operate(
        self, picks: list[tuple[int, str, timedelta]], more: list[tuple[int, Outcome]]
    ) -> None:
        """Cancel, retry, reschedule, in one batch with how some runs end (I5, I8, I13)."""
        moves = [self.move_of(pick, outcome) for pick, outcome in more if self.claims]
        moves += [move for pick in picks if (move := self.decide(*pick)) is not None]
        self.apply(moves)

    @precondition(lambda self: self.model.jobs)
    @rule(retention=st.sampled_from([0.0, 5.0, 40.0]))
    def prune(self, retention: float) -> None:
        """Exactly the old ones (I1)."""
        keep = timedelta(seconds=retention)
        what = Retention(completed=keep, failed=keep, cancelled=keep, expired=None)
        gone = self.run(self.store.prune(what, limit=1_000))
        assert set(gone) == self.model.outlived(what)
        self.model.forget(gone)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=ANY)
    def delete(self, pick: int) -> None:
        """Only what is final."""
        job = self.recent([*self.model.jobs.values()], pick)
        gone = self.run(self.store.prune([job.id], limit=1))
        assert gone == ([job.id] if job.state in FINAL else [])
        self.model.forget(gone)

    @rule(
        name=st.sampled_from(["q", "r"]),
        paused=st.sampled_from(["unset", True, False, False]),
        running=st.sampled_from(["unset", None, None, 1, 2]),
        rate=st.sampled_from(["unset", None, None, (1, 5.0), (3, 10.0)]),
    )
    def configure(self, name: str, paused: Any, running: Any, rate: Any) -> None:
        """Pause, resume, limit (I14)."""
        change = QueueChange(name=name, paused=paused, running=running, rate=rate)
        self.run(self.store.configure([change]))
        queue = self.model.queues.setdefault(name, Controls())
        if paused != "unset":
            queue.paused = paused
        if running != "unset":
            queue.limit = running
        if rate not in ("unset", queue.rate):
            queue.rate, queue.filled_at = rate, self.clock.now()
            queue.tokens = float(rate[0]) if rate else 0.0
            self.starts.pop(name, None)

    # ── time, and what dies in it ────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0, 31.0, -2.0]))
    def advance(self, seconds: float) -> None:
        """Also a little backwards, as a corrected clock does (F35)."""
        self.run(self.pass_(seconds))
        self.hours()

    async def pass_(self, seconds: float) -> None:
        """Let the time pass, and those who slept go on."""
        await self.clock.advance(seconds)

    @rule()
    def stage(self) -> None:
        """What is due and what has expired."""
        self.model.stage()
        assert not self.run(self.store.stage(limit=1_000)).more

    @rule(pick=ANY)
    def beat(self, pick: int) -> None:
        """A sign of life, which names every job running in the worker's name."""
        worker = self.workers[pick % len(self.workers)]
        answer = self.beat_of(worker)
        assert answer.fate is Fate.ALIVE
        assert answer.running == self.running_of(worker)

    @rule(some=st.sampled_from([0, 1, 9]))
    def rescue(self, some: int) -> None:
        """The lapsed are declared lost, for good, and some of their jobs are taken away."""
        lost = {worker for worker in self.model.beats if self.lapsed(worker)}
        lost |= set(self.model.beats) - set(self.workers)
        orphans = self.run(self.store.orphans(limit=1_000))
        expected = [job_id for worker in lost for job_id in self.running_of(worker)]
        assert sorted(job.id for job in orphans) == sorted(expected)
        assert all(job == self.model.jobs[job.id] for job in orphans)
        moves = [lifecycle.rescue(job, retry_in=timedelta(seconds=5)) for job in orphans[:some]]
        if moves:
            self.apply(moves)
        self.replace_workers(lost)

    @rule(pick=ANY)
    def retire(self, pick: int) -> None:
        """A worker goes in good order; what it leaves behind is an orphan."""
        worker = self.workers[pick % len(self.workers)]
        self.run(self.store.retire(worker))
        self.replace_workers({worker})

    def replace_workers(self, gone: set[WorkerId]) -> None:
        """For each that is gone a new one begins, under a new id."""
        self.workers = [worker for worker in self.workers if worker not in gone]
        while len(self.workers) < WORKERS:
            self.hire()

    # ── what must hold after every step ──────────────────────────────────────────────────

    @invariant()
    def the_store_shows_what_the_model_shows(self) -> None:
        """Every field of every job; then the invariants that need no model (I1, I3, I5, I6)."""
        ids = [*{**self.seen, **self.model.jobs}]
        jobs = {job.id: job for job in self.run(self.store.get(ids))}
        assert jobs == self.model.jobs
        for job_id, before in self.seen.items():
            after = jobs.get(job_id)
            if after is None:
                assert before.state in FINAL
                continue
            assert (after.generation, after.fence) >= (before.generation, before.fence)
            if before.state in FINAL and after != before:
                assert after.generation > before.generation
        self.edges_are_drawn(jobs)
        self.keys_have_one_holder([*jobs.values()])
        self.seen = jobs

    def edges_are_drawn(self, jobs: dict[JobId, Job]) -> None:
        """Only the edges of the life of a job occur; a batch may pass a few at once (I6)."""
        reach = {(a, b) for a, b in EDGES} | {(a, a) for a in State}
        reach |= {(a, d) for a, b in reach for c, d in reach if b is c and b in LIVE}
        for job_id, job in jobs.items():
            before = self.seen.get(job_id)
            assert before is None or (before.state, job.state) in reach

    def keys_have_one_holder(self, jobs: list[Job]) -> None:
        """At most one job of a serial key is available or runs (I8), and one of a unique key (I10).

        And no key is idle while a job is blocked.
        """
        keys: dict[str, list[State]] = {}
        uniques: dict[tuple[str, str], int] = {}
        for job in jobs:
            if job.serial_key is not None:
                keys.setdefault(job.serial_key, []).append(job.state)
            if job.unique_key is not None and job.unique_scope != "until" and job.state in LIVE:
                unique = (job.kind, job.unique_key)
                uniques[unique] = uniques.get(unique, 0) + 1
        assert all(count == 1 for count in uniques.values())
        for states in keys.values():
            held = states.count(State.AVAILABLE) + states.count(State.RUNNING)
            assert held <= 1
            if State.BLOCKED in states:
                assert held == 1 or State.SCHEDULED in states


def _key(move: Transition) -> tuple[JobId, int, str]:
    return (move.id, move.fence, str(move.changes))


def make_machine(store: Factory) -> type[StoreMachine]:
    """Return the machine for this store; its `TestCase` is what pytest runs.

    `store(clock)` is an async context manager: a fresh, empty store that stamps with the clock.
    """
    return cast(
        "type[StoreMachine]",
        type("StoreMachineOfMine", (StoreMachine,), {"factory": staticmethod(store)}),
    )
