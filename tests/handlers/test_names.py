import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.handlers.names import check_key, check_kind, check_metadata, check_name


@pytest.mark.parametrize(
    "name", ["a", "order-1", "müller", "a b", "日本", "x" * 200, "👩‍🚀", "a\xa0b"]
)
def test_an_ordinary_text_is_a_name(name: str) -> None:
    assert check_name("queue", name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("x" * 201, "201 characters"),
        ("a\nb", "control character at position 1"),
        ("a\x00", "control character"),
        ("\x7fa", "control character"),
        ("a\u2028b", "control character"),
        ("\ud800a", "lone surrogate at position 0"),
    ],
)
def test_a_name_that_would_break_a_line_or_a_store_is_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        check_name("queue", name)
    assert str(caught.value).startswith("queue ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(TypeError, match="queue must be a str"):
        check_name("queue", name)


@given(st.text(max_size=300))
def test_a_name_either_passes_unchanged_or_is_refused(text: str) -> None:
    try:
        assert check_name("key", text) == text
    except ValueError:
        return
    assert text.strip()
    assert len(text) <= 200
    assert "\x00" not in text
    text.encode()


@pytest.mark.parametrize("kind", ["piecework.call", "piecework.", "piecework.mine"])
def test_our_own_kinds_cannot_be_taken(kind: str) -> None:
    """S16: a job of a user's must never be taken for one of ours."""
    with pytest.raises(ValueError, match="Piecework's own"):
        check_kind(kind)


def test_a_kind_may_be_near_our_own() -> None:
    assert check_kind("piecework_mail") == "piecework_mail"


@pytest.mark.parametrize("blank", [None, "", " ", "\n\t"])
def test_a_blank_key_is_none(blank: str | None) -> None:
    assert check_key("unique_key", blank) is None


def test_metadata_is_copied_and_empty_metadata_is_none() -> None:
    given = {"team": "mail", "note": ""}
    kept = check_metadata(given)
    assert kept == given
    assert kept is not given
    assert check_metadata({}) is None
    assert check_metadata(None) is None


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ([("a", "b")], TypeError),
        ({"a": 1}, TypeError),
        ({1: "a"}, TypeError),
        ({"": "a"}, ValueError),
        ({"a\n": "a"}, ValueError),
        ({"a": "x" * 401}, ValueError),
        ({"a": "\x00"}, ValueError),
        ({f"k{n}": "v" for n in range(101)}, ValueError),
    ],
)
def test_metadata_is_a_flat_map_of_short_strings(metadata: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="metadata"):
        check_metadata(metadata)
