"""A store's URL: which store it means, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.app.url import open_url
from piecework.stores.memory import MemoryStore
from piecework.stores.sqlite import SqliteStore


def sqlite(url: str, namespace: str = "piecework") -> SqliteStore:
    store = open_url(url, namespace)
    assert isinstance(store, SqliteStore)
    return store


def test_memory_is_the_memory_store() -> None:
    assert isinstance(open_url("memory://", "piecework"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", Path("jobs.db").absolute()),
        ("sqlite:///data/jobs.db", Path("data/jobs.db").absolute()),
        ("sqlite:///../jobs.db", Path("../jobs.db").absolute()),
        ("sqlite:////var/lib/jobs.db", Path("/var/lib/jobs.db")),
        ("sqlite:///my%20jobs.db", Path("my jobs.db").absolute()),
        ("sqlite:///my jobs.db", Path("my jobs.db").absolute()),
        ("sqlite:///100%25.db", Path("100%.db").absolute()),
        ("sqlite:///what%3F.db?busy=1", Path("what?.db").absolute()),
        ("sqlite:///jöbs.db", Path("jöbs.db").absolute()),
        ("sqlite:///jobs.db?", Path("jobs.db").absolute()),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: Path) -> None:
    assert sqlite(url)._settings.path == path


def test_options_follow_the_question_mark() -> None:
    plain = sqlite("sqlite:///jobs.db")._settings
    given = sqlite("sqlite:///jobs.db?busy=2.5&migrate=off")._settings
    on = sqlite("sqlite:///jobs.db?migrate=on")._settings
    assert (plain.busy_seconds, plain.migrate, plain.prefix) == (30.0, True, "piecework")
    assert (given.busy_seconds, given.migrate) == (2.5, False)
    assert on.migrate


@pytest.mark.parametrize("namespace", ["piecework", "a", "shop_2", "x" * 40])
def test_a_namespace_is_the_prefix_of_the_tables(namespace: str) -> None:
    assert sqlite("sqlite:///jobs.db", namespace)._settings.prefix == namespace


@pytest.mark.parametrize("namespace", ["", "2x", "_x", "Shop", "a-b", "a b", "x" * 41, "a;", "ä"])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db"])
def test_a_namespace_that_could_not_be_part_of_a_table_name_is_refused(
    url: str, namespace: str
) -> None:
    with pytest.raises(ValueError, match="namespace="):
        open_url(url, namespace)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no store URL"),
        ("jobs.db", "no store URL"),
        ("/var/lib/jobs.db", "no store URL"),
        ("sqlite", "no store URL"),
        ("sqlite:", "write sqlite:///file"),
        ("sqlite://", "write sqlite:///file"),
        ("sqlite://jobs.db", "write sqlite:///file"),
        ("sqlite:jobs.db", "write sqlite:///file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///?busy=1", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///a%00b.db", "NUL"),
        ("sqlite:///jobs.db?busy=0", "busy must be"),
        ("sqlite:///jobs.db?busy=-1", "busy must be"),
        ("sqlite:///jobs.db?busy=nan", "busy must be"),
        ("sqlite:///jobs.db?busy=inf", "busy must be"),
        ("sqlite:///jobs.db?busy=3601", "busy must be"),
        ("sqlite:///jobs.db?busy=long", "busy must be"),
        ("sqlite:///jobs.db?busy=", "busy must be"),
        ("sqlite:///jobs.db?busy", "busy must be"),
        ("sqlite:///jobs.db?migrate=yes", "migrate must be"),
        ("sqlite:///jobs.db?timeout=5", "unknown option 'timeout'; there are busy, migrate"),
        ("memory:", "memory://"),
        ("memory:///", "memory://"),
        ("memory://jobs", "memory://"),
        ("memory://?busy=1", "memory://"),
        ("mysql://localhost/jobs", "mysql: is no store"),
        ("http://localhost", "http: is no store"),
        ("C:\\jobs.db", "is no store"),
    ],
)
def test_a_bad_url_is_told_what_to_write(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:|memory:|namespace|busy") as caught:
        open_url(url, "piecework")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_opened_or_made_by_naming_it(tmp_path: Path) -> None:
    sqlite(f"sqlite:///{tmp_path}/new/jobs.db")
    assert list(tmp_path.iterdir()) == []
