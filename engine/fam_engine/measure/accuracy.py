"""How sure we are of an accuracy, and of a difference between two models asked the same questions.

In: counts, or one right/wrong a question. Out: `Estimate`s with 95 % intervals, and `Paired` comparisons. Two models
that answer the same questions are compared question by question: only those on which they differ say anything, and an
unpaired test would miss differences that are there. One model's accuracy has Wilson's interval, which stays within 0
and 1 and holds for few questions; a paired difference has Newcombe's, which is built from it, and a mean over tasks
one built from those. Where several answers are to one question, it is questions that are counted. A bootstrap was
rejected: where a model gets all questions right, or two models differ on none, its interval shrinks to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fam_engine.measure.statistics import (
    Estimate,
    Floats,
    Ints,
    Resamples,
    ratio_estimate,
)
from fam_engine.measure.student import LEVEL

Bools = npt.NDArray[np.bool_]

# 97.5 % quantile of the normal distribution, for 95 % intervals.
_Z: Final = 1.959963984540054


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions.

    Attributes:
        n: Number of questions.
        only_first: Questions that only the first model got right.
        only_second: Questions that only the second got right.
        difference: Accuracy of the first minus that of the second, with its interval.
        p: Two-sided p of McNemar's exact test.
    """

    n: int
    only_first: int
    only_second: int
    difference: Estimate
    p: float

    @property
    def verdict(self) -> str:
        """Say what the test says at the 5 % level: `better`, `worse` or `within noise`."""
        if self.p >= 1 - LEVEL:
            return "within noise"
        return "better" if self.only_first > self.only_second else "worse"


def wilson(num_correct: float, n: float) -> Estimate:
    """Estimate an accuracy.

    The interval is Wilson's (1927, J. Am. Stat. Assoc. 22, 209), without continuity correction.

    Args:
        num_correct: Questions answered right; need not be whole, nor need `n`.
        n: Questions; 0: nothing can be said.
    """
    if n == 0:
        return Estimate(None)
    share = num_correct / n
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    scale = 1 + _Z**2 / n
    # At 0 and n the ends are 0 and 1 exactly, which rounding would miss.
    low = 0.0 if num_correct == 0 else (centre - half) / scale
    high = 1.0 if num_correct == n else (centre + half) / scale
    return Estimate(share, low, high)


