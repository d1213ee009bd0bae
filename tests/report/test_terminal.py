"""The terminal's tables are readable at 80 columns, with or without colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from fam_engine.measure import sources
from fam_engine.measure.summary import summarize
from fam_engine.report.terminal import print_summary

Columns = dict[str, list[Any]]
MakeColumns = Callable[[list[str], int], Columns]


def printed(columns: Columns, *, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal)
    print_summary(summarize(columns, seed=0), {"E_TOO_LONG": 3}, console)
    return file.getvalue()


def test_eighty_columns_hold_every_figure(make_columns: MakeColumns) -> None:
    text = printed(make_columns(["self", "a source with quite a long name"], 200))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert "\u2026" not in text
    (row,) = [line for line in lines if line.startswith(" self ")]
    # Four averages, bits a byte, and the share correct with its sign.
    assert len(row.split()) == 1 + 4 + 1 + 2
    below = lines[lines.index(row) + 1]
    assert below.count("-") == 4
    assert "E_TOO_LONG" in text
    assert "boundary_merged" in text
    assert "self has the lowest perplexity of 2 sources" in text


def test_what_was_asked_for_besides_has_a_table(make_columns: MakeColumns) -> None:
    columns = make_columns(["self", "a source with quite a long name"], 30)
    assert "IFD" not in printed(columns)
    columns["ifd"] = [0.5] * 30 + [None] * 30
    lines = printed(columns).splitlines()
    assert max(map(len, lines)) <= 80
    begin = next(number for number, line in enumerate(lines) if "IFD" in line)
    assert "after examples" not in lines[begin]
    assert next(line for line in lines[begin:] if line.startswith(" self ")).split()[1] == "0.50"
    assert any(
        line.startswith(" a source") and line.rstrip().endswith("-") for line in lines[begin:]
    )


def test_control_characters_do_not_reach_the_terminal(make_columns: MakeColumns) -> None:
    text = printed(make_columns(["\x1b[2Jx", "[bold]markup[/bold]"], 5))
    assert "\x1b" not in text
    assert "\\x1b[2Jx" in text
    assert "[bold]markup" in text


def test_no_color(make_columns: MakeColumns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = printed(make_columns(["self"], 5), terminal=True)
    assert "\x1b[3" not in text


def test_no_records(make_columns: MakeColumns) -> None:
    text = printed(make_columns([], 0))
    assert "No answer was scored." in text
    assert "E_TOO_LONG" in text


def test_absurd_figures_still_fit(make_columns: MakeColumns) -> None:
    columns = make_columns(["a"], 30)
    columns["nll_mean"][0], columns["perplexity"][0] = 700.0, 1e304
    text = printed(columns)
    assert max(map(len, text.splitlines())) <= 80


def test_names_that_begin_alike_stay_apart(make_columns: MakeColumns) -> None:
    names = [
        f"gpt_step_by_step_while_keeping_{what}_of_the_reference" for what in ("words", "style")
    ]
    columns = make_columns(names, 30)
    columns["perplexity"] = [1234.5] * 60
    columns["nll_mean"] = [7.0, 7.2] * 30
    text = printed(columns)
    assert max(map(len, text.splitlines())) <= 80
    rows = text.split("gpt_step_by_step")
    assert rows[1] != rows[2]
    # Thousands and their intervals take two lines, as everything does.
    assert "1235-1235" in text or "1234-1234" in text


def test_of_many_sources_some_are_shown_and_the_rest_counted(
    make_columns: MakeColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_SOURCES", 40)
    text = printed(make_columns([f"https://page/{number}" for number in range(50)], 2))
    table, below = text.split("0 has the lowest perplexity of the largest sources")
    assert table.count("https://") == 31  # with the one that the headline begins with
    assert "and 10 more" in table
    assert "others (10)" in table
    assert table.split("others (10)")[1].splitlines()[1].startswith(" 20, ")
    assert "the rest, 20 of 100 records, is taken together" in " ".join(below.split())
    assert max(map(len, text.splitlines())) <= 80
