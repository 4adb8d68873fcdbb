"""What an app is made of, and what it refuses to be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework import Piecework, StoreUnavailable
from piecework.stores.memory import MemoryStore


async def test_an_app_takes_a_store_of_ones_own() -> None:
    store = MemoryStore()
    async with Piecework(store) as one, Piecework(store=store) as two:
        handle = await one.kind("k").enqueue({})
        assert await two.job(handle.id).get() == await handle.get()
    assert "MemoryStore" in repr(one)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (Piecework, ValueError, "store URL"),
        (lambda: Piecework("memory://", store=MemoryStore()), ValueError, "store URL"),
        (lambda: Piecework(Path("jobs.db")), TypeError, "PosixPath|WindowsPath"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: Piecework(5), TypeError, "not int"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: Piecework("jobs.db"), ValueError, "no store URL"),
        (lambda: Piecework("memory://", namespace="A"), ValueError, "namespace"),
        (lambda: Piecework("memory://", calls="shop"), TypeError, "calls="),
        (lambda: Piecework("memory://", calls=["shop-2"]), ValueError, "calls="),
        (lambda: Piecework("memory://", max_args_bytes=0), ValueError, "max_args_bytes"),
        (lambda: Piecework("memory://", max_args_bytes="1"), TypeError, "max_args_bytes"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
    ids=[
        "nothing",
        "two stores",
        "a path",
        "a number",
        "a file name",
        "a namespace",
        "calls as text",
        "calls with a dash",
        "no bytes",
        "bytes as text",
    ],
)
def test_what_no_app_can_be_made_of_is_refused(
    make: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make()


async def test_making_an_app_opens_nothing(tmp_path: Path) -> None:
    app = Piecework(f"sqlite:///{tmp_path}/jobs.db")

    @app.handler
    async def note() -> None: ...

    assert list(tmp_path.iterdir()) == []
    assert app.kinds == ("note",)
    await note.enqueue()
    assert (tmp_path / "jobs.db").exists()
    await app.close()


async def test_an_app_on_what_cannot_be_opened_says_so_when_entered(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "jobs.db"):
        with pytest.raises(StoreUnavailable, match="folder"):
            await Piecework(f"sqlite:///{path}").__aenter__()
        with pytest.raises(StoreUnavailable, match="folder"):
            await Piecework(f"sqlite:///{path}").kind("k").enqueue({})
