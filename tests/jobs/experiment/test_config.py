"""The YAML: what is refused, in one line, and that the studies we ship are sound."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fam_engine.errors import UsageError
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.job import STUDIES, read_study
from fam_engine.settings_reading import read_config

GOOD: dict[str, Any] = {
    "title": "t",
    "models": ["embedded"],
    "tasks": {"new": {"skills": ["average"], "num_train": 4, "num_test": 2}},
    "answers": {"plain": {"style": "plain"}, "formal": {"style": "formal"}},
    "reference": "formal",
}


def read(tmp_path: Path, **changes: object) -> ExperimentConfig:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return read_config(ExperimentConfig, {}, file)


def test_good_study(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.seeds == (0, 1, 2)
    assert list(config.variants_of("new")) == ["plain", "formal"]


def test_a_model_may_have_a_template_of_its_own(tmp_path: Path) -> None:
    told, own = {"enable_thinking": False}, {"model": "a/b", "template": "none"}
    config = read(
        tmp_path,
        chat_template_kwargs=told,
        models=["m", {**own, "chat_template_kwargs": {}}],
    )
    plain, other = (config.model_settings(name) for name in ("m", "a/b"))
    assert (plain["model"], plain["template"], plain["chat_template_kwargs"]) == ("m", "auto", told)
    assert (other["template"], other["chat_template_kwargs"]) == ("none", {})
    assert {**plain, **own, "chat_template_kwargs": {}} == other
    assert config.model_names == ["m", "a/b"]
    assert read(tmp_path, models="m").model_names == ["m"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"taskz": {}}, "unknown setting `taskz`; did you mean `tasks`?"),
        (
            {"reference": "formol"},
            "study.yaml: reference `formol` is no variant; did you mean `formal`? (see",
        ),
        ({"models": ["m", {"model": "m"}]}, "`m` is named more than once"),
        ({"models": [{"model": "m", "templat": "none"}]}, "did you mean `template`?"),
        ({"train": {"learning-rat": 1}}, "`learning_rat` cannot be set here"),
        ({"train": {"seed": 1}}, "`seed` cannot be set here"),
        ({"eval": {"chat-template-kwargs": {}}}, "`chat_template_kwargs` cannot be set here"),
        ({"train": {"rank": 0}}, "`rank`: Input should be greater than or equal to 1"),
        ({"eval": {"max_new_tokens": "many"}}, "`max_new_tokens`"),
        ({"seeds": [1, 1]}, "expected different numbers"),
        ({"seeds": [0, -1]}, "`seeds.1`: Input should be greater than or equal to 0"),
        ({"seeds": [2**64]}, "`seeds.0`: Input should be less than 18446744073709551616"),
        ({"tasks": {"new": {"skills": ["averag"], "num_test": 2}}}, "did you mean `average`?"),
        (
            {"answers": {"plain": {"stile": "plain"}, "b": {"style": "formal"}}},
            "study.yaml: setting `answers.plain`: `stile` is unknown; did you mean `style`? (see",
        ),
        ({"tasks": {"new": {}}}, "give either `test` (a file) or `skills`"),
        (
            {"answers": {**GOOD["answers"], "gold": {"make": "gold-only"}}},
            "give one of `file`, `style` and `of`",
        ),
        (
            {"answers": {"gold": {"make": "gold-only", "of": "plain"}, **GOOD["answers"]}},
            "`gold` is made from `plain`, which is no variant before it",
        ),
        (
            {"answers": {**GOOD["answers"], "gold": {"make": "gold", "of": "plain"}}},
            "setting `answers.gold.make`: Input should be 'rewrite', 'self', 'explain', "
            "'minimum-change', 'gold-only'",
        ),
        (
            {"answers": {**GOOD["answers"], "same": {"of": "plain"}}},
            "need `train` settings of their own",
        ),
        (
            {"answers": {**GOOD["answers"], "x": {"make": "length-matched", "of": "plain"}}},
            "`to` goes together with",
        ),
        ({"answers": {**GOOD["answers"], "x": {"file": "a.jsonl"}}}, "takes no files"),
        ({"retention": {"new": {"skills": ["change"], "num_test": 2}}}, "both a task and"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "study.yaml" in message


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDIES.glob("*.yaml")))
def test_shipped_studies_are_sound(name: str) -> None:
    config = read_study(name)
    assert len(config.seeds) >= 3
    assert config.reference in config.answers


def test_the_documented_study_is_sound(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "experiment.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    file = tmp_path / "study.yaml"
    file.write_text(block)
    assert read_study(str(file)).reference == "human"


def test_unknown_study_names_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="one of paper, small"):
        read_study("smal")
