import hashlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework import Cancelled, GiveUp
from piecework.cli import files
from piecework.cli.files import Found, Trouble, decode_path, encode_path, relative, scan, sum_up


def nothing() -> None:
    """Nobody asked to stop."""


@given(st.lists(st.sampled_from([b"a", b"word", b" ", b"\n", b"\t\r", b"\v", b"\f", b"\xff\x00"])))
def test_words_and_lines_do_not_depend_on_where_a_chunk_ends(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    data = b"".join(pieces)
    path = tmp_path_factory.getbasetemp() / "chunked"
    path.write_bytes(data)
    for chunk in (1, 2, 3, 7, 1_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "CHUNK", chunk)
            found = sum_up(str(path), nothing)
        assert found == {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "lines": data.count(b"\n"),
            "words": len(data.split()),
        }


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_path_survives_json_and_comes_back(name: bytes) -> None:
    path = os.fsdecode(name)
    text = encode_path(path)
    text.encode()  # it has no lone surrogate
    assert os.fsencode(decode_path(text)) == name


def test_a_common_path_is_stored_as_it_is() -> None:
    assert encode_path("/home/Zoë/a b.txt") == "/home/Zoë/a b.txt"
    assert encode_path("/100%\udcff") == "/100%25%FF"


def test_a_stop_is_heard_between_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 4)
    (tmp_path / "a").write_bytes(b"0123456789")
    heard: list[int] = []

    def check() -> None:
        heard.append(1)
        if len(heard) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sum_up(str(tmp_path / "a"), check)
    assert len(heard) == 2


def test_what_cannot_be_read_says_so_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(GiveUp, match="No such file or directory"):
        sum_up(str(tmp_path / "gone"), nothing)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files there")
def test_what_became_a_pipe_a_link_or_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(__file__)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(GiveUp, match="Not a regular file any more"):
            sum_up(str(tmp_path / name), nothing)


def paths(root: Path, *skip: Path) -> list[str]:
    found = scan(str(root), {str(each) for each in skip})
    return [relative(each.path, str(root)) for each in found if isinstance(each, Found)]


def test_every_regular_file_is_found_once_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "a", "b/2", "b/c/3"):
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "file").symlink_to(tmp_path / "a")
    assert paths(tmp_path) == ["a", "z", "b/2", "b/c/3"]
    assert paths(tmp_path, tmp_path / "z") == ["a", "b/2", "b/c/3"]
    assert paths(tmp_path / "a") == ["a"]


def keys(root: Path) -> set[str]:
    return {each.key for each in scan(str(root), ()) if isinstance(each, Found)}


def test_a_key_is_the_same_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    first = keys(tmp_path)
    assert keys(tmp_path) == first
    file.write_text("longer")
    second = keys(tmp_path)
    assert second != first
    os.utime(file, (1, 1))
    assert keys(tmp_path) not in (first, second)
    assert keys(file) != keys(tmp_path)  # another PATH, another run of its own


def test_a_folder_that_cannot_be_listed_is_told_of(tmp_path: Path) -> None:
    deep = tmp_path
    with pytest.MonkeyPatch.context() as patch:
        # As root nothing is forbidden; but a path may be too long for anybody.
        patch.chdir(tmp_path)
        for _ in range(20):
            name = "d" * 250
            Path(name).mkdir()
            patch.chdir(name)
            deep /= name
    (trouble,) = scan(str(tmp_path), ())
    assert isinstance(trouble, Trouble)
    assert trouble.reason == "cannot be listed: File name too long"
