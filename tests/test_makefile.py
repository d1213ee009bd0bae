"""`make` refuses a Python that is too old, and makes an environment anew that is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def install(folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """Run `make install` into a folder."""
    command = ["make", "install", f"VENV={folder}", f"PYTHON={python}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )


def maker(tmp_path: Path, folder: Path) -> Path:
    """Give a Python that notes when it makes an environment, whose pip then does nothing."""
    fill = f"mkdir -p {folder}/bin; cp $0 {folder}/bin/python; ln -sf /bin/true {folder}/bin/pip"
    made = f'case "$*" in "-m venv --clear {folder}") echo made >> {tmp_path}/log; {fill};; esac'
    return script(tmp_path / "python", made)


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    done = install(tmp_path / "venv", script(tmp_path / "old", "exit 1"))
    assert done.returncode
    assert "make PYTHON=python3.11 install" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_is_made_anew_only_if_it_is_not_whole(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    python = maker(tmp_path, folder)
    script(folder / "bin" / "python", "")  # no pip: cut short
    assert install(folder, python).returncode == 0
    assert (tmp_path / "log").read_text() == "made\n"
    (folder / ".stamp").unlink()
    assert install(folder, python).returncode == 0
    assert (tmp_path / "log").read_text() == "made\n"
    script(folder / "bin" / "python", "exit 1")  # too old
    (folder / ".stamp").unlink()
    assert install(folder, python).returncode == 0
    assert (tmp_path / "log").read_text() == "made\nmade\n"
