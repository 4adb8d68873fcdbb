"""What the tests of engine and client share: an app on each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from piecework import Piecework
from tests.helpers import MakeApp


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
async def make_app(url: str) -> AsyncIterator[MakeApp]:
    """Makes apps on the store under test; on SQLite they share the file."""
    made: list[Piecework] = []

    def make(where: Any = url, **options: Any) -> Piecework:
        app = Piecework(where, **options)
        made.append(app)
        return app

    yield make
    for app in made:
        await app.close()


@pytest.fixture
async def app(make_app: MakeApp) -> Piecework:
    return make_app()


@pytest.fixture
async def sqlite_app(sqlite_url: str) -> AsyncIterator[Piecework]:
    async with Piecework(sqlite_url) as app:
        yield app


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests log with lone surrogates must not end the process that collects the reports."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "replace").decode()) for name, text in report.sections
    ]
    return report
