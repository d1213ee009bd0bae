from __future__ import annotations

import pytest

from fam_engine.jobs.references import Reference, find_reference


@pytest.mark.parametrize(
    ("response", "kind", "answer"),
    [
        ("16 - 3 = 13, times 2 is 26.\n#### 26", "math", "26"),
        ("She makes 18 a day.\nA: 18", "math", "18"),
        ("Nine times two, so she makes $18 every day.", "math", "$18"),
        ("Final answer: She makes $18 every day.", "math", "$18"),
        (r"So $x^2 = 4$ gives \boxed{\pm 2}", "math", r"\pm 2"),
        ("It follows from the first sentence.\nAnswer: entailment", "exact", "entailment"),
        ("entailment", "exact", "entailment"),
    ],
)
def test_without_a_gold_answer_it_is_what_the_response_ends_with(
    response: str, kind: str, answer: str
) -> None:
    reference = find_reference(response, None, (), ())
    assert reference is not None
    assert (reference.kind, reference.answer, reference.is_gold) == (kind, answer, False)
    assert reference.judge(response).correct
    assert not reference.judge("Final answer: 17").correct


def test_a_text_without_a_final_answer_has_no_reference() -> None:
    essay = "In 1969 people landed on the moon.\nIt was a summer nobody forgot, least of all they."
    assert find_reference(essay, None, (), ()) is None


def test_a_gold_answer_counts_and_not_the_response() -> None:
    reference = find_reference("A: 26", "18", (), ())
    assert reference == Reference("math", "18", (), (), is_gold=True)


def test_options_are_compared_by_what_is_picked() -> None:
    choices = ("ladder", "umbrella", "kettle")
    reference = find_reference("Rain comes from above, so an umbrella.", None, choices, ())
    assert reference == Reference("choice", "B", choices, (), is_gold=False)
    assert reference.judge("Final answer: (B) umbrella").correct
    assert find_reference("Who knows?", None, choices, ()) is None


def test_tests_judge_code_whatever_the_answer_says() -> None:
    reference = find_reference("def f(): return 1", "1", (), ("assert f() == 1",))
    assert reference == Reference("code", None, (), ("assert f() == 1",), is_gold=True)


def test_a_kind_given_is_the_kind() -> None:
    reference = find_reference("18", "18", (), (), kind="exact")
    assert reference is not None
    assert reference.kind == "exact"


def test_it_comes_back_from_the_journal() -> None:
    reference = Reference("choice", "B", ("a", "b"), (), is_gold=True)
    assert Reference.from_json(reference.to_json()) == reference
