"""A whole experiment in miniature on the embedded model: its files, its determinism, its memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data.json_lines import write_json_lines
from fam_engine.embedded import MODEL
from fam_engine.errors import InputError
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.forecast import forecast_experiment
from fam_engine.jobs.experiment.job import OUTPUTS, run_experiment
from fam_engine.jobs.experiment.plan import plan_study
from fam_engine.jobs.experiment.questions import load_rows
from fam_engine.jobs.interrupts import Interrupted
from fam_engine.jobs.progress import Nobody

STUDY: dict[str, Any] = {
    "title": "miniature",
    "models": ["embedded"],
    "precision": "fp32",
    "device": "cpu",
    "tasks": {"new": {"skills": ["average", "perimeter"], "num_train": 6, "num_test": 3}},
    "retention": {"known": {"skills": ["change"], "num_test": 2, "first_seed": 7}},
    "answers": {
        "plain": {"style": "plain"},
        "formal": {"style": "formal"},
        "masked": {"of": "formal", "train": {"loss": "stm"}, "control": True},
        "brief": {"style": "brief", "control": True},
        "gold": {"make": "gold-only", "of": "plain", "control": True},
    },
    "reference": "formal",
    "seeds": [0],
    "train": {"steps": 1, "rank": 2},
    "eval": {"max_new_tokens": 4},
}


def study(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({**STUDY, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    run_experiment(study(), out, Nobody())
    return out


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_files_are_there(finished: Path) -> None:
    assert all((finished / name).is_file() for name in OUTPUTS)
    assert len(list((finished / "plots").glob("*.svg"))) == 4


def test_what_is_found(finished: Path) -> None:
    (cell,) = results(finished)["cells"]
    assert (cell["candidate"], cell["reference"]) == ("plain", "formal")
    assert cell["questions"] == {"new": 3, "known": 2}
    variants = cell["variants"]
    assert variants["plain"]["perplexity"]["value"] < variants["formal"]["perplexity"]["value"]
    # The same answers, trained on otherwise: one score, two trainings.
    assert variants["masked"]["metrics"] == variants["formal"]["metrics"]
    assert {entry["in_domain"]["by_seed"].keys() == {"0"} for entry in variants.values()} == {True}
    assert {one["what"] for one in cell["confounds"]} >= {"length", "mark"}
    assert cell["at_equal_length"].keys() == {"brief"}
    assert results(finished)["at_equal_length"].keys() == {"in_domain", "retention"}
    # Four tokens are too few for any answer in words, and the report has to say so.
    assert cell["cut"]["before training"] == cell["cut"]["plain"] == 1.0
    assert variants["plain"]["versus_candidate"]["in_domain"]["value"] is None
    assert variants["gold"]["versus_candidate"]["in_domain"]["value"] is not None
    assert results(finished)["foretelling"]["in_domain"]["num_variants"] == [4]


def test_a_second_run_computes_nothing(finished: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("steps/*/*/*")}
    forecast = forecast_experiment(study(), finished, Nobody())
    assert all(step["done"] for step in forecast["steps"])
    run_experiment(study(), finished, Nobody())
    assert before == {file: file.stat().st_mtime_ns for file in finished.glob("steps/*/*/*")}


def test_the_same_study_finds_the_same(finished: Path, tmp_path: Path) -> None:
    run_experiment(study(), tmp_path, Nobody())
    first, second = results(finished), results(tmp_path)
    first.pop("performance")
    second.pop("performance")
    assert first == second


def test_an_interrupted_study_goes_on_and_finds_the_same(finished: Path, tmp_path: Path) -> None:
    class Impatient(Nobody):
        def start(self, label: str, total: int | None, unit: str) -> None:
            if label.endswith("plain, seed 0: training"):
                raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_experiment(study(), tmp_path, Impatient())
    assert not (tmp_path / "results.json").exists()
    run_experiment(study(), tmp_path, Nobody())
    assert results(tmp_path)["cells"] == results(finished)["cells"]


def test_one_more_variant_adds_its_own_steps_alone(finished: Path) -> None:
    more = {**STUDY["answers"], "bare": {"make": "gold-only", "of": "plain", "form": "= {answer}"}}
    plan = plan_study(study(answers=more), finished)
    left = [(step.kind, step.label.rpartition(": ")[2]) for step in plan.steps if not step.is_done]
    assert left == [
        ("answers", "bare"),
        ("score", "bare"),
        ("train", "bare, seed 0"),
        ("eval", "bare, seed 0"),
    ]


def test_one_more_seed_trains_and_tests_alone(finished: Path) -> None:
    plan = plan_study(study(seeds=[0, 1]), finished)
    left = [step.kind for step in plan.steps if not step.is_done]
    assert left == ["train"] * 5 + ["eval"] * 5


def test_another_way_to_score_trains_nothing_anew(finished: Path) -> None:
    plan = plan_study(study(score={"max_length": 900}), finished)
    assert {step.kind for step in plan.steps if not step.is_done} == {"score"}


def test_models_of_one_name_are_told_apart_and_each_has_its_own_template(tmp_path: Path) -> None:
    folders = [shutil.copytree(MODEL, tmp_path / folder / "final") for folder in ("one", "two")]
    models = [str(folders[0]), {"model": str(folders[1]), "template": "none"}]
    plan = plan_study(study(models=models), tmp_path / "out")
    assert [cell.label for cell in plan.cells] == ["one/final", "two/final"]
    first, second = ({step.key for step in cell.scores.values()} for cell in plan.cells)
    assert not first & second
    # Of one model the same is asked only once.
    twins = plan_study(study(models=[str(folder) for folder in folders]), tmp_path / "out")
    first, second = ({step.key for step in cell.scores.values()} for cell in twins.cells)
    assert first == second


def test_a_training_that_diverges_does_not_end_the_study(tmp_path: Path) -> None:
    answers = {
        "plain": {"style": "plain"},
        "formal": {"style": "formal"},
        "wild": {"of": "formal", "train": {"learning_rate": 1e30, "steps": 9}},
    }
    found = run_experiment(study(answers=answers), tmp_path, Nobody())
    (cell,) = found["cells"]
    (lost,) = cell["diverged"]
    assert (lost["variant"], lost["seed"]) == ("wild", 0)
    assert lost["reason"].startswith("step ")
    wild, plain = cell["variants"]["wild"], cell["variants"]["plain"]
    assert wild["in_domain"] is wild["retention"] is None
    assert wild["versus_reference"]["in_domain"]["value"] is None
    assert plain["in_domain"]["by_seed"].keys() == {"0"}
    assert cell["verdict"]["in_domain"]["difference"]["value"] is not None
    assert "wild: 1 of 1 trainings diverged" in (tmp_path / "report.md").read_text()


@pytest.fixture
def with_long(tmp_path: Path) -> dict[str, Any]:
    """A study with a variant all of whose answers are longer than the model's context of 1024."""
    sums = [f"What is {n} + 1?" for n in range(6)]
    for name, reasoning in (("long", "so " * 3000), ("short", "")):
        rows = [{"prompt": q, "response": f"{reasoning}It is {n + 1}."} for n, q in enumerate(sums)]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    write_json_lines(tmp_path / "test.jsonl", [{"prompt": "What is 7 + 1?", "answer": "8"}])
    return {
        "tasks": {"sums": {"test": str(tmp_path / "test.jsonl"), "kind": "math"}},
        # First, so that it is the first that a trial would train on.
        "answers": {
            "long": {"file": str(tmp_path / "long.jsonl")},
            "short": {"file": str(tmp_path / "short.jsonl")},
            "tight": {"of": "short", "train": {"max_length": 4}},
            "plain": {"make": "without-marks", "of": "short"},
        },
        "reference": "short",
        "seeds": [0, 1],
    }


