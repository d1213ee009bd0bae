"""README and the pages: their Python runs, their commands, flags, columns and figures are real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

from fam_engine.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
PROGRAM = typer.main.get_command(app)


def flags_of(command: typer.core.TyperCommand) -> set[str]:
    return {option.removeprefix("--") for given in command.params for option in given.opts}


# By command, the names of its flags.
COMMANDS = {name: flags_of(command) for name, command in PROGRAM.commands.items()}  # type: ignore[attr-defined]
# Flags of other programs that pages name, and the one that every command takes.
OTHERS = {"debug", "max-lora-rank"}


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert capsys.readouterr().out.count("'perplexity'") == 2
    rows = names["table"].to_pylist()  # type: ignore[attr-defined]
    assert rows[0]["perplexity"] < rows[1]["perplexity"]


@pytest.mark.parametrize("page", [p for p in PAGES if p != "docs/lm-eval.md"])
def test_every_flag_it_names_exists(page: str) -> None:
    flags = set(re.findall(r"`--([a-z][a-z-]+)", PAGES[page]))
    assert flags <= flags_of(PROGRAM).union(*COMMANDS.values(), OTHERS)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_it_shows_has_the_flags_shown(page: str) -> None:
    for name, arguments in re.findall(r"^(?:\$ )?fam-engine ([\w-]+) (.*)$", PAGES[page], re.M):
        assert (
            name == "lm-eval" or set(re.findall(r"--([a-z][a-z-]+)", arguments)) <= COMMANDS[name]
        )


def test_every_command_is_shown_somewhere_and_named_by_the_readme() -> None:
    shown = set(re.findall(r"^(?:\$ )?fam-engine ([\w-]+) ", "\n".join(PAGES.values()), re.M))
    assert shown == set(COMMANDS)
    table = README.split("| command |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z][a-z-]*)", table)) == set(COMMANDS)


def test_every_page_the_readme_names_is_there() -> None:
    links = re.findall(r"\]\((docs/[\w/-]+\.md)\)", README)
    assert len(set(links)) > 10
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_every_column_of_scores_is_explained_and_none_else() -> None:
    from fam_engine.jobs.scoring.files import scores_schema

    section = PAGES["docs/scoring.md"].split("## What is measured")[1].split("##")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", "".join(re.findall(r"^\|(.*?)\|", section, re.M))))
    columns = set(scores_schema(ifd=True, in_context=True).names)
    labels = {"id", "file", "line", "source", "group", "correct", "text_digest"}
    counts = {"num_prompt_tokens", "num_response_tokens", "num_bytes"}
    assert named == columns - labels - counts


def test_the_readmes_figures_are_those_of_the_raw_data() -> None:
    results = ROOT / "benchmarks" / "results"
    rows = [
        row
        for precision in ("bf16", "nf4")
        for row in json.loads((results / f"score_cpu_{precision}.json").read_text())["results"]
    ]
    ratios = [row["ratio"] for row in rows]
    assert f"is {min(ratios):.1f} to {max(ratios):.1f} times as fast" in " ".join(README.split())
    memory = [row["fam-engine"]["peak_bytes"] / row[row["best_peer"]]["peak_bytes"] for row in rows]
    assert 0.25 < min(memory) < max(memory) < 0.42, "a third of its memory"
    records = json.loads((results / "records_cpu.json").read_text())["results"]
    assert round(records["trl"]["ratio"], -1) == 210, "210 times as fast as with TRL"
