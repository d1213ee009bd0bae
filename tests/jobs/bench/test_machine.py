"""What a measurement says of the code it was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import fam_engine
from fam_engine.jobs.bench import machine


def test_the_commit_is_that_of_our_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (
        ("init", "--quiet"),
        (*author, "commit", "--quiet", "--allow-empty", "-m", "a"),
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    said = {}
    for folder in ("engine/fam_engine", ".venv/lib/fam_engine"):
        package = tmp_path / folder
        package.mkdir(parents=True)
        monkeypatch.setattr(fam_engine, "__file__", str(package / "__init__.py"))
        said[folder] = machine._commit()
    head = ["git", "-C", str(tmp_path), "rev-parse", "HEAD"]
    commit = subprocess.check_output(head, text=True)
    assert said["engine/fam_engine"]
    assert commit.startswith(said["engine/fam_engine"])
    assert said[".venv/lib/fam_engine"] is None
