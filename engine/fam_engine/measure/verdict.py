"""The verdict of a study, by a rule fixed before any result is seen.

In: the perplexities of the variants under the untrained model, and tables of results after training. Out: a verdict of
four: `helps`, `hurts`, `no effect`, `not distinguishable`; and for several cells the one they share, or `mixed`.
`RULE` is the rule in words; reports print it. Only one pair of variants is compared in a cell, chosen by perplexity
alone, so nothing needs a correction for having looked at many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from fam_engine.measure.crossed import crossed_mean
from fam_engine.measure.statistics import Estimate, Floats

Verdict = Literal["helps", "hurts", "no effect", "not distinguishable", "not measured"]

RULE = (
    "Fixed before any result was seen. In each model and task, among the variants that are not "
    "control arms, the candidate is the one with the lowest geometric mean perplexity under the "
    "untrained model; it is compared with the reference variant named in the YAML (the question "
    "does not arise where they are the same). d is the accuracy after training on the candidate "
    "minus that after training on the reference, over the same seeds and the same test questions, "
    "with a 95 % interval over both. If the whole interval lies within plus or minus the margin: "
    "no effect. Else if it lies above 0: helps. Else if it lies below 0: hurts. Else: not "
    "distinguishable. Retention is judged by the same rule, with d the mean over the retention "
    "tasks. Over several models and tasks the verdict is the one all of them share, else mixed. "
    "Where a control arm has as many answers as the candidate, as long, as often right, trained on "
    "alike and less familiar, the candidate is compared with it too, by the same rule. "
    "A verdict says what training on these answers did, not why: the confounds listed with it were "
    "not held fixed."
)


def find_candidate(perplexities: Mapping[str, float | None]) -> str | None:
    """Name the variant of the lowest perplexity; of equal ones the first; None without any."""
    known = {name: value for name, value in perplexities.items() if value is not None}
    return min(known, key=lambda name: known[name], default=None)


def judge_pair(
    candidate: Sequence[Floats], reference: Sequence[Floats], *, margin: float
) -> dict[str, Any]:
    """Compare two variants.

    Args:
        candidate: Tables float64[S, Q] of results, a test each.
        reference: The same of the reference: same seeds, same questions.
        margin: Difference that would matter, a share.

    Returns:
        `difference`: value and interval; `verdict`.
    """
    tables = [first - second for first, second in zip(candidate, reference, strict=True)]
    difference = crossed_mean(tables)
    return {"difference": asdict(difference), "verdict": verdict_of(difference, margin)}


def verdict_of(difference: Estimate, margin: float) -> Verdict:
    """Apply the rule to a difference and its interval."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "not measured"
    if -margin < low and high < margin:
        return "no effect"
    if low > 0.0:
        return "helps"
    return "hurts" if high < 0.0 else "not distinguishable"


def joined_verdict(verdicts: Sequence[str]) -> str:
    """Give the verdict that all cells share."""
    measured = {verdict for verdict in verdicts if verdict != "not measured"}
    if not measured:
        return "not measured"
    return measured.pop() if len(measured) == 1 else "mixed"
