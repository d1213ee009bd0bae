from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fam_engine.errors import UsageError
from fam_engine.jobs.selection.choice import (
    NOT_PICKED,
    OVER_BUDGET,
    REASONS,
    SELECTED,
    SOURCE_LIMIT,
    Columns,
    Plan,
    admit,
    choose,
    mid_quantiles,
)


def columns(
    values: list[float], groups: list[int] | None = None, sources: list[int] | None = None
) -> Columns:
    count = len(values)
    return Columns(
        values=np.array(values, np.float64),
        groups=np.array(groups or range(count), np.int64),
        sources=np.array(sources or [0] * count, np.int64),
        num_tokens=np.arange(1, count + 1),
        correct=np.array([1, 0, -1] * count)[:count],
    )


def chosen(of: Columns, plan: Plan, averages: list[float | None] | None = None) -> list[str]:
    reasons = choose(of, plan, admit(of, plan), averages or [])
    return [REASONS[code] for code in reasons]


def test_each_question_gets_its_lowest_answer_and_of_equal_ones_the_first() -> None:
    of = columns([3.0, 1.0, 2.0, 2.0, 5.0], groups=[0, 0, 1, 1, 2])
    picked = chosen(of, Plan("question", "lowest"))
    assert picked == ["not_picked", "selected", "selected", "not_picked", "selected"]
    picked = chosen(of, Plan("question", "highest"))
    assert picked == ["selected", "not_picked", "selected", "not_picked", "selected"]


def test_a_whole_source_is_picked_by_its_average() -> None:
    of = columns([1.0, 9.0, 2.0, 3.0], sources=[0, 0, 1, 1])
    assert chosen(of, Plan("source", "lowest"), [5.0, 2.5]) == [
        *["not_picked"] * 2,
        *["selected"] * 2,
    ]
    assert chosen(of, Plan("source", "highest"), [5.0, None]) == [
        *["selected"] * 2,
        *["not_picked"] * 2,
    ]


def test_a_band_of_sources_keeps_the_middle_one() -> None:
    of = columns([1.0, 2.0, 3.0], sources=[0, 1, 2])
    plan = Plan("source", "lowest", band=(1 / 3, 2 / 3))
    assert chosen(of, plan, [9.0, 7.0, 8.0]) == ["not_picked", "not_picked", "selected"]


