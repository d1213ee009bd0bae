"""Paths that cannot be one are refused before anything is done, in one line that names what was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import COMMANDS, Line, Run

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
    assert ": is empty, given " in errors
    assert "(give a path; `.` is this folder)" in errors
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
    assert code == 2
    assert errors.startswith(f"error[E_CONFIG_VALUE] {file}: setting `out`: is empty, given ''")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_scores_that_may_not_be_read_are_refused_as_input(run: Run, tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    scores.touch(mode=0)
    code, _, errors = run(
        "select", "--data", "embedded", "--scores", scores, "--out", tmp_path / "o"
    )
    assert code == 4
    assert f"] {scores}: " in errors


@pytest.mark.parametrize("name", ["-", "pipe.jsonl"])
def test_a_pipe_is_refused_with_what_to_do(run: Run, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    path = name if name == "-" else tmp_path / name
    code, _, errors = run("score", "--model", "embedded", "--data", path, "--out", tmp_path / "out")
    assert code == 4
    assert f"error[E_INPUT_FILE] {path}: " in errors
    assert "(write it to a file first: " in errors


_LATIN = os.fsdecode(b"caf\xe9")  # as a shell hands over what another system has named


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_not_utf_8_is_refused(
    run: Run, line: Line, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    if command == "select":
        assert run(*line("score", tmp_path / "s"))[0] == 0
    code, _, errors = run(*line(command, out), "--data", f"{_LATIN}.jsonl")
    assert code == 4
    assert errors.endswith(
        "error[E_INPUT_FILE] caf\\udce9.jsonl: has a name that is not UTF-8 "
        "(rename it, or call it through a link)\n"
    )
    code, _, errors = run(*line(command, tmp_path / _LATIN))
    assert code == 2
    assert errors.startswith("error[E_CONFIG_VALUE]: setting `out`: has a name that is not UTF-8")


@pytest.mark.parametrize("command", ["status", "compare a", "experiment small --out"])
def test_so_is_such_an_argument(run: Run, command: str) -> None:
    code, _, errors = run(*command.split(), _LATIN)
    assert code == 2
    assert errors.startswith("error[E_CONFIG_VALUE] caf\\udce9: `")


def test_a_link_to_it_and_a_folder_above_it_are_taken(
    run: Run, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line("score", None)
    try:
        (tmp_path / _LATIN).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "data.jsonl").rename(tmp_path / f"{_LATIN}.jsonl")
    (tmp_path / "data.jsonl").symlink_to(tmp_path / f"{_LATIN}.jsonl")
    monkeypatch.chdir(tmp_path / _LATIN)
    assert run(*words, "--out", "out")[0] == 0
    assert run("status", "out")[0] == 0
