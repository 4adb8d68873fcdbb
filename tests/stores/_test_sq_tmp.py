import os, tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from hypothesis import settings, HealthCheck
from piecework.stores.sqlite import SqliteStore
from piecework.stores.memory import MemoryStore
from piecework.testing import make_machine
@asynccontextmanager
async def fresh(clock):
    with tempfile.TemporaryDirectory() as d:
        s=SqliteStore(Path(d)/"jobs.db",clock=clock)
        try: yield s
        finally: await s.close()
@asynccontextmanager
async def mem(clock): yield MemoryStore(clock)
TestSq=make_machine(fresh).TestCase
TestSq.settings=settings(max_examples=int(os.environ.get("N",100)),stateful_step_count=40,deadline=None,suppress_health_check=list(HealthCheck))
TestMem=make_machine(mem).TestCase
TestMem.settings=settings(max_examples=int(os.environ.get("M",1500)),stateful_step_count=50,deadline=None,suppress_health_check=list(HealthCheck))
