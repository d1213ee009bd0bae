"""`fam-engine experiment` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fam_engine.cli import main as cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fam-engine", "experiment", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_dry_run_lists_the_steps_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    assert run(monkeypatch, "small", "--out", out, "--dry-run", "--json", "--quiet") == 0
    forecast = json.loads(capsys.readouterr().out)
    kinds = {step["kind"] for step in forecast["steps"]}
    assert kinds == {"questions", "answers", "score", "train", "eval"}
    assert forecast["seconds_left"] > 0
    assert not any(step["done"] for step in forecast["steps"])
    assert not out.exists()


def test_the_papers_study_names_its_missing_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "paper", "--out", "study", "--dry-run") == 4
    said = capsys.readouterr().err
    assert "data/gsm8k/test.jsonl: test questions of gsm8k" in said
    assert "data/mbpp/claude.jsonl" in said
    assert "error[E_STUDY_FILES]: 16 data files are missing" in said


def test_a_study_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "smal", "--out", tmp_path) == 2
    assert "did you mean `small`?" in capsys.readouterr().err


def test_a_study_of_ours_can_be_taken_as_a_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "small", "--show") == 0
    own = tmp_path / "own.yaml"
    own.write_text(capsys.readouterr().out.replace("learning_rate", "learning_rat"))
    assert run(monkeypatch, own, "--out", tmp_path / "out", "--dry-run") == 2
    assert "did you mean `learning_rate`?" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['fam-engine', 'experiment', '--help']\n"
        "from fam_engine.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
