"""The steps that need texts only: questions of the tasks, and the variants of their answers.

In: an `ExperimentConfig`. Out: steps whose folders hold `questions.jsonl` or `records.jsonl`, and `counts.json`.
Training questions come from the reference variant's own source, so that another variant joining or leaving changes
nothing for the rest; a variant without an answer to some of them trains on fewer, which the report says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fam_engine.data.files import write_text_whole
from fam_engine.data.json_lines import write_json_lines
from fam_engine.data.reading import check_file, hash_file
from fam_engine.embedded import problems
from fam_engine.errors import InputError
from fam_engine.jobs.experiment.config import BY_MODEL, AnswerSettings, ExperimentConfig
from fam_engine.jobs.experiment.model_steps import ModelSteps
from fam_engine.jobs.experiment.progress import StudyProgress
from fam_engine.jobs.experiment.questions import (
    evenly_spaced,
    generated_problems,
    load_rows,
    read_answers,
    test_questions,
    training_questions,
)
from fam_engine.jobs.experiment.steps import EMPTY, Step, StepMaker
from fam_engine.jobs.experiment.variants import Answer, as_record, by_rule, judged, own_only
from fam_engine.jobs.selection.overlap import asked_text, fingerprint
from fam_engine.version import __version__

QUESTIONS, RECORDS, COUNTS = "questions.jsonl", "records.jsonl", "counts.json"


class AnswerSteps:
    """Makes the steps, each once.

    Args:
        config: The study.
        maker: Makes its steps.
    """

    def __init__(self, config: ExperimentConfig, maker: StepMaker) -> None:
        self._config = config
        self._make = maker.make

    # -- questions -------------------------------------------------------------------------------

    def test(self, name: str) -> Step:
        """Give the step of a task's own test questions."""
        return self._test(name, self._config.budget.questions)

    def retention(self, name: str) -> Step:
        """Give the step of the questions that show whether another task was kept."""
        budget = self._config.budget
        return self._test(name, budget.retention_questions or budget.questions)

    def _test(self, name: str, limit: int | None) -> Step:
        settings = {**self._config.tasks, **self._config.retention}[name]
        spec = {
            **settings.model_dump(mode="json", exclude={"test", "num_train", "source"}),
            "file": _file_hash(settings.test),
            "generator": _generator_hash() if settings.skills else None,
            "name": name,
            "limit": limit,
            "version": __version__,
        }

        def work(folder: Path, _: StudyProgress) -> None:
            write_json_lines(folder / QUESTIONS, test_questions(name, settings, limit))

        label = f"{name}, test" if limit is None else f"{name}, first {limit} for tests"
        return self._make("questions", label, {**spec, "for": "test"}, [], work)

    def training(self, task: str) -> Step:
        """Give the step of the questions a task trains on."""
        settings = self._config.tasks[task]
        root = self._root(self._config.answers[self._config.reference])
        file = self._file(task, root)
        limit = self._config.budget.records
        test = self._test(task, None)
        spec = {
            **settings.model_dump(mode="json", exclude={"test", "num_test", "source"}),
            "file": _file_hash(str(file) if file else None),
            "generator": _generator_hash() if settings.skills else None,
            "limit": limit,
            "version": __version__,
            "for": "training",
        }

        def work(folder: Path, _: StudyProgress) -> None:
            rows = load_rows(test.folder / QUESTIONS)
            taken = {fingerprint(asked_text(row)) for row in rows}
            kept, counts = training_questions(settings, file, taken, limit)
            write_json_lines(folder / QUESTIONS, kept)
            write_text_whole(folder / COUNTS, json.dumps(counts))

        return self._make("questions", f"{task}, training", spec, [test], work)

    def _file(self, task: str, variant: AnswerSettings) -> Path | None:
        name = self._config.data_file(task, variant)
        return None if name is None else check_file(name)

    def _root(self, variant: AnswerSettings) -> AnswerSettings:
        while variant.of is not None:
            variant = self._config.answers[variant.of]
        return variant

    # -- answers ---------------------------------------------------------------------------------

    def variant(self, task: str, name: str, model: ModelSteps) -> Step:
        """Give the step that leaves a variant's records."""
        variant = self._config.answers[name]
        if variant.of is not None and variant.make is None:
            return self.variant(task, variant.of, model)
        sources = [self.variant(task, one, model) for one in (variant.of, variant.to) if one]
        if variant.make in BY_MODEL:
            return self._by_model(task, name, variant, sources[0], model)
        questions = self.training(task)
        file = self._file(task, variant)
        spec = {
            **variant.model_dump(
                mode="json", exclude={"file", "of", "to", "tasks", "train", "control", "source"}
            ),
            "file": _file_hash(str(file) if file else None),
            "generator": _generator_hash() if variant.style else None,
            "seed": self._config.seed if variant.to else None,
            "name": name,
            "version": __version__,
        }

        def work(folder: Path, _: StudyProgress) -> None:
            if sources:
                loaded = [load_answers(source.folder) for source in sources]
                to = loaded[1] if variant.to else []
                made = by_rule(variant, loaded[0], to, seed=self._config.seed)
            else:
                made = self._found(task, variant, file, load_rows(questions.folder / QUESTIONS))
            write_json_lines(folder / RECORDS, (as_record(answer, name) for answer in made))

        return self._make("answers", f"{task}: {name}", spec, [questions, *sources], work)

    def _found(
        self, task: str, variant: AnswerSettings, file: Path | None, rows: list[dict[str, Any]]
    ) -> list[Answer]:
        """Give the answers of a file, or generated ones, to the training questions."""
        texts: dict[str, tuple[str, bool | None]] = {}
        if file is None:
            assert variant.style is not None
            worked = generated_problems(self._config.tasks[task], for_test=False)
            texts = {
                evenly_spaced(problem.question): (problem.answers[variant.style], True)
                for problem in worked
            }
        else:
            for question, response, correct in read_answers(file):
                if response is not None:
                    texts.setdefault(evenly_spaced(question.asked), (response, correct))
        named = [(row, texts.get(evenly_spaced(asked_text(row)))) for row in rows]
        answers = [judged(row, *text) for row, text in named if text is not None]
        if not answers:
            raise InputError(
                f"answers none of the {len(rows)} training questions of `{task}`",
                code="E_STUDY_ANSWERS",
                where=str(file),
                hint="its questions must be those of the reference variant, letter for letter",
            )
        return answers

    def _by_model(
        self, task: str, name: str, variant: AnswerSettings, source: Step, model: ModelSteps
    ) -> Step:
        method = "answer" if variant.make == "self" else str(variant.make)
        rewritten = model.rewrite(f"{model.label}, {task}: {name}", source, method)

        def work(folder: Path, _: StudyProgress) -> None:
            records: list[Mapping[str, Any]] = list(load_rows(rewritten.folder / "rewritten.jsonl"))
            kept = own_only(records) if variant.make == "self" else records
            if not kept:
                raise InputError("the model gave not one right answer of its own", code=EMPTY)
            write_json_lines(folder / RECORDS, ({**record, "source": name} for record in kept))
            counts = {"read": len(records), "own": len(own_only(records))}
            write_text_whole(folder / COUNTS, json.dumps(counts))

        spec = {"make": variant.make, "name": name, "version": __version__}
        label = f"{model.label}, {task}: {name}"
        return self._make("answers", label, spec, [rewritten], work)


def load_answers(folder: Path) -> list[Answer]:
    """Read the records of a variant as answers."""
    return [
        Answer(question.row, response or "", correct)
        for question, response, correct in read_answers(folder / RECORDS)
    ]


def _file_hash(name: str | None) -> str | None:
    return None if name is None else hash_file(check_file(name))


def _generator_hash() -> str:
    return hash_file(Path(problems.__file__))
