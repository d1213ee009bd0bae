"""A study's findings in words: the verdict, how sure it is, what else could explain it, what the metrics foretold.

In: the dictionary of `results.json`. Out: sentences, the same in the terminal, in HTML and in Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fam_engine.report.wording import number, percent, points

_HEADLINES: Final = {
    "helps": "Training on the more familiar answers helped",
    "hurts": "Training on the more familiar answers hurt",
    "no effect": "Training on the more familiar answers made no difference that matters",
    "not distinguishable": "No difference between familiar and unfamiliar answers can be made out",
    "mixed": "Familiar answers helped in some models and tasks and not in others",
    "not measured": "Nothing can be said about familiar answers yet",
}
_KEPT: Final = {
    "helps": "more of what the model knew before was kept than with the reference answers",
    "hurts": "less of what the model knew before was kept than with the reference answers",
    "no effect": "of what the model knew before, as much was kept",
    "not distinguishable": "whether more of what the model knew before was kept cannot be told",
    "mixed": "how much of what the model knew before was kept differs between models and tasks",
    "not measured": "what was kept of earlier knowledge was not measured",
}
_AS_LONG: Final = {
    "helps": "they helped too",
    "hurts": "they hurt",
    "no effect": "they made no difference that matters",
    "not distinguishable": "no difference in what was learnt can be made out",
    "mixed": "what was learnt differs between arms, models and tasks",
    "not measured": "what was learnt was not measured",
}
_KEPT_AS_LONG: Final = {
    "helps": "more was kept",
    "hurts": "less was kept",
    "no effect": "as much was kept",
    "not distinguishable": "whether more was kept cannot be told",
    "mixed": "what was kept differs between arms, models and tasks",
    "not measured": "what was kept was not measured",
}
# Accuracies above or below which variants have no room to differ.
_CEILING: Final = 0.95
_FLOOR: Final = 0.03
# Share of answers cut by the limit of tokens that a reader should know of.
_MANY_CUT: Final = 0.05
INTERVALS: Final = (
    "Intervals are 95 % and cover two things at once: other test questions of the same kind, and "
    "other training seeds (first values of the adapter, order of the records). They are Student's "
    "intervals, wide where few seeds disagree. They do not cover other training questions, other "
    "training settings or other models."
)
CAVEATS: Final = (
    (
        "Length.",
        "Longer answers bring more trained tokens, more working shown, and lower perplexity a token, "
        "whoever wrote them. Compare variants of equal length, or the length-matched arms.",
    ),
    (
        "Correctness.",
        "Perplexity knows nothing of right and wrong. A variant with more right answers teaches more "
        "that is right; a variant that its own model could write may be right more often.",
    ),
    (
        "Marks of format.",
        "Marks such as <<3+4=7>>, a boxed result or a last line of fixed form change perplexity "
        "and what the answer is read from, without changing what is said.",
    ),
    (
        "Familiar is close to what the model was trained on.",
        "Low perplexity means that answers look like the model's own training data. That training on "
        "them keeps the model where it was is then half a matter of course.",
    ),
    (
        "Family.",
        "Answers by a model of the same family are familiar for reasons of style that no person's "
        "answer shares. Metrics of likelihood favour them, better teachers or not.",
    ),
)


def headline(results: Mapping[str, Any]) -> str:
    """Give the verdict in a sentence, and in another what is left of it at equal length."""
    verdict, as_long = results["verdict"], results["at_equal_length"]
    said = f"{_HEADLINES[verdict['in_domain']]}; {_KEPT[verdict['retention']]}."
    if as_long is not None:
        said += (
            f" Against less familiar answers of the same length {_AS_LONG[as_long['in_domain']]}; "
            f"{_KEPT_AS_LONG[as_long['retention']]}."
        )
    return said


def points_interval(estimate: Mapping[str, float | None]) -> str:
    """Write the interval of a difference, or nothing where there is none."""
    low, high = estimate["low"], estimate["high"]
    return "" if low is None or high is None else f"{points(low)} to {points(high)}"


def cell_name(results: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """Name a model and task, by what tells it from the others."""
    models = {one["model"] for one in results["cells"]}
    return f"{cell['model']}, {cell['task']}" if len(models) > 1 else str(cell["task"])


def cell_line(cell: Mapping[str, Any]) -> str:
    """Say what was found for a model and task, in a line of a list of several."""
    candidate, reference = cell["candidate"], cell["reference"]
    if candidate is None:
        return "no variant has been scored yet."
    if candidate == reference:
        return f"{reference}, the reference, is itself the most familiar variant."
    told = [
        f"{where} {points(found['difference']['value'])} points, {found['verdict']}"
        for where, found in (
            ("in domain", cell["verdict"]["in_domain"]),
            ("on what it knew before", cell["verdict"]["retention"]),
        )
    ]
    return f"{candidate} against {reference}: {'; '.join(told)}."


def cell_findings(cell: Mapping[str, Any]) -> list[str]:
    """Say what was found for a model and task."""
    candidate, reference = cell["candidate"], cell["reference"]
    if candidate is None:
        return ["No variant has been scored yet."]
    if candidate == reference:
        return [
            f"The reference, {reference}, is itself the most familiar variant: the question does "
            "not arise."
        ]
    return [
        f"The most familiar variant is {candidate}; it is compared with {reference}, the reference.",
        _compared(cell, "in_domain", f"On {cell['task']}"),
        _compared(cell, "retention", "On what the model knew before"),
        *_confounded(cell),
        *_at_equal_length(cell),
        *_controls(cell),
    ]


def cell_remarks(cell: Mapping[str, Any], num_seeds: int) -> list[str]:
    """Say what a reader should know before trusting a comparison.

    Args:
        cell: Of the results.
        num_seeds: Seeds the study was to have.
    """
    said = []
    if len(cell["seeds"]) < num_seeds:
        said.append(f"Only {len(cell['seeds'])} of {num_seeds} seeds are complete.")
    said += [f"{name} is left out: {reason}." for name, reason in cell["dropped"].items()]
    said += _diverged(cell)
    counts = cell["training_questions"] or {}
    if counts.get("in_test"):
        said.append(
            f"{counts['in_test']:,} of {counts['read']:,} training questions are also test questions "
            "and were left out."
        )
    if counts.get("repeated"):
        said.append(
            f"{counts['repeated']:,} training questions were there twice and are used once."
        )
    if len(cell["seeds"]) == 1:
        said.append("One seed: intervals cover other questions and not other seeds.")
    measured = [one["in_domain"]["value"] for one in cell["variants"].values() if one["in_domain"]]
    if measured and min(measured) > _CEILING:
        said.append(
            "Every variant gets nearly everything right: there is no room for a difference."
        )
    if measured and max(measured) < _FLOOR:
        said.append("No variant gets anything to speak of right: nothing was learnt to compare.")
    cut = {name: share for name, share in cell["cut"].items() if share > _MANY_CUT}
    if cut:
        listed = ", ".join(f"{percent(share)} ({name})" for name, share in cut.items())
        said.append(
            f"On {cell['task']}, answers ran into the limit of tokens, which nearly always counts as wrong: {listed}."
        )
    for name, entry in cell["variants"].items():
        count, scored = entry["texts"]["n"], entry["num_scored"]
        if scored is not None and scored < count:
            said.append(
                f"{name}: {count - scored:,} of {count:,} answers do not fit the model and were "
                "neither scored nor trained on."
            )
        if own := entry["by_model"]:
            said.append(
                f"{name}: {own['own']:,} of {own['read']:,} answers are the model's own, verified."
            )
    return said


def _diverged(cell: Mapping[str, Any]) -> list[str]:
    """Tell of trainings that were lost, by variant."""
    said = []
    for name in dict.fromkeys(one["variant"] for one in cell["diverged"]):
        lost = [one for one in cell["diverged"] if one["variant"] == name]
        listed = "; ".join(f"seed {one['seed']}, {one['reason']}" for one in lost)
        said.append(
            f"{name}: {len(lost)} of {len(cell['seeds'])} trainings diverged and are in no average "
            f"({listed}). What is left is of the seeds that went well."
        )
    return said


def _compared(cell: Mapping[str, Any], which: str, where: str) -> str:
    found = cell["verdict"][which]
    difference = found["difference"]
    if difference["value"] is None:
        return f"{where}: not measured."
    limits = points_interval(difference)
    after = (
        f"{percent(cell['variants'][name][which]['value'])} after training on {name}"
        for name in (cell["candidate"], cell["reference"])
    )
    return (
        f"{where}: {', '.join(after)}{_before(cell, which)}; {points(difference['value'])} points"
        + (f" (95 % interval {limits})" if limits else "")
        + f", by the rule: {found['verdict']}."
    )


def _before(cell: Mapping[str, Any], which: str) -> str:
    is_own = which == "in_domain"
    found = [
        base["value"] for task, base in cell["base"].items() if (task == cell["task"]) == is_own
    ]
    return f", {percent(sum(found) / len(found))} before" if found else ""


def _at_equal_length(cell: Mapping[str, Any]) -> list[str]:
    """Say what is left of the difference where length does not differ."""
    said = []
    for name, found in cell["at_equal_length"].items():
        entry = cell["variants"][name]
        told = [
            f"{where} {points(found[which]['difference']['value'])} points "
            f"({points_interval(found[which]['difference'])}), {found[which]['verdict']}"
            for which, where in (
                ("in_domain", f"on {cell['task']}"),
                ("retention", "on what it knew before"),
            )
            if found[which]["difference"]["value"] is not None
        ]
        if told:
            said.append(
                f"At equal length: {cell['candidate']} against {name}, less familiar "
                f"(perplexity {number(entry['perplexity']['value'])}) and as long "
                f"({number(entry['texts']['characters'])} characters an answer): {'; '.join(told)}."
            )
    return said


def _controls(cell: Mapping[str, Any]) -> list[str]:
    """Tell of the control arms, against both variants that are compared."""
    said = []
    for which, where in (("in_domain", cell["task"]), ("retention", "what the model knew before")):
        told = [
            f"{name} {points(against['value'])} ({points_interval(against)}) against "
            f"{cell['reference']}, {points(beside['value'])} ({points_interval(beside)}) against "
            f"{cell['candidate']}"
            for name, entry in cell["variants"].items()
            if entry["control"]
            for against in [entry["versus_reference"][which]]
            for beside in [entry["versus_candidate"][which]]
            if against["value"] is not None and beside["value"] is not None
        ]
        if told:
            said.append(f"Control arms on {where}, in points: {'; '.join(told)}.")
    return said


def _confounded(cell: Mapping[str, Any]) -> list[str]:
    names = cell["candidate"], cell["reference"]
    if not cell["confounds"]:
        return [
            f"{names[0]} and {names[1]} differ in none of: number of questions, length, "
            "correctness, marks of format."
        ]
    listed = "; ".join(confound(found) for found in cell["confounds"])
    return [
        f"Beside familiarity, {names[0]} and {names[1]} differ in {listed}. What made a difference "
        "is open where a control arm does not settle it."
    ]


def confound(found: Mapping[str, Any]) -> str:
    """Say what two variants differ in."""
    first, second = found["first"], found["second"]
    if found["what"] == "questions":
        return f"the number of questions trained on ({first:,} against {second:,})"
    if found["what"] == "length":
        return f"length ({number(first)} against {number(second)} characters an answer)"
    if found["what"] == "correctness":
        return f"correctness ({percent(first)} against {percent(second)} right)"
    return f"the mark `{found['name']}` (in {percent(first)} against {percent(second)} of answers)"


def foretold(results: Mapping[str, Any], which: str) -> list[str]:
    """Say what the metrics foretold, and how little that may mean."""
    found = results["foretelling"][which]
    if found is None:
        return ["Fewer than two variants trained alike: nothing to foretell."]
    counts: Sequence[int] = found["num_variants"]
    metrics = found["metrics"]
    fewest, most = min(counts), max(counts)
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    cells = len(counts)
    hits = [name for name, entry in metrics.items() if entry["named_best"] == cells]
    by_luck = found["chance_of_all"] * len(metrics)
    said = [
        f"{span} variants trained alike in {cells} {'cell' if cells == 1 else 'cells'} of model and "
        f"task. {len(hits)} of {len(metrics)} metrics name the best variant"
        f"{'' if cells == 1 else ' in every cell'}; of as many that know nothing, about "
        f"{by_luck:.1f} would. Most are made from the same losses of the same tokens, so they are "
        "right or wrong together."
    ]
    if fewest < 6 or cells < 5:
        said.append(
            "That is far too few variants and tasks to rank metrics by. Read the table as a "
            "description of this study, and see `select --replay` for a ledger of many tasks."
        )
    return said


def describe_origin(entry: Mapping[str, Any]) -> str:
    """Say what a variant is, in a few words."""
    made = entry["origin"]
    if "make" in made:
        words = f"{made['make']} of {made['of']}"
        words += f", matched to {made['to']}" if "to" in made else ""
    elif "of" in made:
        words = f"the answers of {made['of']}"
    else:
        words = made.get("file") or f"generated, {made['style']} style"
    if entry["train"]:
        settings = ", ".join(f"{name} {value}" for name, value in entry["train"].items())
        words += f", trained with {settings}"
    return words + (" (control)" if entry["control"] else "")