def test_a_variant_that_does_not_fit_the_model_is_left_out(
    with_long: dict[str, Any], tmp_path: Path
) -> None:
    class Impatient(Nobody):
        def start(self, label: str, total: int | None, unit: str) -> None:
            if label.endswith("short, seed 0: training"):
                raise Interrupted(2)

    config, out = study(**with_long), tmp_path / "out"
    with pytest.raises(Interrupted):
        run_experiment(config, out, Impatient())
    found = run_experiment(config, out, Nobody())
    (cell,) = found["cells"]
    assert cell["variants"].keys() == {"short", "plain"}
    assert cell["seeds"] == [0, 1]
    assert cell["variants"]["plain"]["in_domain"]["by_seed"].keys() == {"0", "1"}
    assert found["left_out"] == {}
    told = {
        name: reason.partition("E_TOO_LONG: is ")[2] for name, reason in cell["dropped"].items()
    }
    assert told["long"].startswith("3016 tokens long, expected at most 1024 ")
    assert "tokens long, expected at most 4 " in told["tight"]
    for name in OUTPUTS[1:]:
        assert "long is left out: not one record is usable" in (out / name).read_text()
    before = {file: file.stat().st_mtime_ns for file in out.glob("steps/*/*/*")}
    assert run_experiment(config, out, Nobody())["cells"] == found["cells"]
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("steps/*/*/*")}


