import json
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework import State
from piecework.cli.show import ago, cell, json_out, plain, print_table, printable, seconds


@given(st.text(st.characters()))
def test_whatever_a_text_holds_it_is_one_harmless_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)


def test_escapes_are_those_everybody_knows() -> None:
    assert printable("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert printable("caf\udce9") == r"caf\xe9"
    assert printable("Zoë 東京 [red]") == "Zoë 東京 [red]"


@pytest.mark.parametrize(
    ("length", "text"),
    [(0, "0s"), (-3, "0s"), (59, "59s"), (119, "119s"), (120, "2m"), (7_200, "2h"),
     (86_400, "1d"), (200_000, "2d")],
)  # fmt: skip
def test_a_duration_is_short(length: float, text: str) -> None:
    assert seconds(length) == text


def test_an_instant_is_told_from_now() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(None) == "-"
    assert ago(now - timedelta(minutes=3), now) == "3m"
    assert ago(now + timedelta(hours=3), now) == "in 3h"


@dataclass
class Thing:
    at: datetime
    parts: tuple[object, ...]


def test_data_is_what_json_knows(capsys: pytest.CaptureFixture[str]) -> None:
    thing = Thing(
        datetime(2026, 1, 1, tzinfo=UTC),
        (State.RUNNING, timedelta(seconds=2), UUID(int=1), float("nan"), {"a": None, "b": True}),
    )
    expected = {
        "at": "2026-01-01T00:00:00+00:00",
        "parts": [
            "running",
            2.0,
            "00000000-0000-0000-0000-000000000001",
            None,
            {"a": None, "b": True},
        ],
    }
    assert plain(thing) == expected
    json_out({"thing": thing, "text": "\x1b[31m\u202e"})
    shown = capsys.readouterr().out
    assert json.loads(shown)["thing"] == expected
    assert shown.isascii()
    assert "\x1b" not in shown


def test_only_a_flexible_column_gives_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [[cell("0" * 20), cell("x" * 30), cell("y" * 10)]]
    print_table(("ID", "KIND", "NAME"), rows, cut=["KIND", "NAME"])
    _, row = capsys.readouterr().out.splitlines()
    assert len(row) <= 40
    assert row.startswith("0" * 20 + "  ")
    assert row.count("…") == 2


def test_a_pipe_gets_whole_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("KIND", "N"), [[cell("k" * 300), cell(7)]], right=["N"], cut=["KIND"])
    head, row = capsys.readouterr().out.splitlines()
    assert row == f"{'k' * 300}  7"
    assert head.split() == ["KIND", "N"]
