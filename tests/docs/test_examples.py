"""The tutorial and the notebook: every command and cell runs, and prints what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.examples import TUTORIAL, is_same, read_notebook, run_notebook, run_page, shown_by


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    page = TUTORIAL.read_text(encoding="utf-8")
    num_run = 0
    for typed, shown, printed in run_page(page, tmp_path):
        assert is_same(shown, printed), f"{typed}shows\n{shown}\nprinted\n{printed}"
        num_run += 1
    assert num_run >= 10


def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    num_run = 0
    for cell, printed in run_notebook(read_notebook(), tmp_path):
        assert is_same(shown_by(cell), printed), f"shows\n{shown_by(cell)}\nprinted\n{printed}"
        num_run += bool(printed)
    assert num_run == 3


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("mean 3.53 in 9 s, 40 of 200", True),
        ("mean 3.60 in 12 s, 41 of 200", True),
        ("mean 4.20 in 9 s, 40 of 200", False),
        ("mean 3.53 in 9 s, 40 of 900", False),
        ("median 3.53 in 9 s, 40 of 200", False),
        ("mean 3.53 in 9 s, 40 of 200 records", False),
    ],
)
def test_what_counts_as_the_same(printed: str, expected: bool) -> None:
    assert is_same("mean 3.53 in 9 s, 40 of 200", printed) is expected
