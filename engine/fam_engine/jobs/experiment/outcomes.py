"""Results of a cell's steps as arrays: right and wrong by seed and question, scores by metric.

In: finished steps. Out: tables float64[S, Q] of 0 and 1, averages of metrics. A question without a verdict for some
model is left out for all, so every comparison is on the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fam_engine.jobs.experiment.steps import Step
from fam_engine.measure.familiarity import METRICS, averaged, columns_of
from fam_engine.measure.statistics import Floats, factorize, ratio_estimate, resample_groups

_Key = tuple[str | None, int | None]
_BASE: _Key = (None, None)


class Outcomes:
    """Results of the evaluations of one model and task.

    Args:
        task: The task trained on.
        steps: (variant, seed) -> its finished evaluation; (None, None): the untrained model.
    """

    def __init__(self, task: str, steps: Mapping[_Key, Step]) -> None:
        self.task = task
        self._rows = {key: _results(step.folder) for key, step in steps.items()}
        self._cut = {key: _cut_shares(step.folder) for key, step in steps.items()}
        judged = [
            {key for key, right in rows.items() if right is not None}
            for rows in self._rows.values()
        ]
        first = next(iter(self._rows.values()), {})
        shared = [key for key in first if all(key in known for known in judged)]
        self.tasks = list(dict.fromkeys(name for name, _ in shared))
        self._shared = {name: [key for key in shared if key[0] == name] for name in self.tasks}

    @property
    def others(self) -> list[str]:
        """Name the tasks that were tested beside the one trained on."""
        return [name for name in self.tasks if name != self.task]

    def num_questions(self) -> dict[str, int]:
        """Count the questions of each test."""
        return {name: len(keys) for name, keys in self._shared.items()}

    def seeds(self, variant: str) -> list[int]:
        """Give the seeds a variant was evaluated with."""
        return [seed for name, seed in self._rows if name == variant and seed is not None]

    def tables(
        self, variant: str, tasks: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Floats]:
        """Give the results of a variant, float64[S, Q] a test; none where nothing is finished."""
        seeds = self.seeds(variant) if seeds is None else seeds
        if not seeds or not all(task in self._shared for task in tasks):
            return []
        return [np.stack([self._row((variant, seed), task) for seed in seeds]) for task in tasks]

    def base(self, tasks: Sequence[str]) -> list[Floats]:
        """Give the results of the untrained model, float64[Q] a test."""
        if _BASE not in self._rows:
            return []
        return [self._row(_BASE, task) for task in tasks if task in self._shared]

    def cut(self, variant: str | None, task: str) -> float:
        """Give the share of a test's answers that ran into the limit of tokens, over all seeds."""
        shares = [cut.get(task, 0.0) for (name, _), cut in self._cut.items() if name == variant]
        return sum(shares) / max(len(shares), 1)

    def paired(self, first: str, second: str, tasks: Sequence[str]) -> list[tuple[Floats, Floats]]:
        """Give the results of two variants with the seeds both have."""
        seeds = [seed for seed in self.seeds(first) if seed in self.seeds(second)]
        own = [self.tables(name, tasks, seeds) for name in (first, second)]
        return list(zip(*own, strict=True))

    def _row(self, key: _Key, task: str) -> Floats:
        rows = self._rows[key]
        return np.array([bool(rows[place]) for place in self._shared[task]], np.float64)


def _results(folder: Path) -> dict[tuple[str, int], bool | None]:
    """Read an evaluation: (task, number of the question) -> whether it was right."""
    table = pq.read_table(folder / "samples.parquet", columns=["task", "line", "correct"])
    columns = (table[name].to_pylist() for name in ("task", "line", "correct"))
    return {(task, line): right for task, line, right in zip(*columns, strict=True)}


def _cut_shares(folder: Path) -> dict[str, float]:
    """Read an evaluation: task -> share of its answers that ran into the limit of tokens."""
    table = pq.read_table(folder / "samples.parquet", columns=["task", "finish_reason"])
    tasks, reasons = (table[name].to_pylist() for name in ("task", "finish_reason"))
    cut = Counter(task for task, why in zip(tasks, reasons, strict=True) if why == "length")
    return {task: cut[task] / count for task, count in Counter(tasks).items()}


@dataclass(frozen=True)
class Scores:
    """What scoring said of a variant.

    Attributes:
        count: Answers scored.
        tokens: Mean number an answer.
        perplexity: Geometric mean and its interval over questions.
        averages: Metric -> average, as `measure.familiarity` averages it.
    """

    count: int
    tokens: float
    perplexity: dict[str, float | None]
    averages: dict[str, float | None]


def read_scores(folder: Path) -> Scores:
    """Read the scores of a variant."""
    table = pq.read_table(folder / "scores.parquet")
    groups, _ = factorize(table["group"].to_pylist())
    resamples = resample_groups(groups, seed=0)
    averages, perplexity = {}, {}
    for name, metric in METRICS.items():
        if name not in table.column_names:
            continue
        columns = {one: _floats(table, one) for one in columns_of(metric)}
        parts = averaged(metric, columns)
        estimate = ratio_estimate(
            resamples, parts.numerators, parts.denominators, transform=parts.transform
        )
        averages[name] = estimate.value
        if name == "perplexity":
            perplexity = asdict(estimate)
    tokens = float(np.mean(table["num_response_tokens"].to_numpy()))
    return Scores(table.num_rows, tokens, perplexity, averages)


def _floats(table: Any, name: str) -> Floats:  # noqa: ANN401 - pyarrow is untyped
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)
