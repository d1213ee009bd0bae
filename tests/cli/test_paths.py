"""Paths that cannot be one are refused before anything is done, in one line that names what was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Run

_EMPTY = {
    "score": ("--out", "--data", "--model", "--adapter", "--template"),
    "train": ("--out", "--validation"),
    "select": ("--scores", "--out", "--test"),
    "select --seed 1": ("--replay",),
    "eval": ("--adapter", "--few-shot-file", "--train"),
    "rewrite": ("--prompt-file",),
    "serve": ("--token-file",),
    "export --format trl": ("--out",),
    "export --model x": ("--verify",),
    "bench": ("--out", "--compare"),
    "tokenize": ("--out",),
    "doctor": ("--model", "--adapter"),
}

_NEEDED = {
    "select": ("--data", "--scores", "--out"),
    "export --format trl": ("--data",),
    **dict.fromkeys(("score", "train", "eval", "rewrite"), ("--model", "--data", "--out")),
    "tokenize": ("--model", "--data"),
    "serve": ("--model",),
}


@pytest.mark.parametrize(
    ("command", "flag"), [(name, flag) for name, flags in _EMPTY.items() for flag in flags]
)
def test_an_empty_path_is_refused(
    run: Run, command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {name: "x" for name in _NEEDED.get(command, ())} | {flag: ""}
    code, _, errors = run(*command.split(), *(word for pair in given.items() for word in pair))
    assert code == 2
    name = flag[2:].replace("-", "_")
    assert errors.startswith(f"error[E_CONFIG_VALUE]: setting `{name}")
    assert "is empty (give a path; `.` is this folder)" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("status", ""), ("compare", "a", ""), ("experiment", "small", "--out", "")]
)
def test_so_is_an_empty_argument(run: Run, arguments: tuple[str, ...]) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith("error[E_CONFIG_VALUE]: `")
    assert "is empty" in errors


def test_so_is_an_empty_file_of_settings(run: Run, tmp_path: Path) -> None:
    assert run("score", "--config", "")[2].startswith("error[E_CONFIG_VALUE]: `config` is empty")
    file = tmp_path / "c.yaml"
    file.write_text("model: m\ndata: a.jsonl\nout: ''\n")
    code, _, errors = run("score", "--config", file)
    said = f"error[E_CONFIG_VALUE] {file}: setting `out` is empty (give a path; `.` is this folder)"
    assert (code, errors.strip()) == (2, said)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_scores_that_may_not_be_read_are_refused_as_input(run: Run, tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    scores.touch(mode=0)
    code, _, errors = run(
        "select", "--data", "embedded", "--scores", scores, "--out", tmp_path / "o"
    )
    assert code == 4
    assert f"] {scores}: " in errors
