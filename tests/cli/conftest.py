"""What the tests of the command line share: the program, run in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fam_engine.cli import main

Run = Callable[..., tuple[int, str, str]]
QUESTIONS = [
    {"id": f"q{n}", "prompt": f"{n} + 1?\n", "response": str(n + 1), "answer": str(n + 1)}
    for n in range(4)
]
MODEL_COMMANDS = {
    "score": "score --tokens",
    "train": "train --steps 1 --rank 1 --batch-size 2 --save-every 1",
    "generate": "generate --max-new-tokens 2",
    "rewrite": "rewrite --max-new-tokens 2 --samples 1",
    "eval": "eval --max-new-tokens 2",
    "tokenize": "tokenize --ids jsonl",
}
COMMANDS = (*MODEL_COMMANDS, "select")
Line = Callable[[str, Path | None], list[str | Path]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process; give exit code, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fam-engine", *map(str, arguments)])
        try:
            main.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def line(tiny_model: Path, tmp_path: Path) -> Line:
    """Give the command line of a small job that writes into a folder, or names none."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))

    def make(command: str, out: Path | None) -> list[str | Path]:
        words: list[str | Path] = [*MODEL_COMMANDS.get(command, command).split(), "--quiet"]
        words += ["--data", data, *(["--out", out] if out else [])]
        if command == "select":
            return [*words, "--scores", tmp_path / "s" / "scores.parquet"]
        words += ["--model", tiny_model]
        return words if command == "tokenize" else [*words, "--device", "cpu"]

    return make
