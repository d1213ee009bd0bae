"""docs/experiment.md lists every key of the YAML, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fam_engine.embedded.problems import SKILLS, Style
from fam_engine.jobs.experiment.config import (
    AnswerSettings,
    BudgetSettings,
    ByModel,
    ByRule,
    ExperimentConfig,
    TaskSettings,
)
from fam_engine.jobs.experiment.job import STUDIES

PAGE = Path(__file__).parents[3] / "docs" / "experiment.md"


def keys_under(heading: str, *, table: int = 0) -> list[str]:
    """Give the first column of a section's table."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return re.findall(r"^\| `([^`]+)` \|", tables[table].split("\n", 2)[2], re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "settings"),
    [
        ("The study", ExperimentConfig),
        ("An entry of `tasks` or `retention`", TaskSettings),
        ("An entry of `answers`", AnswerSettings),
        ("`budget`", BudgetSettings),
    ],
)
def test_every_key_is_there_once(heading: str, settings: type) -> None:
    assert sorted(keys_under(heading)) == sorted(settings.model_fields)  # type: ignore[attr-defined]


def test_ways_to_make_answers_styles_and_skills() -> None:
    made = keys_under("An entry of `answers`", table=1)
    assert sorted(made) == sorted([*get_args(ByModel), *get_args(ByRule)])
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*SKILLS, *get_args(Style)))


@pytest.mark.parametrize("study", ["small", "paper"])
def test_our_studies_fit_the_schema(study: str) -> None:
    given = yaml.safe_load((STUDIES / f"{study}.yaml").read_text(encoding="utf-8"))
    assert ExperimentConfig.model_validate(given).title
