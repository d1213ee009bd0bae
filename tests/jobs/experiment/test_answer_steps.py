"""Variants from files and from a model, as records to the same questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fam_engine.config import RewriteConfig
from fam_engine.data.json_lines import write_json_lines
from fam_engine.errors import InputError
from fam_engine.jobs.experiment import model_steps
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.plan import plan_study
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.questions import load_rows
from fam_engine.jobs.experiment.steps import run_steps
from fam_engine.jobs.progress import Nobody

QUESTIONS = [f"What is {n} + 1?" for n in range(14)]


def human(path: Path) -> None:
    rows = [
        {"prompt": question, "response": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        | {"answer": str(n + 1)}
        for n, question in enumerate(QUESTIONS)
    ]
    write_json_lines(path, rows)


def model(path: Path) -> None:
    """Write answers in another form and order: one missing, one wrong, one to another question."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": q}], "response": f"The answer is {n + 1}."}
        for n, q in enumerate(QUESTIONS[:13])
    ]
    rows[2]["response"] = "The answer is 99."
    rows.append({"messages": [{"role": "user", "content": "Who?"}], "response": "Me."})
    write_json_lines(path, rows[::-1])


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    human(tmp_path / "sums-human.jsonl")
    model(tmp_path / "sums-gpt.jsonl")
    write_json_lines(tmp_path / "test.jsonl", [{"prompt": QUESTIONS[0], "answer": "1"}])
    return {
        "title": "t",
        "models": ["embedded"],
        "tasks": {"sums": {"test": str(tmp_path / "test.jsonl")}},
        "answers": {
            "human": {"file": str(tmp_path / "{task}-human.jsonl")},
            "gpt": {"file": str(tmp_path / "{task}-gpt.jsonl")},
            "bare": {"make": "without-marks", "of": "human"},
            "right": {"make": "correct-only", "of": "gpt"},
        },
        "reference": "human",
        "budget": {"records": 12},
    }


def made(study: dict[str, Any], out: Path) -> dict[str, list[dict[str, Any]]]:
    """Make the variants and give their records."""
    plan = plan_study(ExperimentConfig.model_validate(study), out)
    needed = [step for step in plan.steps if step.kind in ("questions", "answers", "rewrite")]
    run_steps(needed, StudyProgress(Nobody()), lambda: None)
    (cell,) = plan.cells
    return {name: load_rows(step.folder / "records.jsonl") for name, step in cell.answers.items()}


def test_variants_answer_the_same_questions(study: dict[str, Any], tmp_path: Path) -> None:
    found = made(study, tmp_path / "out")
    # The first question is in the test; of the others, the first 12.
    assert [row["prompt"] for row in found["human"]] == QUESTIONS[1:13]
    assert [row["group"] for row in found["gpt"]] == [row["group"] for row in found["human"]]
    assert all(row["source"] == "gpt" for row in found["gpt"])
    assert [row["correct"] for row in found["gpt"]].count(False) == 1
    assert len(found["right"]) == 11
    assert found["bare"][0]["response"] == "It is 2.\n#### 2"


def test_a_file_that_answers_none_of_the_questions(study: dict[str, Any], tmp_path: Path) -> None:
    write_json_lines(tmp_path / "sums-gpt.jsonl", [{"prompt": "Who?", "response": "Me."}])
    with pytest.raises(InputError, match="answers none of the 12 training questions"):
        made(study, tmp_path / "out")


def turns(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def parts(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": question}]}]


@pytest.mark.parametrize(
    ("column", "form"),
    [("prompt", str), ("prompt", turns), ("messages", turns), ("messages", parts)],
)
def test_a_question_is_known_again_in_any_form(
    study: dict[str, Any], tmp_path: Path, column: str, form: Callable[[str], object]
) -> None:
    for name in ("sums-human", "sums-gpt", "test"):
        file = tmp_path / f"{name}.jsonl"
        rows = load_rows(file)
        asked = [row.pop("prompt", None) or row.pop("messages")[0]["content"] for row in rows]
        write_json_lines(
            file, ({**row, column: form(text)} for row, text in zip(rows, asked, strict=True))
        )
    found = made(study, tmp_path / "out")
    assert (len(found["human"]), len(found["gpt"])) == (12, 12)
    (counts,) = (tmp_path / "out").glob("steps/questions/*training*/counts.json")
    assert json.loads(counts.read_text()) == {"read": 14, "in_test": 1, "repeated": 0}


def test_an_answer_is_joined_to_the_very_question(study: dict[str, Any], tmp_path: Path) -> None:
    """A name leaves out some notation; an answer to another question would be trained on."""
    asked = ["What is arcsin (-1)?", "What is 3 times 4?", "Add 1, 5"]
    other = ["What is arcsin 1?", "What  is 3 times 4?\n", "Add 1; 5"]
    for name, questions in (("human", asked), ("gpt", other)):
        rows = [{"prompt": question, "response": f"{name}: 12."} for question in questions]
        write_json_lines(tmp_path / f"sums-{name}.jsonl", rows)
    study["answers"] = {name: study["answers"][name] for name in ("human", "gpt")}
    found = made(study, tmp_path / "out")
    assert [row["prompt"] for row in found["human"]] == asked
    assert [row["prompt"] for row in found["gpt"]] == [asked[1]]


def test_of_its_own_answers_only_verified_ones_stay(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rewrite(config: RewriteConfig, progress: object) -> None:
        asked.append((config.method, config.samples))
        rows = [
            {**row, "response": "It is.", "provenance": {"fell_back": place % 2 == 1}}
            for place, row in enumerate(load_rows(Path(config.data[0])))
        ]
        write_json_lines(config.out / "rewritten.jsonl", rows)

    monkeypatch.setattr(model_steps, "run_rewrite", rewrite)
    study["answers"] |= {
        "self": {"make": "self", "of": "human"},
        "own-words": {"make": "rewrite", "of": "human"},
    }
    study["rewrite"] = {"samples": 7}
    found = made(study, tmp_path / "out")
    assert asked == [("answer", 7), ("rewrite", 7)]
    assert (len(found["self"]), len(found["own-words"])) == (6, 12)
    assert {row["source"] for row in found["self"]} == {"self"}
    (counts,) = (tmp_path / "out").glob("steps/answers/*self*/counts.json")
    assert json.loads(counts.read_text()) == {"read": 12, "own": 6}
