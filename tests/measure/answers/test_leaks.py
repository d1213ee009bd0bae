from __future__ import annotations

import pytest

from fam_engine.measure.answers import mentions_reference


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Based on the reference answer, it is 5.", "reference answer"),
        ("Sure, this is the ground truth, improved:", "ground truth"),
        ("The groundtruth says otherwise.", "groundtruth"),
        ("As the given solution shows, x = 5.", "the given solution"),
        ("Following the provided answer, x = 5.", "provided answer"),
        ("The answer provided is wrong.", "answer provided"),
        ("The solution you provided is right.", "solution you provided"),
        ("It is the second one, as provided.", "as provided"),
        ("Here's my rewritten explanation:", "Here's my rewritten"),
        ("Here is the corrected solution.", "Here is the corrected"),
        ("Let me restate this in my own words.", "in my own words"),
        ("The previous prediction is wrong.", "previous prediction"),
        ("Minimum Changed Prediction: 5", "Minimum Changed"),
    ],
)
def test_leaks_are_found(text: str, words: str) -> None:
    assert mentions_reference(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "As given in the problem, there are 5 apples.",
        "As provided in the question, x = 5.",
        "The given information is enough.",
        "Using the given equation, the answer is 5.",
        "The original solution is half salt.",
        "The given solution of salt weighs 5 g.",
        "None of the provided answer options fits.",
        "The reference frame moves; the model railway costs $5.",
        "From previous reasoning, we see that 6 is at an end.",
        "She rewrote the letter and revised her plan.",
        "The statement is a rephrased version of the context.",
    ],
)
def test_plain_answers_pass(text: str) -> None:
    assert mentions_reference(text) is None