def share_right(resamples: Resamples, correct: Floats) -> Estimate:
    """Estimate the share of right answers, where several may be to one question.

    Resampling answers that are all alike gives a point; of these the interval is Wilson's over questions.

    Args:
        resamples: Draws for these rows.
        correct: float64[n], 1 or 0, NaN where unknown.
    """
    share = ratio_estimate(resamples, correct, np.ones(len(correct)))
    if share.value not in (0.0, 1.0) or share.low is None:
        return share
    num_questions = len(np.unique(resamples.units[~np.isnan(correct)]))
    return wilson(round(share.value * num_questions), num_questions)


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the two-sided p of McNemar's exact test (1947, Psychometrika 12, 153).

    Of the questions on which two equally good models differ, each is as likely to be the first's as the second's; p is
    twice the smaller tail of that binomial distribution, at most 1.
    """
    total = only_first + only_second
    fewer = min(only_first, only_second)
    # Logarithms, because the terms of many questions are beyond float64.
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(log - total * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def compare_paired(first: Bools, second: Bools) -> Paired:
    """Compare two models on the same questions.

    Args:
        first: bool[n], whether the first model got each question right.
        second: bool[n], the same of the second, in the same order.
    """
    counts = _counts(first, second)
    _, only_first, only_second, _ = counts
    p = mcnemar(only_first, only_second)
    return Paired(len(first), only_first, only_second, _newcombe(*counts), p)


def compare_clustered(first: Bools, second: Bools, questions: Ints) -> Paired:
    """Compare on answers of which several may be to one question; with one to each it is `compare_paired`.

    Answers to one question resemble each other, so they say less than as many questions would. The interval is of
    the counts divided by their design effect (Rao and Scott 1992, Biometrics 48, 577). The test is of questions: each
    is the model's that has more of its answers right; where one model has more questions and the other more answers,
    p is 1.

    Args:
        first: bool[n], whether each answer of the first model is right.
        second: bool[n], the same of the second, in the same order.
        questions: int64[n], any numbering of the questions.
    """
    _, answered, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    if sizes.max(initial=1) == 1:
        return compare_paired(first, second)
    gains = first.astype(np.float64) - second
    effect = _design_effect(gains, answered, sizes)
    difference = _newcombe(*(count / effect for count in _counts(first, second)))
    of_question = np.bincount(answered, gains)
    only_first = int(np.count_nonzero(of_question > 0))
    only_second = int(np.count_nonzero(of_question < 0))
    agree = (only_first - only_second) * gains.sum() > 0
    p = mcnemar(only_first, only_second) if agree else 1.0
    return Paired(len(sizes), only_first, only_second, difference, p)


def _counts(first: Bools, second: Bools) -> tuple[int, int, int, int]:
    """Count what both, only the first, only the second, and neither got right."""
    right = (first & second, first & ~second, second & ~first, ~first & ~second)
    both, only_first, only_second, neither = (int(np.count_nonzero(one)) for one in right)
    return both, only_first, only_second, neither


def _design_effect(gains: Floats, answered: Ints, sizes: Ints) -> float:
    """Say how many answers are worth one question: variance of the mean over what independent answers would have."""
    rest = gains - gains.mean()
    spread = float(rest @ rest)
    if spread == 0.0:
        # Nothing tells how alike the answers to a question are: entirely, to be safe.
        return float(sizes @ sizes) / len(gains)
    sums = np.bincount(answered, rest)
    return max(float(sums @ sums) / spread, 1.0)


def _newcombe(both: float, only_first: float, only_second: float, neither: float) -> Estimate:
    """Estimate a paired difference by method 10 of Newcombe (1998, Stat. Med. 17, 2635)."""
    n = both + only_first + only_second + neither
    if n == 0:
        return Estimate(None)
    first, first_down, first_up = _reach(wilson(both + only_first, n))
    second, second_down, second_up = _reach(wilson(both + only_second, n))
    phi = _correlation(both, only_first, only_second, neither)
    difference = first - second
    down = _joined(first_down, second_up, phi)
    up = _joined(first_up, second_down, phi)
    return Estimate(difference, difference - down, difference + up)


def _reach(estimate: Estimate) -> tuple[float, float, float]:
    """Give an estimate's value, and how far its interval reaches down and up from it."""
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None
    assert low is not None
    assert high is not None
    return value, value - low, high - value


def _correlation(both: float, only_first: float, only_second: float, neither: float) -> float:
    """Give the correlation of two models' results, towards 0 by the method's continuity correction."""
    n = both + only_first + only_second + neither
    margins = (both + only_first, only_second + neither, both + only_second, only_first + neither)
    product = math.prod(margins)
    if product == 0:
        return 0.0
    excess = both * neither - only_first * only_second
    corrected = max(excess - n / 2, 0.0) if excess > 0 else excess
    return corrected / math.sqrt(product)


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Estimate the unweighted mean of estimates from independent sets of questions, such as tasks.

    The interval recovers each one's variance from its own interval (MOVER; Zou and Donner 2008, Stat. Med. 27, 1693,
    equation 3 for a sum): its reach down is the root of the summed squares of theirs, over their number; likewise up.

    Args:
        estimates: Accuracies or differences; those without a value are left out.
    """
    known = [_reach(one) for one in estimates if one.value is not None]
    if not known:
        return Estimate(None)
    values, downs, ups = zip(*known, strict=True)
    value = math.fsum(values) / len(known)
    return Estimate(
        value, value - math.hypot(*downs) / len(known), value + math.hypot(*ups) / len(known)
    )
