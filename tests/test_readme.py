from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer

from fam_engine.cli.main import app

ROOT = typer.main.get_command(app)


def flags_of(command: click.Command) -> set[str]:
    return {option.removeprefix("--") for given in command.params for option in given.opts}


# By command, the names of its flags.
COMMANDS = {name: flags_of(command) for name, command in ROOT.commands.items()}  # type: ignore[attr-defined]
ROOT_FLAGS = flags_of(ROOT)
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("'perplexity'") == 2
    rows = names["table"].to_pylist()  # type: ignore[attr-defined]
    assert rows[0]["perplexity"] < rows[1]["perplexity"]


def test_every_flag_it_names_exists() -> None:
    flags = set(re.findall(r"--([a-z][a-z-]+)", README))
    assert flags <= ROOT_FLAGS.union(*COMMANDS.values())


def test_every_command_it_shows_has_the_flags_shown() -> None:
    lines = re.findall(r"^fam-engine ([\w-]+) (.*)$", README, re.M)
    assert {name for name, _ in lines} == set(COMMANDS)
    for name, arguments in lines:
        assert set(re.findall(r"--([a-z][a-z-]+)", arguments)) <= COMMANDS[name], name


def test_every_column_it_names_exists_and_none_is_missing() -> None:
    from fam_engine.jobs.scoring.files import scores_schema

    section = README.split("## What is measured")[1].split("##")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", "".join(re.findall(r"^\|(.*?)\|", section, re.M))))
    columns = set(scores_schema(ifd=True, in_context=True).names)
    labels = {"id", "file", "line", "source", "group", "correct"}
    counts = {"num_prompt_tokens", "num_response_tokens", "num_bytes"}
    assert named == columns - labels - counts
