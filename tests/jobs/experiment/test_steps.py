"""Steps: computed once, keyed by what they depend on, resumed, bounded in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.errors import DivergedError, InputError, UsageError
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.steps import EMPTY, UNUSABLE, Step, StepMaker, run_steps
from fam_engine.jobs.progress import Nobody


class Counter:
    """Work that writes a file and counts how often it ran."""

    def __init__(self, *errors: Exception) -> None:
        self.runs = 0
        self._errors = list(errors)

    def __call__(self, folder: Path, progress: StudyProgress) -> None:
        self.runs += 1
        (folder / "found").write_text(str(self.runs))
        if self._errors:
            raise self._errors.pop(0)


def run(*steps: Step, budget: float | None = None) -> None:
    run_steps(steps, StudyProgress(Nobody()), lambda: None, budget_seconds=budget)


def test_a_finished_step_never_runs_again(tmp_path: Path) -> None:
    work = Counter()
    for _ in range(2):
        run(StepMaker(tmp_path).make("train", "a", {"x": 1}, [], work))
    assert work.runs == 1


def test_a_change_reaches_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    def keys(x: int) -> list[str]:
        maker = StepMaker(tmp_path)
        first = maker.make("answers", "first", {"x": x}, [], Counter())
        second = maker.make("answers", "second", {"x": 0}, [], Counter())
        return [
            maker.make("train", "t", {}, needs, Counter()).key
            for needs in ([first], [second], [first, second])
        ]

    changed = [before != after for before, after in zip(keys(1), keys(2), strict=True)]
    assert changed == [True, False, True]


def test_the_same_step_under_another_name_is_found(tmp_path: Path) -> None:
    work = Counter()
    run(StepMaker(tmp_path).make("score", "formal", {"x": 1}, [], work))
    other = StepMaker(tmp_path).make("score", "formal, masked", {"x": 1}, [], work)
    assert other.is_done
    maker = StepMaker(tmp_path)
    assert maker.make("score", "a", {}, [], work) is maker.make("score", "b", {}, [], work)


def test_a_step_that_failed_keeps_its_folder_and_runs_again(tmp_path: Path) -> None:
    work = Counter(RuntimeError("killed"))
    step = StepMaker(tmp_path).make("train", "a", {}, [], work)
    with pytest.raises(RuntimeError):
        run(step)
    assert not step.is_done
    assert (step.folder / "found").is_file()
    run(step)
    assert step.is_done
    assert work.runs == 2


def test_a_step_begun_under_other_conditions_starts_over(tmp_path: Path) -> None:
    work = Counter(UsageError("threads differ", code="E_RESUME_MISMATCH"))
    step = StepMaker(tmp_path).make("train", "a", {}, [], work)
    run(step)
    assert work.runs == 2
    refused = Counter(UsageError("no", code="E_CONFIG_VALUE"))
    with pytest.raises(UsageError, match="no"):
        run(StepMaker(tmp_path).make("train", "b", {"y": 1}, [], refused))


def test_a_variant_without_answers_takes_what_needs_it_along(tmp_path: Path) -> None:
    maker = StepMaker(tmp_path)
    nothing = Counter(InputError("leaves none", code=EMPTY))
    answers = maker.make("answers", "a", {}, [], nothing)
    train, other = Counter(), Counter()
    trained = maker.make("train", "a", {}, [answers], train)
    run(answers, trained, maker.make("train", "b", {}, [], other))
    assert answers.empty == trained.empty == "leaves none"
    assert (train.runs, other.runs) == (0, 1)


@pytest.mark.parametrize("kind", ["rewrite", "score", "train"])
def test_a_variant_that_the_model_cannot_take_is_an_outcome(tmp_path: Path, kind: str) -> None:
    def steps() -> list[Step]:
        maker = StepMaker(tmp_path)
        first = maker.make(kind, "a", {}, [], refused)
        return [first, maker.make("eval", "a", {}, [first], evaluated)]

    refused, evaluated = Counter(InputError("not one is usable", code=UNUSABLE)), Counter()
    for _ in range(2):
        run(*steps())
        assert [step.empty for step in steps()] == ["not one is usable"] * 2
    assert (refused.runs, evaluated.runs) == (1, 0)


def test_what_every_variant_needs_ends_the_study(tmp_path: Path) -> None:
    for kind, code in (("eval", UNUSABLE), ("questions", EMPTY), ("score", "E_INPUT_FILE")):
        step = StepMaker(tmp_path).make(kind, "a", {}, [], Counter(InputError("no", code=code)))
        with pytest.raises(InputError, match="no"):
            run(step)
        assert not step.is_done


def test_a_training_that_diverges_is_an_outcome_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    maker = StepMaker(tmp_path)
    lost = Counter(
        UsageError("threads differ", code="E_RESUME_MISMATCH"),
        DivergedError("the loss is nan", code="E_DIVERGED", where="step 3"),
    )
    train = maker.make("train", "a", {}, [], lost)
    evaluated, other = Counter(), Counter()
    tested = maker.make("eval", "a", {}, [train], evaluated)
    run(train, tested, maker.make("train", "b", {"x": 1}, [], other))
    assert train.diverged == tested.diverged == "step 3: the loss is nan"
    assert train.empty is None
    assert (evaluated.runs, other.runs) == (0, 1)
    run(train, tested)
    assert lost.runs == 2  # never again


def test_when_the_time_is_spent_no_training_begins(tmp_path: Path) -> None:
    maker = StepMaker(tmp_path)
    score = maker.make("score", "a", {}, [], Counter())
    train = maker.make("train", "a", {}, [score], Counter())
    run(score, train, budget=0.0)
    assert score.is_done
    assert not train.is_done


def test_texts_of_a_model_wait_for_it(tmp_path: Path) -> None:
    maker = StepMaker(tmp_path)
    rewrite = maker.make("rewrite", "a", {}, [], Counter())
    assert maker.make("answers", "a", {}, [rewrite], Counter()).needs_model
    assert not maker.make("answers", "b", {}, [], Counter()).needs_model
