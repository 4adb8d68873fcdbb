import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from piecework.core.errors import NotImportable
from piecework.handlers.imports import import_path_of


def top_level() -> None: ...


class Handler:
    def __call__(self) -> None: ...


def test_a_function_of_a_module_is_found_by_name() -> None:
    assert import_path_of(top_level) == (__name__, None, "top_level")
    assert import_path_of(Handler) == (__name__, None, "Handler")


@pytest.mark.parametrize("fn", [lambda: None, functools.partial(top_level), Handler()])
def test_what_has_no_name_of_its_own_is_not_importable(fn: Any) -> None:
    with pytest.raises(NotImportable):
        import_path_of(fn)


def test_a_nested_function_is_not_importable() -> None:
    def nested() -> None: ...

    with pytest.raises(NotImportable, match="top level"):
        import_path_of(nested)


SCRIPT = """
from piecework.handlers.imports import import_path_of
def ship(): ...
if __name__ == "__main__":
    print(*import_path_of(ship), sep="|")
"""


def test_a_script_is_found_by_its_file(tmp_path: Path) -> None:
    script = tmp_path / "jobs.py"
    script.write_text(SCRIPT)
    shown = subprocess.check_output([sys.executable, "jobs.py"], cwd=tmp_path, text=True)
    assert shown.strip() == f"__main__|{script.resolve()}|ship"


def test_a_module_started_with_m_is_found_by_its_real_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "jobs.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mine.jobs"]
    shown = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert shown.strip() == "mine.jobs|None|ship"


def test_a_program_without_a_file_is_not_importable(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, text=True, capture_output=True, check=True
        )
    assert "NotImportable" in caught.value.stderr
    assert "has no file" in caught.value.stderr
