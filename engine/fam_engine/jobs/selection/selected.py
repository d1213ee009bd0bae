"""From joined columns to a choice and its summary: the middle of the selection job, without files.

In: the settings, the records' columns and their scores. Out: a `Selection`. The summary says how many went where,
what the selected are like beside all that were scored (the metric, but also length and correctness, which a metric
may stand in for), how the sources compare and how sure that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from fam_engine.config import SelectConfig, nearest
from fam_engine.errors import UsageError
from fam_engine.jobs.quarantine import Quarantined
from fam_engine.jobs.selection.cautions import Signs, find_cautions
from fam_engine.jobs.selection.choice import REASONS, SELECTED, Codes, Columns, Plan, admit, choose
from fam_engine.jobs.selection.join import Joined
from fam_engine.jobs.selection.records import UNKNOWN, RecordColumns
from fam_engine.jobs.selection.scores import Scores
from fam_engine.measure.accuracy import share_right
from fam_engine.measure.familiarity import (
    Averaged,
    Metric,
    averaged,
    columns_of,
    ranking_values,
)
from fam_engine.measure.overlap import Overlap
from fam_engine.measure.selection_statistics import compare_sources
from fam_engine.measure.sources import MAX_SOURCES, source_seed
from fam_engine.measure.statistics import Ints, ratio_estimate, resample_groups

# What to do where no record is left, by what took most of them.
_REMEDIES = {
    "metric_undefined": "choose another --metric: these records have no value of this one",
    "correctness_unknown": "--correct-only goes by `correct` of the records; have it there, or leave the flag out",
    "not_picked": "widen --band: of two answers to a question, one is at 0.25 and one at 0.75",
    "source_limit": "raise --quota",
}
_SCORED_BY = ("model", "revision", "adapter", "template", "chat_template_kwargs", "precision")


@dataclass(frozen=True)
class Selection:
    """A choice among m scored records.

    Attributes:
        reasons: int8[m], places in `choice.REASONS`.
        quarantined: What could not be read or scored.
        selected_by: What a selected record's provenance says.
        summary: What `summary.json` holds, but for the settings.
    """

    reasons: Codes
    quarantined: list[Quarantined]
    selected_by: dict[str, Any]
    summary: dict[str, Any]


def select_records(
    config: SelectConfig,
    metric: Metric,
    records: RecordColumns,
    joined: Joined,
    scores: Scores,
    overlap: Overlap,
) -> Selection:
    """Choose, and say what was chosen.

    Args:
        config: What to choose.
        metric: The metric of the settings.
        records: n records.
        joined: The m among them that have a score.
        scores: The scores.
        overlap: Places of the records that ask what the test files ask.

    Raises:
        UsageError: A quota names an unknown source, there are too many sources to compare, no
            selection keeps every source at its share, or nothing is selected.
    """
    labels = _Labels(scores, joined)
    numbers = {name: scores.floats(name)[joined.rows] for name in _number_names(metric)}
    columns = Columns(
        values=ranking_values(metric, numbers),
        groups=labels.groups,
        sources=labels.sources,
        num_tokens=numbers["num_response_tokens"].astype(np.int64),
        correct=records.correct[joined.records],
    )
    plan = _plan(config, metric, labels.names)
    parts = averaged(metric, numbers)
    admitted = admit(columns, plan)
    _check_some(admitted, "left to choose from")
    comparison = _compare(config, parts, columns, plan, admitted, labels.names)
    averages = [comparison["sources"][n]["value"] for n in labels.names] if comparison else []
    reasons = choose(columns, plan, admitted, averages)
    _check_some(reasons[admitted == SELECTED], "selected")
    quarantined = sorted([*records.quarantined, *joined.quarantined], key=_in_order_of(records))
    choice = {"metric": metric.name, "per": plan.per, **_rule(plan)}
    chosen = np.flatnonzero(reasons == SELECTED)
    summary = {
        "command": "select",
        "records": _counts(records.num_read, reasons, quarantined),
        "choice": choice | {"meaning": metric.meaning, "average": parts.kind},
        "questions": _questions(labels.groups, admitted, reasons),
        "sources": _sources(labels.sources, labels.names, admitted, reasons),
        "all": _profile(parts, columns, np.arange(len(reasons)), labels.names, config.seed),
        "selected": _profile(parts, columns, chosen, labels.names, config.seed),
        "comparison": comparison,
        "cautions": _cautions(chosen, labels, records, joined, overlap),
        "scored_by": {name: scores.settings.get(name) for name in _SCORED_BY},
    }
    model = {"model": scores.settings["model"]} if "model" in scores.settings else {}
    return Selection(reasons, quarantined, choice | model, summary)


class _Labels:
    """What the scores say of m joined records, numbers apart.

    Args:
        scores: The scores table.
        joined: Which of its rows.
    """

    def __init__(self, scores: Scores, joined: Joined) -> None:
        table = scores.table.select(["id", "source", "group", "flags"]).take(pa.array(joined.rows))
        self.ids = table["id"].combine_chunks()
        self.sources, self.names = _codes(table["source"])
        self.groups, _ = _codes(table["group"])
        self.flags = table["flags"]


def _cautions(
    chosen: Ints, labels: _Labels, records: RecordColumns, joined: Joined, overlap: Overlap
) -> list[dict[str, Any]]:
    signs = Signs(
        text_digest=records.text_digest[joined.records],
        sources=labels.sources,
        flags=labels.flags,
        response_cut=records.response_cut[joined.records],
        in_test=np.isin(joined.records, overlap.same),
        near_test=np.isin(joined.records, overlap.similar),
    )
    return find_cautions(chosen, labels.ids, signs, labels.names)


def _check_some(reasons: Codes, state: str) -> None:
    """Refuse constraints that leave nothing: what selects no record was hardly meant."""
    if (reasons == SELECTED).any():
        return
    numbers: list[int] = np.bincount(reasons, minlength=len(REASONS)).tolist()
    counts = [f"{count:,} {name}" for name, count in zip(REASONS, numbers, strict=True) if count]
    most = REASONS[int(np.argmax(numbers))] if counts else ""
    raise UsageError(
        f"no record is {state}: {', '.join(counts) or 'none has a score'}",
        code="E_NOTHING_LEFT",
        hint=_REMEDIES.get(most, "loosen the limits"),
    )


def _number_names(metric: Metric) -> list[str]:
    return list(dict.fromkeys([*columns_of(metric), "num_response_tokens"]))


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Number labels by first appearance."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()


def _plan(config: SelectConfig, metric: Metric, names: Sequence[str]) -> Plan:
    more = f" and {len(names) - 8:,} others" * (len(names) > 8)
    for source in config.quota:
        if source not in names:
            raise UsageError(
                f"--quota names the source `{source}`, which no record has"
                f"{nearest(source, list(names))}",
                code="E_SOURCE_MIX",
                hint=f"the sources are {', '.join(names[:8])}{more}",
            )
    return Plan(
        per=config.per,
        pick=config.pick or metric.familiar,
        band=config.band,
        correct_only=config.correct_only,
        min_tokens=config.min_tokens,
        max_tokens=config.max_tokens,
        quotas={names.index(source): most for source, most in config.quota.items()},
        max_share=config.max_share,
        budget=config.budget,
        seed=config.seed,
    )


def _rule(plan: Plan) -> dict[str, Any]:
    return {"pick": plan.pick} if plan.band is None else {"band": list(plan.band)}


def _compare(
    config: SelectConfig,
    parts: Averaged,
    columns: Columns,
    plan: Plan,
    admitted: Codes,
    names: Sequence[str],
) -> dict[str, Any] | None:
    """Compare the sources by what is admitted of them; None where there are too many to."""
    if len(names) > MAX_SOURCES:
        if plan.per == "source":
            raise UsageError(
                f"--per source compares at most {MAX_SOURCES} sources, the records have "
                f"{len(names):,}",
                code="E_SOURCE_MIX",
                hint="name fewer in the column `source`, or another with --map source=COLUMN",
            )
        return None
    rows = np.flatnonzero(admitted == SELECTED)
    taken = replace(parts, numerators=parts.numerators[rows], denominators=parts.denominators[rows])
    return compare_sources(
        taken,
        columns.sources[rows],
        columns.groups[rows],
        names=names,
        pick=plan.pick,
        seed=config.seed,
    )


def _in_order_of(records: RecordColumns) -> Any:  # noqa: ANN401 - a key for `sorted`
    places = {file.name: index for index, file in enumerate(records.files)}
    return lambda row: (places[row[0]], row[1])


def _counts(num_read: int, reasons: Codes, quarantined: Sequence[Quarantined]) -> dict[str, Any]:
    numbers: list[int] = np.bincount(reasons, minlength=len(REASONS)).tolist()
    by_reason = dict(zip(REASONS, numbers, strict=True))
    num_selected = by_reason.pop("selected")
    num_dropped = len(reasons) - num_selected
    assert num_read == num_selected + num_dropped + len(quarantined)
    return {
        "read": num_read,
        "selected": num_selected,
        "dropped": num_dropped,
        "quarantined": len(quarantined),
        "dropped_by_reason": {name: count for name, count in by_reason.items() if count},
        "quarantined_by_code": dict(Counter(row[3] for row in quarantined)),
    }


def _questions(groups: Ints, admitted: Codes, reasons: Codes) -> dict[str, int]:
    """Count questions: all, those with two answers to choose between, those selected."""
    candidates = np.bincount(groups[admitted == SELECTED])
    return {
        "all": len(np.unique(groups)),
        "with_candidates": int((candidates > 0).sum()),
        "with_a_choice": int((candidates > 1).sum()),
        "selected": len(np.unique(groups[reasons == SELECTED])),
    }


def _sources(
    sources: Ints, names: Sequence[str], admitted: Codes, reasons: Codes
) -> dict[str, dict[str, int]]:
    counts = [
        np.bincount(sources[rows], minlength=len(names)).tolist()
        for rows in (reasons >= 0, admitted == SELECTED, reasons == SELECTED)
    ]
    keys = ("n", "candidates", "selected")
    return {
        name: dict(zip(keys, numbers, strict=True))
        for name, *numbers in zip(names, *counts, strict=True)
    }


def _profile(
    parts: Averaged, columns: Columns, rows: Ints, names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Say what some records are like: the metric, their length, their correctness."""
    held = np.unique(columns.sources[rows])
    # Of one source alone the intervals are those it has beside others.
    seeds = source_seed(seed, *(names[held[0]],) if len(held) == 1 else ())
    resamples = resample_groups(columns.groups[rows], seed=seeds)
    ones = np.ones(len(rows))
    known = columns.correct[rows] != UNKNOWN
    correct = np.where(known, columns.correct[rows], np.nan)
    return {
        "n": len(rows),
        "metric": asdict(
            ratio_estimate(
                resamples,
                parts.numerators[rows],
                parts.denominators[rows],
                transform=parts.transform,
            )
        ),
        "tokens_per_response": asdict(
            ratio_estimate(resamples, columns.num_tokens[rows].astype(np.float64), ones)
        ),
        "correct": asdict(share_right(resamples, correct)) if known.any() else None,
    }
