"""What answers look like, and what two variants differ in."""

from __future__ import annotations

from fam_engine.measure.answer_texts import describe_texts, differences


def test_description() -> None:
    found = describe_texts(["<<1+1=2>>2\n#### 2", "two"], [True, None])
    assert found["n"] == 2
    assert found["characters"] == (17 + 3) / 2
    assert found["lines"] == 1.5
    assert (found["correct"], found["num_known"]) == (1.0, 1)
    assert found["marks"] == {"<<...>>": 0.5, "####": 0.5}


def test_unknown_correctness_stays_unknown() -> None:
    assert describe_texts(["x"], [None])["correct"] is None


def test_alike_variants_differ_in_nothing() -> None:
    one = describe_texts(["A: 5 apples", "A: 7"], [True, True])
    assert differences(one, one) == []


def test_differences_are_named() -> None:
    short = describe_texts(["A: 5"] * 10, [True] * 10)
    long = describe_texts(["Step 1: five\nFinal Answer: 5"] * 8, [True] * 6 + [False] * 2)
    found = differences(short, long)
    assert [one["what"] for one in found[:3]] == ["questions", "length", "correctness"]
    assert {one["name"] for one in found[3:]} == {"A:", "Final Answer:", "numbered steps"}
