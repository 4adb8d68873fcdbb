"""Each measurement runs, with a token amount, and finds positive figures. Nothing here is timed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from piecework.bench import main, run
from piecework.bench.bench import Bench
from piecework.bench.place import ForeignFile, Place
from piecework.bench.result import Result
from piecework.bench.run import MEMORY, SQLITE, Measurement
from piecework.bench.scale import TINY


def check(results: list[Result]) -> None:
    assert results
    for result in results:
        assert not result.broken
        assert all(figure >= 0 for figure in result.ours)
        assert result.ours[0] > 0 or result.unit in ("%", "/s")
        assert result.theirs is None or result.theirs > 0


def named(measurement: Measurement) -> str:
    return measurement.what


@pytest.mark.parametrize("measurement", MEMORY, ids=named)
def test_each_measurement_in_memory_finds_something(measurement: Measurement) -> None:
    bench = Bench(scale=TINY, place=None, peers=False, tell=lambda _: None)
    check(list(measurement.rows(bench)))


@pytest.mark.parametrize("measurement", SQLITE, ids=named)
def test_each_measurement_on_sqlite_finds_something(
    measurement: Measurement, tmp_path: Path
) -> None:
    with Place(tmp_path / "bench.db") as place:
        bench = Bench(scale=TINY, place=place, peers=True, tell=lambda _: None)
        check(list(measurement.rows(bench)))
    assert not list(tmp_path.iterdir())


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE mine (id INTEGER)")
    before = file.read_bytes()
    assert main(f"sqlite:///{file}", quick=True) == 2
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_foreign_file_beside_the_path_is_not_touched_either(tmp_path: Path) -> None:
    (tmp_path / "bench-bare").write_text("mine", "utf-8")
    with pytest.raises(ForeignFile, match="bench-bare exists"):
        Place(tmp_path / "bench")
    assert (tmp_path / "bench-bare").read_text("utf-8") == "mine"


def test_what_an_interrupted_run_left_is_used_again(tmp_path: Path) -> None:
    Place(tmp_path / "bench.db").fresh("-bare")
    with Place(tmp_path / "bench.db"):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    ["", "bench.db", "postgres://x/y", "sqlite:///", "sqlite:///a.db?busy=1", "sqlite:///no/dir/x"],
)
def test_a_url_that_cannot_be_is_refused_in_one_line(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(url, quick=True) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1


ROWS = [
    Result(what="drain", ours=(50.0,), unit="jobs/s", yardstick="bare", theirs=100.0, least=0.6),
    Result(what="latency", ours=(0.4, 1.9), unit="ms", ceiling=(0.5, 2)),
    Result(what="RSS", ours=(48.0,), unit="MiB", yardstick="early", theirs=47.0, most=1.1),
    Result(what="enqueue", ours=(5.0,), unit="jobs/s", note="as it is"),
]


def test_the_table_says_which_aims_are_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(run, "MEMORY", (Measurement("all", lambda _: iter(ROWS)),))
    assert main("memory://", quick=True, json=True) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [row["met"] for row in rows] == [False, True, True, None]
    assert rows[0]["ratio"] == 0.5
    assert rows[0]["aim"] == "≥ 0.6×"
    assert main("memory://", quick=True) == 0
    table = capsys.readouterr().out
    assert "0.40 / 1.90 ms" in table
    assert "as it is" in table


def test_what_goes_wrong_is_a_row_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Result(what="drain, limited", ours=(9.0,), unit="jobs/s", broken="51 ran at once")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(run, "MEMORY", (Measurement("all", lambda _: iter([wrong])),))
    assert main("memory://", quick=True) == 1
    assert "51 ran at once" in capsys.readouterr().out
