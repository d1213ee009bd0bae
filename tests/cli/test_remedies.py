"""What the program cannot read names what to write instead."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        *(
            (f"{name} x.jsonl", "(give files with --data)")
            for name in ("score", "generate", "rewrite")
        ),
        *((f"{name} x.jsonl", "(give files with --data)") for name in ("select", "train", "eval")),
        ("score --map question=q answer=a", "(repeat --map before each field=column)"),
        ("train --resume", "(a stopped run goes on when the same command is given again)"),
    ],
)
def test_an_error_of_usage_says_what_to_do(run: Run, arguments: str, remedy: str) -> None:
    code, _, errors = run(*arguments.split())
    words = " ".join(errors.replace("\u2502", " ").split())  # out of its box
    assert code == 2
    assert remedy in words


@pytest.mark.parametrize("arguments", ["status a b", "score --bogus", "select --resume", "nothing"])
def test_nothing_is_said_that_would_not_help(run: Run, arguments: str) -> None:
    code, _, errors = run(*arguments.split())
    assert code == 2
    assert "give files" not in errors
    assert "stopped run" not in errors
