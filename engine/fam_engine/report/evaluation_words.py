"""What an evaluation found, in words; the same in the terminal and on the page.

In: the summary of an evaluation. Out: short sentences without markup. A model is only called better or worse than the
base model where McNemar's test says so at the 5 % level; anything else is within noise, and that is not called equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fam_engine.report.wording import confinement, listed, percent, points, unread_rows, visible

BASE: Final = "base"
# Fewer questions can show only very large differences.
FEW_QUESTIONS: Final = 30
_MANY_COMPARISONS: Final = 5
_MAX_NAMES: Final = 6
_MAX_HEADLINE: Final = 3
# Share of a task's answers from which on being cut is more than an accident.
_MANY_CUT: Final = 0.02


def names(summary: Mapping[str, Any]) -> list[str]:
    """Give the models' names in order."""
    return [model["name"] for model in summary["models"]]


def limits(entry: Mapping[str, Any], *, as_points: bool = False) -> str:
    """Write an interval as `low to high`, or nothing where there is none."""
    low, high = entry["interval"]
    if low is None or high is None:
        return ""
    if as_points:
        return f"{points(low)} to {points(high)}"
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one sentence what was found."""
    compared = _compared_names(summary)
    if not compared:
        return _alone(summary)[0]
    verdicts = {name: [verdict for _, verdict in _verdicts(summary, name)] for name in compared}
    parts = [
        f"{visible(name)} is better than the base model on {own.count('better')} and worse on "
        f"{own.count('worse')}"
        for name, own in list(verdicts.items())[:_MAX_HEADLINE]
    ]
    more = len(compared) - _MAX_HEADLINE
    text = f"Of {len(summary['tasks'])} tasks, {'; '.join(parts)}."
    return f"{text} {more} more adapters are below." if more > 0 else text


def findings(summary: Mapping[str, Any]) -> list[str]:
    """Say what was found, the most important first."""
    compared = _compared_names(summary)
    found = [_compared(summary, name) for name in compared] or _alone(summary)
    if compared:
        found += _on_noise(summary, compared)
    return found


def _compared_names(summary: Mapping[str, Any]) -> list[str]:
    return [name for name in names(summary) if name != BASE and BASE in names(summary)]


def _verdicts(summary: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """Give every task and how a model compares with the base model there."""
    return [
        (task, entry["models"][name]["versus_base"]["verdict"])
        for task, entry in summary["tasks"].items()
    ]


def _alone(summary: Mapping[str, Any]) -> list[str]:
    found = []
    for name in names(summary):
        of_tasks = [task["models"][name] for task in summary["tasks"].values()]
        entry = summary["overall"][name] if summary["overall"] else of_tasks[0]
        what = "of the questions right"
        if summary["overall"]:
            counted = sum(one["accuracy"] is not None for one in of_tasks)
            of_all = f" of {len(of_tasks)}" * (counted < len(of_tasks))
            what += f", as a mean over {counted}{of_all} tasks"
        if entry["accuracy"] is None:
            found.append(f"{visible(name)} has no question with a verdict.")
            continue
        value = percent(entry["accuracy"])
        found.append(f"{visible(name)} gets {value} {what} (95 % interval {limits(entry)}).")
    return found


def _compared(summary: Mapping[str, Any], name: str) -> str:
    """Say where a model differs from the base model."""
    of_verdict: dict[str, list[str]] = {}
    for task, verdict in _verdicts(summary, name):
        of_verdict.setdefault(verdict, []).append(visible(task))
    said = [
        f"{verdict} on {listed(of_verdict[verdict], _MAX_NAMES)}"
        for verdict in ("better", "worse")
        if verdict in of_verdict
    ]
    if noise := of_verdict.get("within noise"):
        said.append(f"within noise on {listed(noise, _MAX_NAMES)}")
    text = f"{visible(name)} against the base model: {'; '.join(said)}."
    versus = summary["overall"][name]["versus_base"] if summary["overall"] else None
    if versus and versus["difference"] is not None:
        text += (
            f" Mean over the tasks: {points(versus['difference'])} points "
            f"({limits(versus, as_points=True)})."
        )
    return text


def _on_noise(summary: Mapping[str, Any], compared: Sequence[str]) -> list[str]:
    verdicts = [verdict for name in compared for _, verdict in _verdicts(summary, name)]
    found = []
    if "within noise" in verdicts:
        found.append(
            "Within noise: these questions cannot tell the two apart. That is not proof that they are "
            "equal; the interval says how large a difference could still be there."
        )
    if len(verdicts) >= _MANY_COMPARISONS:
        by_chance = len(verdicts) / 20
        found.append(
            f"There are {len(verdicts)} comparisons; even between equal models about "
            f"{by_chance:.1g} of them would be called better or worse by chance."
        )
    return found


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """Say what may make a figure mean less than it seems to."""
    return [
        *_overlaps(summary),
        *unread_rows(summary["overlap"]),
        *_cuts(summary),
        *_failures(summary),
        *_few(summary),
        *confinement(summary),
    ]


def _overlaps(summary: Mapping[str, Any]) -> list[str]:
    found = [
        f"{overlap(one)}: for a model trained on it they show memory, not skill."
        for one in summary["overlap"]
        if one["same"] or one["similar"]
    ]
    if summary["overlap"] and not found:
        files = dict.fromkeys(visible(one["file"]) for one in summary["overlap"])
        found.append(f"No question is also in {listed(list(files), _MAX_NAMES)}.")
    return found


def overlap(one: Mapping[str, Any]) -> str:
    """Say how many questions of a task are also in a training file."""
    same, similar, n = one["same"], one["similar"], one["n"]
    task, file = visible(one["task"]), visible(one["file"])
    if similar and not same:
        return f"{similar:,} of {n:,} questions of {task} are in large part also in {file}"
    more = f", {similar:,} more in large part" if similar else ""
    return f"{same:,} of {n:,} questions of {task} are also in {file}{more}"


def _cuts(summary: Mapping[str, Any]) -> list[str]:
    most = summary["settings"]["max_new_tokens"]
    found = []
    for task, entry in summary["tasks"].items():
        for name, one in entry["models"].items():
            if one["cut_by_length"] > _MANY_CUT * max(one["n"], 1):
                found.append(
                    f"{visible(task)}, {visible(name)}: {one['cut_by_length']:,} of {one['n']:,} answers "
                    f"were cut at {most} tokens, {one['cut_and_wrong']:,} of them counted wrong (see "
                    "--max-new-tokens)."
                )
    return found


def _failures(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"{visible(task)}, {visible(name)}: {one['failed']:,} questions have no verdict and are not "
        "counted (see quarantine.jsonl)."
        for task, entry in summary["tasks"].items()
        for name, one in entry["models"].items()
        if one["failed"]
    ]


def _few(summary: Mapping[str, Any]) -> list[str]:
    few = [visible(task) for task, entry in summary["tasks"].items() if entry["n"] < FEW_QUESTIONS]
    if not few:
        return []
    return [
        f"{listed(few, _MAX_NAMES)}: fewer than {FEW_QUESTIONS} questions, which can show only large differences."
    ]
