"""What the program cannot read names what to write instead."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        *(
            (f"{name} x.jsonl", "(give files with --data;")
            for name in ("score", "generate", "rewrite", "select", "train", "eval")
        ),
        ("score --map question=q answer=a", "(repeat --map before each field=column;"),
        ("eval --adapter a b", "(repeat --adapter before each;"),
        ("eval --data x.jsonl --adapter a b c", "(repeat --adapter before each;"),
        ("train --resume", "(a stopped run goes on when the same command is given again;"),
    ],
)
def test_an_error_of_usage_says_what_to_do(run: Run, arguments: str, remedy: str) -> None:
    code, _, errors = run(*arguments.split())
    assert code == 2
    assert remedy in errors


@pytest.mark.parametrize(
    "arguments",
    [
        *("status a b", "score --bogus", "select --resume", "nothing"),
        "eval --data x.jsonl --limit 1 y.jsonl",
    ],
)
def test_nothing_is_said_that_would_not_help(run: Run, arguments: str) -> None:
    code, _, errors = run(*arguments.split())
    assert code == 2
    assert "give files" not in errors
    assert "stopped run" not in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--bogus", "no such option: --bogus (see fam-engine --help)"),
        ("nothing", "no such command 'nothing' (see fam-engine --help)"),
        ("score --limt 1", "no such option: --limt; did you mean --limit? (see fam-engine score "),
        ("score --limit abc", "invalid value for '--limit': "),
        (
            "select --scores",
            "option '--scores' requires an argument (see fam-engine select --help)",
        ),
        ("score --dry-run=3", "option '--dry-run' does not take a value (see fam-engine score "),
        ("status", "missing argument '"),
        ("status a b", "got unexpected extra argument"),
        ("config nothing", "no such command 'nothing' (see fam-engine config --help)"),
        ("config schema --bogus", "no such option: --bogus (see fam-engine config schema --help)"),
        ("score --bogus --debug", "no such option: --bogus"),
    ],
)
def test_an_error_of_usage_is_one_line_with_a_code(run: Run, arguments: str, said: str) -> None:
    code, out, errors = run(*arguments.split())
    assert (code, out, errors.count("\n")) == (2, "", 1)
    # Releases of click differ in how they set off what was given.
    plain = [text.replace("'", "").replace("option:", "option") for text in (errors, said)]
    assert plain[0].startswith(f"error[E_USAGE]: {plain[1]}")
    assert errors.endswith(" --help)\n")


@pytest.mark.parametrize(("arguments", "code"), [("", 2), ("config", 2), ("score --help", 0)])
def test_help_is_still_printed(run: Run, arguments: str, code: int) -> None:
    found, out, errors = run(*arguments.split())
    assert found == code
    assert "Usage: fam-engine" in out
    assert "error" not in errors
