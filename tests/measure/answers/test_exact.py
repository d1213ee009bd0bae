from __future__ import annotations

import pytest

from fam_engine.measure.answers import judge


@pytest.mark.parametrize(
    ("response", "answer", "equal"),
    [
        ("entailment", "Entailment", True),
        ("  entail\nment ", "entail ment", True),
        ('because ...\nFinal Answer: "Contradiction".', "contradiction", True),
        ("Final Answer: **neutral**", "neutral", True),
        ("The answer is ﬁne", "fine", True),
        ("a b", "ab", False),
        ("the cat", "cat", False),
        ("don't", "dont", False),
        ("neutral, I think", "neutral", False),
        ("", "neutral", False),
    ],
)
def test_exact(response: str, answer: str, *, equal: bool) -> None:
    assert judge(response, kind="exact", answer=answer).correct is equal
