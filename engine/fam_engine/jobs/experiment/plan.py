"""The graph of an experiment: which steps there are, what each needs, and in what order they run.

In: an `ExperimentConfig` and the output folder. Out: a `Plan`: the steps of every model and task (`Cell`), and all of
them in order. Texts come first, then scores, then seed by seed all trainings and all evaluations: a study whose time
runs out has fewer seeds, not fewer variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fam_engine.data.reading import check_file
from fam_engine.errors import FamEngineError, InputError
from fam_engine.jobs.data_files import names_apart
from fam_engine.jobs.experiment.answer_steps import AnswerSteps
from fam_engine.jobs.experiment.config import ExperimentConfig
from fam_engine.jobs.experiment.model_steps import LoadedModel, ModelSteps
from fam_engine.jobs.experiment.steps import Step, StepMaker, unique


@dataclass(frozen=True)
class Cell:
    """One model and one task.

    Attributes:
        model: As the study names it.
        label: As the report does: what tells it from the study's other models.
        task: Its name.
        questions: The step of its training questions.
        answers: Variant -> the step that leaves its records.
        scores: Variant -> the step that scores them.
        trainings: (variant, seed) -> the step that trains on them.
        tests: (variant, seed) -> the step that evaluates the adapter; (None, None): the base model.
    """

    model: str
    label: str
    task: str
    questions: Step
    answers: dict[str, Step]
    scores: dict[str, Step]
    trainings: dict[tuple[str, int], Step]
    tests: dict[tuple[str | None, int | None], Step]

    def why_dropped(self, name: str) -> str | None:
        """Say why nothing is to be had of a variant: no answers, or none that the model can take; None if not so."""
        trainings = (step for (own, _), step in self.trainings.items() if own == name)
        reasons = (step.empty for step in (self.answers[name], self.scores[name], *trainings))
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def dropped(self) -> dict[str, str]:
        """Give the variants that nothing is to be had of, and why."""
        reasons = {name: self.why_dropped(name) for name in self.answers}
        return {name: reason for name, reason in reasons.items() if reason is not None}


@dataclass(frozen=True)
class Plan:
    """All that an experiment does.

    Attributes:
        cells: Every model and task.
        steps: All steps, each after what it needs.
    """

    cells: list[Cell]
    steps: list[Step]

    @property
    def texts(self) -> list[Step]:
        """Give the steps at the beginning that no model takes part in."""
        return [step for step in self.steps if not step.needs_model]


def plan_study(config: ExperimentConfig, out: Path) -> Plan:
    """Plan an experiment.

    Raises:
        InputError: A data file is missing.
        ModelRefusedError: A model is not there.
    """
    maker = StepMaker(out)
    answers = AnswerSteps(config, maker)
    loaded = LoadedModel()
    models = config.model_names
    labels = names_apart([Path(model).parts for model in models])
    cells = []
    for model, label in zip(models, labels, strict=True):
        steps = ModelSteps(config, maker, model, label, loaded)
        for task in config.tasks:
            made = {name: answers.variant(task, name, steps) for name in config.variants_of(task)}
            cells.append(_cell(config, answers, steps, task, made))
    return Plan(cells, unique([*maker.of_kind("questions"), *_in_order(config, cells)]))


def _cell(
    config: ExperimentConfig,
    answers: AnswerSteps,
    steps: ModelSteps,
    task: str,
    made: dict[str, Step],
) -> Cell:
    model = steps.model
    tests = [answers.test(name) for name in config.tasks if name == task]
    tests += [answers.retention(name) for name in config.tasks if name != task]
    tests += [answers.retention(name) for name in config.retention]
    scores: dict[str, Step] = {}
    trainings: dict[tuple[str, int], Step] = {}
    evaluations: dict[tuple[str | None, int | None], Step] = {
        (None, None): steps.test(f"{model}, {task}: base", tests, None)
    }
    for name, variant in config.variants_of(task).items():
        scores[name] = steps.score(f"{model}, {task}: {name}", made[name])
        for seed in config.seeds:
            label = f"{model}, {task}: {name}, seed {seed}"
            training = steps.train(label, made[name], variant.train, seed)
            trainings[name, seed] = training
            evaluations[name, seed] = steps.test(label, tests, training)
    return Cell(
        model, steps.label, task, answers.training(task), made, scores, trainings, evaluations
    )


def _in_order(config: ExperimentConfig, cells: list[Cell]) -> Iterator[Step]:
    for cell in cells:
        for step in cell.answers.values():
            yield from (need for need in step.needs if need.kind == "rewrite")
            yield step
    for cell in cells:
        yield from cell.scores.values()
        yield cell.tests[None, None]
    for seed in config.seeds:
        for cell in cells:
            yield from (step for (_, own), step in cell.trainings.items() if own == seed)
            yield from (step for (_, own), step in cell.tests.items() if own == seed)


def missing_files(config: ExperimentConfig) -> list[str]:
    """Name the data files that cannot be used, with what each is for and where to get it."""
    wanted = [
        (settings.test, f"test questions of {name}", settings.source)
        for name, settings in {**config.tasks, **config.retention}.items()
    ]
    wanted += [
        (config.data_file(task, variant), f"answers `{name}` to {task}", variant.source)
        for task in config.tasks
        for name, variant in config.variants_of(task).items()
    ]
    missing = []
    for name, purpose, source in wanted:
        try:
            if name is not None:
                check_file(name)
        except FamEngineError as error:
            get = f"; get it from: {source}" if source else ""
            missing.append(f"{name}: {purpose}, {error.message}{get}")
    return missing


def check_files(config: ExperimentConfig, note: Callable[[str], None]) -> None:
    """Make sure that all data files are there; note those that are not, a line each.

    Raises:
        InputError: Some are not.
    """
    missing = missing_files(config)
    for line in missing:
        note(line)
    if missing:
        raise InputError(
            f"{len(missing)} data files are missing or cannot be used, listed above; the first is "
            f"{missing[0]}",
            code="E_STUDY_FILES",
            hint="put them there, paths are relative to the working folder",
        )
