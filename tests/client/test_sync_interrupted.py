"""Ctrl-C while app.sync waits: what was begun for the caller ends in order."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from piecework import Piecework, Run, State


def test_ctrl_c_while_the_twin_runs_jobs_drains_them(sqlite_url: str) -> None:
    """Left running, they would count as crashed a lease later."""
    app = Piecework(sqlite_url)
    stops: list[object] = []

    @app.handler
    def work(run: Run) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        while run.stopping is None:
            time.sleep(0.001)
        stops.append(run.stopping)
        return "finished"

    handle = app.sync.enqueue(work.prepare())
    later = app.sync.enqueue(work.prepare(), queue="later", delay=3600)
    with pytest.raises(KeyboardInterrupt):
        app.sync.run_until_idle()
    assert handle.get().state is State.COMPLETED
    assert stops == ["shutdown"]
    assert later.cancel()
    app.sync.close()


def test_ctrl_c_while_the_twin_waits_for_a_result_leaves_the_job_alone() -> None:
    app = Piecework("memory://")
    handle = app.sync.enqueue(app.kind("x").prepare())
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        handle.result(timeout=20)
    timer.join()
    assert handle.get().state is State.AVAILABLE
    app.sync.close()
