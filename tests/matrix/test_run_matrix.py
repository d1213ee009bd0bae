"""The matrix of versions asks for what pyproject.toml allows, and records only what was tested."""

from __future__ import annotations

import platform
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.matrix import run_matrix

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALLOWED = {
    required.name: required.specifier for required in map(Requirement, PROJECT["dependencies"])
}


def pins(column: str) -> dict[str, Version]:
    """Give what a column pins, by name: the lower end of `==2.8.*` is 2.8."""
    pinned = [Requirement(text) for text in run_matrix.COLUMNS[column]]
    return {p.name: Version(str(p.specifier).removeprefix("==").removesuffix(".*")) for p in pinned}


@pytest.mark.parametrize("column", run_matrix.COLUMNS)
def test_pins_are_allowed(column: str) -> None:
    wrong = [name for name, version in pins(column).items() if version not in ALLOWED[name]]
    assert not wrong


def test_the_lowest_column_is_the_lower_end_of_every_dependency() -> None:
    ends = {
        name: Version(part.version)
        for name, specifier in ALLOWED.items()
        for part in specifier
        if part.operator == ">="
    }
    assert pins("lowest") == ends


def test_an_environment_that_was_cut_short_is_not_whole(tmp_path: Path) -> None:
    python, pip = tmp_path / "bin" / "python", tmp_path / "bin" / "pip"
    assert not run_matrix.is_whole(tmp_path)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert not run_matrix.is_whole(tmp_path)
    pip.touch()
    assert run_matrix.is_whole(tmp_path)
    python.unlink()
    python.symlink_to("/bin/false")  # as an older Python answers
    assert not run_matrix.is_whole(tmp_path)


def test_the_python_recorded_is_that_of_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *pip*) echo "[]";; *) echo 3.99.1;; esac\n')
    python.chmod(0o755)
    assert run_matrix.versions(python) == {"python": "3.99.1"}
    assert run_matrix.versions(Path(sys.executable))["python"] == platform.python_version()


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("", "exit code 5"),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): ...\n", "no test passed"),
    ],
)
def test_what_tested_nothing_is_no_result(
    tests: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(tmp_path, tests, monkeypatch)
    with pytest.raises(SystemExit, match=said):
        run_matrix.run_tests(Path(sys.executable), "lowest")


def test_failed_tests_are_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in(tmp_path, "def test_a(): ...\ndef test_b(): assert 0\n", monkeypatch)
    found = run_matrix.run_tests(Path(sys.executable), "lowest")
    assert (found["passed"], found["skipped"]) == (1, 0)
    assert found["failed"] == ["test_it::test_b"]


def run_in(folder: Path, tests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests be those of a folder of its own."""
    (folder / "test_it.py").write_text(tests)
    (folder / ".venv-lowest").mkdir()
    monkeypatch.setattr(run_matrix, "ROOT", folder)
    monkeypatch.setenv("TESTS", "test_it.py")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