def test_each_constraint_has_its_reason_and_the_first_counts() -> None:
    of = columns([np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    plan = Plan("all", "lowest", correct_only=True, min_tokens=3, max_tokens=5)
    assert [REASONS[code] for code in admit(of, plan)] == [
        "metric_undefined",
        "incorrect",
        "correctness_unknown",
        "selected",
        "incorrect",
        "correctness_unknown",
        "too_long",
    ]
    short = columns([1.0, 1.0])
    assert [REASONS[c] for c in admit(short, Plan("all", "lowest", min_tokens=2))] == [
        "too_short",
        "selected",
    ]


def test_the_budget_takes_the_first_by_the_metric() -> None:
    of = columns([5.0, 1.0, 3.0])
    assert chosen(of, Plan("all", "lowest", budget=2)) == ["over_budget", "selected", "selected"]


def test_a_quota_gives_the_next_answer_of_the_question_its_chance() -> None:
    of = columns([1.0, 2.0, 1.5, 2.5], groups=[0, 0, 1, 1], sources=[0, 1, 0, 1])
    picked = chosen(of, Plan("question", "lowest", quotas={0: 1}))
    # Source 0 is full after question 0, so question 1 falls to source 1.
    assert picked == ["selected", "not_picked", "source_limit", "selected"]


def test_no_source_exceeds_its_share_and_no_more_is_lost_than_needed() -> None:
    of = columns([float(n) for n in range(100)], sources=[0] * 90 + [1] * 10)
    picked = chosen(of, Plan("all", "lowest", max_share=0.5))
    assert picked.count("selected") == 20
    assert picked[:10] == ["selected"] * 10
    assert picked[90:] == ["selected"] * 10


def test_a_question_makes_room_for_one_that_has_no_other_source() -> None:
    # Source 0 answers both questions and comes first on question 0, the only one that source 1 answers.
    of = columns([1.0, 3.0, 2.0], groups=[0, 1, 0], sources=[0, 0, 1])
    for plan in (
        Plan("question", "lowest", max_share=0.5),
        Plan("question", "lowest", quotas={0: 1}),
    ):
        assert chosen(of, plan) == ["source_limit", "selected", "selected"]


def test_half_of_the_questions_go_to_the_other_source() -> None:
    values = [*map(float, range(100)), *[500.0] * 50]
    of = columns(values, [*range(100), *range(50)], [0] * 100 + [1] * 50)
    picked = chosen(of, Plan("question", "lowest", max_share=0.5))
    assert picked[:100] == ["source_limit"] * 50 + ["selected"] * 50
    assert picked[100:] == ["selected"] * 50


def test_room_is_made_through_several_sources() -> None:
    # Question 0 can only have source 0, whose question 1 goes over to source 1, whose question 2 does to source 2.
    of = columns([9.0, 1.0, 2.0, 1.0, 2.0], groups=[0, 1, 1, 2, 2], sources=[0, 0, 1, 1, 2])
    picked = chosen(of, Plan("question", "lowest", max_share=0.34))
    assert picked == ["selected", "source_limit", "selected", "source_limit", "selected"]


def test_a_share_nobody_can_keep_is_refused() -> None:
    of = columns([1.0, 2.0, 3.0], sources=[0, 1, 1])
    with pytest.raises(UsageError, match="at or below 30%") as caught:
        chosen(of, Plan("all", "lowest", max_share=0.3))
    assert "at least to 1 / 2" in str(caught.value)
    one_question = columns([1.0, 2.0], groups=[0, 0], sources=[0, 1])
    with pytest.raises(UsageError, match="at or below 50%") as caught:
        chosen(one_question, Plan("question", "lowest", max_share=0.5))
    assert "or --quota and --budget" in str(caught.value)


def test_a_random_order_is_the_seeds_and_covers_the_pool() -> None:
    of = columns([float(n) for n in range(100)], sources=[0] * 100)
    plans = [Plan("source", "lowest", budget=50, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (chosen(of, plan, [1.0]) for plan in plans)
    assert first == same != other
    assert first.count("selected") == 50
    # Not the first fifty by the metric: a sample of the source should look like the source.
    assert 10 < first[:50].count("selected") < 40


def test_bands_side_by_side_split_everything() -> None:
    generator = np.random.default_rng(0)
    of = columns(
        generator.normal(size=101).tolist(), groups=generator.integers(0, 20, 101).tolist()
    )
    for per in ("question", "all"):
        bands = [(0.0, 0.25), (0.25, 0.75), (0.75, 1.0)]
        picked = [chosen(of, Plan(per, "lowest", band=band)) for band in bands]
        counts = [sum(one[row] == "selected" for one in picked) for row in range(101)]
        assert counts == [1] * 101


def test_quantiles_are_places_within_blocks() -> None:
    values, blocks = np.array([30.0, 1.0, 10.0, 20.0]), np.array([1, 0, 1, 1])
    assert mid_quantiles(values, blocks).tolist() == pytest.approx([5 / 6, 1 / 2, 1 / 6, 3 / 6])
    assert mid_quantiles(np.array([]), np.array([], np.int64)).tolist() == []


def largest(of: Columns, plan: Plan) -> int:
    """Give the size of the largest selection within the limits, by trying all."""
    count = len(of.values)
    for size in range(min(count, plan.budget or count), 0, -1):
        for rows in combinations(range(count), size):
            sources = np.bincount(of.sources[list(rows)]).tolist()
            is_within = plan.max_share is None or max(sources) <= plan.max_share * size + 1e-9
            is_within &= all(
                sources[s] <= most for s, most in plan.quotas.items() if s < len(sources)
            )
            if is_within and len({*of.groups[list(rows)].tolist()}) == size:
                return size
    return 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9
    ),
    st.one_of(st.none(), st.integers(1, 6)),
    st.one_of(st.none(), st.integers(0, 3)),
    st.one_of(st.none(), st.sampled_from([0.25, 0.34, 0.4, 0.5, 0.75])),
)
def test_no_selection_within_the_limits_is_larger(
    rows: list[tuple[int, int, int]], budget: int | None, quota: int | None, share: float | None
) -> None:
    values, groups, sources = (list(part) for part in zip(*rows, strict=True))
    of = columns([float(v) for v in values], groups, sources)
    quotas = {} if quota is None else {0: quota}
    plan = Plan("question", "lowest", quotas=quotas, max_share=share, budget=budget)
    try:
        count = chosen(of, plan).count("selected")
    except UsageError:
        count = 0
    assert count == largest(of, plan)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40
    ),
    st.sampled_from(["question", "all"]),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.integers(0, 10)),
    st.one_of(st.none(), st.floats(0.3, 1.0)),
)
def test_every_limit_holds_at_once(
    rows: list[tuple[int, int, int]],
    per: str,
    budget: int | None,
    quota: int | None,
    share: float | None,
) -> None:
    values, groups, sources = (list(part) for part in zip(*rows, strict=True))
    of = columns([float(v) for v in values], groups, sources)
    quotas = {} if quota is None else {0: quota}
    plan = Plan(per, "lowest", quotas=quotas, max_share=share, budget=budget)  # type: ignore[arg-type]
    try:
        reasons = choose(of, plan, admit(of, plan), [])
    except UsageError:
        assert share is not None
        return
    taken = np.flatnonzero(reasons == SELECTED)
    counts = np.bincount(of.sources[taken], minlength=4)
    assert len(taken) <= (budget or len(rows))
    assert quota is None or counts[0] <= quota
    assert share is None or counts.max() <= share * len(taken) + 1e-6
    if per == "question":
        assert len(np.unique(of.groups[taken])) == len(taken)
    if share is None:
        # Nothing is dropped for a limit that was not reached.
        left_out = set(reasons.tolist()) - {SELECTED}
        assert (OVER_BUDGET in left_out) <= (len(taken) == budget)
        assert (SOURCE_LIMIT in left_out) <= (quota is not None and counts[0] == quota)
        assert (NOT_PICKED in left_out) <= (per == "question")
