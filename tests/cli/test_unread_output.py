"""Output that nobody reads ends a command silently, with the exit code of SIGPIPE; a full one is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Line


def left(words: list[str | Path], out: int, errors: int) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-m", "fam_engine.cli.main", *map(str, words)]
    return subprocess.run(program, stdout=out, stderr=errors, text=True, check=False)


@pytest.fixture
def unread() -> int:
    """Give the end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("arguments", ["config schema score", "score --help", "", "--version"])
@pytest.mark.parametrize("is_joined", [False, True])
def test_nobody_reads(unread: int, arguments: str, *, is_joined: bool) -> None:
    errors = subprocess.STDOUT if is_joined else subprocess.PIPE
    found = left([*arguments.split()], unread, errors)
    os.close(unread)
    assert found.returncode == 141
    assert not found.stderr


def test_a_job_has_written_its_files_by_then(unread: int, line: Line, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = left(line("score", out), unread, subprocess.PIPE)
    os.close(unread)
    assert (found.returncode, found.stderr) == (141, "")
    assert {"scores.parquet", "summary.json", "report.html"} <= {
        file.name for file in out.iterdir()
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_an_error_of_storage() -> None:
    with Path("/dev/full").open("w") as full:
        found = left(["config", "schema", "score"], full.fileno(), subprocess.PIPE)
    assert found.returncode == 5
    assert found.stderr.startswith("error[E_STORAGE]: a temporary file or standard output cannot")
