"""Accuracies, differences and what went wrong, by task and model.

In: every model's samples. Out: the `tasks`, `overall` and `records` of `summary.json`. Each model is compared with the
base model on the questions both answered; the base model is the first, if it takes part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fam_engine.jobs.evaluation.models import BASE
from fam_engine.jobs.evaluation.samples import Sample
from fam_engine.measure.accuracy import Bools, compare_paired, mean_of, wilson
from fam_engine.measure.statistics import Estimate

Samples = Mapping[str, Sequence[Sample]]


def summarize(models: Samples) -> dict[str, Any]:
    """Summarize an evaluation.

    Args:
        models: Name -> its samples, in the order of the questions, the base model first.

    Returns:
        `tasks`: task -> `n`, `kinds`, `methods`, `models`: name -> accuracy and comparison with the base model;
        `overall`: name -> the same of the mean over tasks, where there are several.
    """
    first = next(iter(models.values()))
    tasks = {
        task: _task(
            {
                name: [sample for sample in samples if sample.task == task]
                for name, samples in models.items()
            }
        )
        for task in dict.fromkeys(sample.task for sample in first)
    }
    return {"tasks": tasks, "overall": _overall(tasks, list(models)) if len(tasks) > 1 else None}


def _task(models: Samples) -> dict[str, Any]:
    first = next(iter(models.values()))
    base = models.get(BASE)
    return {
        "n": len(first),
        "kinds": dict(Counter(sample.kind for sample in first)),
        "methods": dict(Counter(sample.method for sample in first)),
        "models": {
            name: {
                **_accuracy(samples),
                "versus_base": None if base is None or name == BASE else _versus(samples, base),
            }
            for name, samples in models.items()
        },
    }


def _accuracy(samples: Sequence[Sample]) -> dict[str, Any]:
    judged = [sample for sample in samples if sample.correct is not None]
    written = [sample for sample in judged if sample.method == "generation"]
    num_correct = sum(bool(sample.correct) for sample in judged)
    result = {
        "n": len(judged),
        "num_correct": num_correct,
        **_named("accuracy", wilson(num_correct, len(judged))),
        "failed": len(samples) - len(judged),
        "cut_by_length": sum(sample.finish_reason == "length" for sample in written),
        "cut_and_wrong": sum(
            sample.finish_reason == "length" and not sample.correct for sample in written
        ),
        "no_answer_found": sum(
            sample.extracted is None and not sample.correct for sample in written
        ),
    }
    if len(written) < len(judged):
        options = [sample for sample in judged if sample.method == "logprob"]
        result["acc"] = sum(bool(sample.correct_acc) for sample in options) / len(options)
        result["acc_norm"] = sum(bool(sample.correct_acc_norm) for sample in options) / len(options)
    return result


def _versus(samples: Sequence[Sample], base: Sequence[Sample]) -> dict[str, Any]:
    paired = compare_paired(*_shared(samples, base))
    return {
        "n": paired.n,
        "only_model": paired.only_first,
        "only_base": paired.only_second,
        **_named("difference", paired.difference),
        "p": paired.p,
        "verdict": paired.verdict,
    }


def _shared(samples: Sequence[Sample], base: Sequence[Sample]) -> tuple[Bools, Bools]:
    """Give the results of both on the questions that both have a verdict on."""
    pairs = [
        (one.correct, other.correct)
        for one, other in zip(samples, base, strict=True)
        if one.correct is not None and other.correct is not None
    ]
    results = np.array(pairs, bool).reshape(-1, 2)
    return results[:, 0], results[:, 1]


def _overall(tasks: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Average over the tasks, each counting the same."""
    overall = {}
    for name in names:
        entries = [task["models"][name] for task in tasks.values()]
        versus = [entry["versus_base"] for entry in entries]
        overall[name] = {
            **_named("accuracy", mean_of([_estimate(entry, "accuracy") for entry in entries])),
            "versus_base": None
            if None in versus
            else _named("difference", mean_of([_estimate(one, "difference") for one in versus])),
        }
    return overall


def _estimate(entry: Mapping[str, Any], name: str) -> Estimate:
    return Estimate(entry[name], *entry["interval"])


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, "interval": [estimate.low, estimate.high]}
