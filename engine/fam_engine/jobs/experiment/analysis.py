"""What a study found: the results of its finished steps, joined.

In: a `Plan` whose steps ran. Out: the dictionary of `results.json`, which the report is written from. The same YAML
gives the same dictionary, but for `performance`. What is not finished is left out and counted.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fam_engine.jobs.experiment.answer_steps import COUNTS, load_answers
from fam_engine.jobs.experiment.config import AnswerSettings, ExperimentConfig
from fam_engine.jobs.experiment.outcomes import Outcomes, read_scores
from fam_engine.jobs.experiment.plan import Cell, Plan
from fam_engine.measure import replay
from fam_engine.measure.accuracy import wilson
from fam_engine.measure.answer_texts import describe_texts, differences
from fam_engine.measure.crossed import accuracy, crossed_mean
from fam_engine.measure.foretelling import foretelling, metric_values
from fam_engine.measure.statistics import Floats
from fam_engine.measure.verdict import RULE, find_candidate, joined_verdict, judge_pair
from fam_engine.version import __version__

_VERDICTS = ("in_domain", "retention")
# The untrained model among the names of variants.
BASE = "before training"


def analyse(config: ExperimentConfig, plan: Plan) -> dict[str, Any]:
    """Join the results.

    Returns:
        `title`, `notes`; `rule`, `margin`; `verdict` (`in_domain`, `retention`); `at_equal_length`:
        the same against arms as long as the candidate, None without any;
        `cells` (see `_cell`); `foretelling` of accuracy in domain and in retention; `left_out`:
        steps by kind that are not finished; `settings`; `environment`; `performance`.
    """
    cells = [_cell(config, cell) for cell in plan.cells]
    unfinished = [step.kind for step in plan.steps if not step.is_done]
    return {
        "title": config.title,
        "notes": list(config.notes),
        "rule": RULE,
        "margin": config.margin,
        "verdict": {
            name: joined_verdict([cell["verdict"][name]["verdict"] for cell in cells])
            for name in _VERDICTS
        },
        "at_equal_length": _joined_at_equal_length(cells),
        "cells": cells,
        "foretelling": {
            name: foretelling(_replay_cells(cells, name), seed=config.seed) for name in _VERDICTS
        },
        "left_out": {kind: unfinished.count(kind) for kind in dict.fromkeys(unfinished)},
        "settings": config.model_dump(mode="json"),
        "environment": {
            "fam-engine": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "performance": _performance(plan),
    }


def _joined_at_equal_length(cells: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    arms = [arm for cell in cells for arm in cell["at_equal_length"].values()]
    if not arms:
        return None
    return {name: joined_verdict([arm[name]["verdict"] for arm in arms]) for name in _VERDICTS}


def _performance(plan: Plan) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    for step in plan.steps:
        seconds[step.kind] = seconds.get(step.kind, 0.0) + (step.seconds() or 0.0)
    return {"seconds": sum(seconds.values()), "seconds_by_kind": seconds}


def _cell(config: ExperimentConfig, cell: Cell) -> dict[str, Any]:
    """Describe a model and a task.

    Returns:
        `model`, `task`; `questions`: test questions by task; `seeds`: those every variant was trained
        and tested with; `diverged`: trainings among them that were lost (variant, seed, reason), in
        no average; `base`: accuracies of the untrained
        model; `variants`: name -> see `_variant`; `dropped`: name -> why it is not among them (see
        `Cell.dropped`); `reference`, `candidate`, `verdict`,
        `confounds`: what the two differ in; `training_questions`: how many were read, and how many
        left out for being test questions or repeated; `cut`: share of test answers that ran into the
        limit of tokens, by variant and `BASE`; `at_equal_length`: name of an arm -> verdicts.
    """
    every = config.variants_of(cell.task)
    dropped = cell.dropped
    settings = {name: variant for name, variant in every.items() if name not in dropped}
    # A seed counts when every variant has it: else some would be judged by luckier seeds.
    seeds = [s for s in config.seeds if all(cell.tests[name, s].is_done for name in settings)]
    done = {
        (name, seed): step
        for (name, seed), step in cell.tests.items()
        if step.is_done
        and step.diverged is None
        and name not in dropped
        and (seed is None or seed in seeds)
    }
    tests = Outcomes(cell.task, done)
    variants = {name: _variant(cell, tests, settings, name, config.reference) for name in settings}
    candidate = find_candidate(
        {
            name: entry["perplexity"]["value"] if entry["perplexity"] else None
            for name, entry in variants.items()
            if not settings[name].control
        }
    )
    for name, entry in variants.items():
        entry["versus_candidate"] = _versus(tests, name, candidate)
    return {
        "model": cell.label,
        "task": cell.task,
        "questions": tests.num_questions(),
        "seeds": seeds,
        "diverged": [
            {"variant": name, "seed": seed, "reason": step.diverged}
            for (name, seed), step in cell.trainings.items()
            if seed in seeds and step.diverged is not None
        ],
        "base": _base(tests),
        "variants": variants,
        "cut": {
            name: tests.cut(None if name == BASE else name, cell.task) for name in (BASE, *variants)
        },
        "dropped": dropped,
        "reference": config.reference,
        "candidate": candidate,
        "verdict": _verdicts(config, tests, candidate, config.reference),
        "at_equal_length": {
            name: _verdicts(config, tests, candidate, name)
            for name in _as_long(variants, candidate, config.reference)
        },
        "confounds": _confounds(variants, candidate, config.reference),
        "training_questions": _counts(cell.questions.folder),
    }


def _confounds(
    variants: Mapping[str, Any], candidate: str | None, reference: str
) -> list[dict[str, Any]]:
    if candidate is None or candidate == reference:
        return []
    return differences(variants[candidate]["texts"], variants[reference]["texts"])


def _counts(folder: Path) -> dict[str, Any] | None:
    """Read what a step of texts counted, if it counted anything."""
    file = folder / COUNTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _variant(
    cell: Cell,
    tests: Outcomes,
    settings: Mapping[str, AnswerSettings],
    name: str,
    reference: str,
) -> dict[str, Any]:
    """Describe a variant.

    Returns:
        `control`, `origin`, `train`: its own training settings; `texts`: see `describe_texts`,
        with `tokens`; `by_model`: of a variant the model wrote, how many answers were asked for
        and how many are its own; `num_scored`: answers the model could take; `perplexity`:
        geometric mean and interval over questions; `metrics`: average of each; `in_domain`,
        `retention`: see `_accuracies`; `versus_reference` (and `versus_candidate`, which `_cell`
        adds): differences, not corrected for their number.
    """
    own = settings[name]
    answers = load_answers(cell.answers[name].folder)
    texts = describe_texts([a.response for a in answers], [a.correct for a in answers])
    scores = read_scores(cell.scores[name].folder) if cell.scores[name].is_done else None
    counts = _counts(cell.answers[name].folder)
    return {
        "control": own.control,
        "origin": own.model_dump(
            mode="json", exclude={"train", "control", "source"}, exclude_defaults=True
        ),
        "train": own.train,
        "texts": {**texts, "tokens": scores.tokens if scores else None},
        "by_model": counts,
        "num_scored": scores.count if scores else None,
        "perplexity": scores.perplexity if scores else None,
        "metrics": scores.averages if scores else {},
        "in_domain": _accuracies(tests, name, [cell.task]),
        "retention": _accuracies(tests, name, tests.others),
        "versus_reference": _versus(tests, name, reference),
    }


def _accuracies(tests: Outcomes, name: str, tasks: Sequence[str]) -> dict[str, Any] | None:
    """Give a variant's accuracy on some tests.

    Returns:
        value, low, high over seeds and questions (of several tests: their unweighted mean);
        `by_task`; `by_seed`; `versus_base`: difference to the untrained model. None where nothing
        was measured.
    """
    tables = tests.tables(name, tasks)
    if not tables:
        return None
    base = tests.base(tasks)
    return {
        **asdict(accuracy(tables)),
        "by_task": {
            task: asdict(accuracy([table])) for task, table in zip(tasks, tables, strict=True)
        },
        "by_seed": {
            str(seed): float(np.mean([table[row].mean() for table in tables]))
            for row, seed in enumerate(tests.seeds(name))
        },
        "versus_base": asdict(
            crossed_mean([table - row for table, row in zip(tables, base, strict=True)])
        )
        if base
        else None,
    }


def _versus(tests: Outcomes, name: str, other: str | None) -> dict[str, dict[str, float | None]]:
    """Give the difference of a variant to another, in domain and in retention; None to itself."""
    found = {}
    for which, tasks in (("in_domain", [tests.task]), ("retention", tests.others)):
        pairs = [] if other in (None, name) else tests.paired(name, str(other), tasks)
        found[which] = asdict(crossed_mean([first - second for first, second in pairs]))
    return found


def _base(tests: Outcomes) -> dict[str, Any]:
    return {
        task: asdict(wilson(int(row.sum()), len(row)))
        for task in tests.tasks
        for row in tests.base([task])
    }


def _as_long(variants: Mapping[str, Any], candidate: str | None, reference: str) -> list[str]:
    """Name the control arms that are to the candidate in all but familiarity what the reference should be.

    Trained alike on as many answers, as long and as often right, and less familiar beyond chance.
    """
    if candidate is None or candidate == reference:
        return []
    own = variants[candidate]
    apart = ("questions", "length", "correctness")
    return [
        name
        for name, entry in variants.items()
        if entry["control"]
        and entry["train"] == own["train"]
        and entry["perplexity"]
        and (entry["perplexity"]["low"] or 0.0) > (own["perplexity"]["high"] or math.inf)
        and not any(one["what"] in apart for one in differences(own["texts"], entry["texts"]))
    ]


def _verdicts(
    config: ExperimentConfig, tests: Outcomes, candidate: str | None, other: str
) -> dict[str, Any]:
    """Judge the candidate against another variant, in domain and in retention."""
    found = {}
    for name, tasks in (("in_domain", [tests.task]), ("retention", tests.others)):
        pairs: list[tuple[Floats, Floats]] = []
        if candidate is not None and candidate != other:
            pairs = tests.paired(candidate, other, tasks)
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found[name] = judge_pair(first, second, margin=config.margin)
    return found


def _replay_cells(cells: Sequence[Mapping[str, Any]], which: str) -> list[replay.Cell]:
    """Give the cells as `measure.replay` takes them: variants trained alike, with an accuracy."""
    found = []
    for cell in cells:
        variants = {
            name: entry
            for name, entry in cell["variants"].items()
            if not entry["train"] and entry[which] is not None and entry["metrics"]
        }
        accuracies = np.array([entry[which]["value"] for entry in variants.values()], np.float64)
        metrics = metric_values({name: entry["metrics"] for name, entry in variants.items()})
        if len(variants) >= 2:
            found.append(replay.Cell(cell["model"], cell["task"], accuracies, metrics))
    return found