def test_a_variant_that_could_not_be_scored_is_back_once_it_can(
    with_long: dict[str, Any], tmp_path: Path
) -> None:
    answers = with_long["answers"]
    chatty = [
        {**row, "response": "so " * 100 + row["response"]}
        for row in load_rows(tmp_path / "short.jsonl")
    ]
    write_json_lines(tmp_path / "chatty.jsonl", chatty)
    kept = {"short": answers["short"], "chatty": {"file": str(tmp_path / "chatty.jsonl")}}
    dropped = []
    for length in (60, 1024):
        config = study(**{**with_long, "answers": kept, "score": {"max_length": length}})
        (cell,) = run_experiment(config, tmp_path / "out", Nobody())["cells"]
        dropped.append(list(cell["dropped"]))
    assert dropped == [["chatty"], []]
    assert cell["variants"].keys() == {"short", "chatty"}


@pytest.mark.parametrize(("reference", "trained"), [("long", []), ("tight", ["short"])])
def test_a_reference_that_does_not_fit_the_model_ends_the_study(
    with_long: dict[str, Any], tmp_path: Path, reference: str, trained: list[str]
) -> None:
    config = study(**{**with_long, "reference": reference})
    for _ in range(2):
        with pytest.raises(
            InputError, match=f"`{reference}` has no answers .*E_TOO_LONG"
        ) as caught:
            run_experiment(config, tmp_path / "out", Nobody())
        assert (caught.value.code, caught.value.where) == ("E_STUDY_REFERENCE", "embedded")
    adapters = (tmp_path / "out").glob("steps/train/*/adapter")
    assert [one.parent.name.split("--")[2].split("-")[0] for one in adapters] == trained


def test_a_reference_without_an_answer_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    """The model's own answers, none of them right, are known once they are made."""
    answers = {"plain": {"style": "plain"}, "own": {"make": "self", "of": "plain"}}
    for _ in range(2):
        with pytest.raises(InputError, match="the reference `own` has no answers to `new`"):
            run_experiment(study(answers=answers, reference="own"), tmp_path, Nobody())
        kinds = {path.name for path in (tmp_path / "steps").iterdir()}
        assert not kinds & {"score", "train", "eval"}


def test_missing_files_are_named_one_by_one(tmp_path: Path) -> None:
    task = {"test": "no/test.jsonl", "source": "the moon"}
    answers = {"a": {"file": "no/{task}-a.jsonl"}, "b": {"file": "no/{task}-b.jsonl"}}
    config = study(tasks={"far": task}, answers=answers, reference="a")
    notes: list[str] = []
    listener = Nobody()
    listener.note = notes.append  # type: ignore[method-assign]
    with pytest.raises(InputError, match="3 data files are missing"):
        run_experiment(config, tmp_path, listener)
    assert [note.partition(":")[0] for note in notes] == [
        "no/test.jsonl",
        "no/far-a.jsonl",
        "no/far-b.jsonl",
    ]
    assert "get it from: the moon" in notes[0]
