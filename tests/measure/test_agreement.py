from __future__ import annotations

import numpy as np
import pytest

from fam_engine.measure.agreement import (
    TokenLogprobs,
    agreement,
    changed_picks,
    most_changed,
)


def said(*answers: list[float], first: list[bool] | None = None) -> TokenLogprobs:
    logprobs = np.concatenate([np.array(answer) for answer in answers])
    is_first = np.array(first if first is not None else [False] * len(logprobs))
    return TokenLogprobs(logprobs, is_first, np.cumsum([0, *map(len, answers)]))


def test_figures_by_hand() -> None:
    reference = said([-1.0, -3.0], [-1.0], [-4.0, -4.0], first=[True, False, True, True, False])
    other = said([-1.5, -3.0], [-2.5], [-4.0, -3.0], first=[True, False, False, True, False])
    found = agreement(reference, other)
    assert reference.nll_means().tolist() == [2.0, 1.0, 4.0]
    assert other.nll_means().tolist() == [2.25, 2.5, 3.5]
    # Tokens became more surprising by 0.5, 0, 1.5, 0, -1.
    assert found["mean"] == pytest.approx(0.2)
    assert found["mean_abs"] == pytest.approx(0.6)
    assert found["max_abs"] == 1.5
    assert found["answer_max_abs"] == 1.5
    assert found["top1_agreement"] == 0.8
    assert (found["pairs"], found["reordered"]) == (3, 1)
    assert found["rank_correlation"] == pytest.approx(0.5)


def test_a_shift_of_all_answers_moves_no_order() -> None:
    reference = said([-1.0], [-2.0], [-3.0])
    found = agreement(reference, said([-1.5], [-2.5], [-3.5]))
    assert found["mean"] == found["mean_abs"] == found["answer_max_abs"] == 0.5
    assert (found["reordered"], found["rank_correlation"]) == (0, 1.0)


def test_ties_are_not_reordered_and_one_answer_has_no_order() -> None:
    tied = agreement(said([-1.0], [-1.0]), said([-1.0], [-2.0]))
    assert (tied["reordered"], tied["rank_correlation"]) == (0, None)
    alone = agreement(said([-1.0]), said([-2.0]))
    assert (alone["pairs"], alone["rank_correlation"]) == (0, None)


def test_what_moved_most_comes_first_with_its_places() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.5, 2.9])
    shown = most_changed(["a", "b", "c"], first, second)
    assert [row["id"] for row in shown] == ["b", "c", "a"]
    assert shown[0] == {"id": "b", "nll_mean": [2.0, 3.5], "place": [2, 3]}


def test_picks_are_compared_where_there_is_a_choice() -> None:
    ids, groups = ["a", "b", "c", "d", "e"], ["q", "r", "q", "r", "alone"]
    first, second = np.array([1.0, 1.0, 2.0, 2.0, 9.0]), np.array([3.0, 1.0, 2.0, 2.0, 0.0])
    found = changed_picks(ids, groups, first, second)
    assert found == {"questions": 2, "changed": 1, "shown": [{"from": "a", "to": "c"}]}
    assert changed_picks(["a"], ["q"], first[:1], second[:1])["questions"] == 0
