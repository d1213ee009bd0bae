"""The one way in: kinds, golds that are missing, and responses from anywhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fam_engine.measure.answers import guess_kind, judge, mentions_reference, symbolic
from fam_engine.measure.answers.programs import extract_program


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("10", "math"),
        ("$1,200", "math"),
        ("10 apples", "math"),
        ("5+5=10\n#### 10", "math"),
        (r"so $x=\boxed{\text{east}}$", "math"),
        (r"\frac{\pi}{2}", "math"),
        ("x^2+1", "math"),
        ("(1,2)", "math"),
        ("4t", "math"),
        ("-4, 4", "math"),
        ("2 + 7i", "math"),
        ("3qr + 6q - 15r -30", "math"),
        ("p+q-r", "math"),
        ("p - q", "math"),
        ("36π", "math"),
        ("9am-5pm", "exact"),
        ("3rd", "exact"),
        ("n/a", "exact"),
        ("i", "exact"),
        ("A-B", "exact"),
        ("π-bond", "exact"),
        ("Paris", "exact"),
        ("B", "exact"),
        ("Boeing 747 jet", "exact"),
        ("yes", "exact"),
        ("", "exact"),
        (None, "exact"),
    ],
)
def test_kind(answer: str | None, kind: str) -> None:
    assert guess_kind(answer, (), ()) == kind
    assert guess_kind(answer, ("a", "b"), ()) == "choice"
    assert guess_kind(answer, ("a", "b"), ("assert f()",)) == "code"


@pytest.mark.parametrize("kind", ["math", "choice", "exact"])
def test_no_gold_answer(kind: str) -> None:
    for answer in (None, "", "  "):
        verdict = judge("5", kind=kind, answer=answer)  # type: ignore[arg-type]
        assert (verdict.correct, verdict.reason) == (None, "no gold answer")


THOUGHTS = "<think>\nIs it \\boxed{5}? Or B? ```python\ndef f(): return 5\n``` No.\n</think>\n\n"


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ("It is 4.", {"kind": "math", "answer": "4"}),
        ("A", {"kind": "choice", "answer": "A", "choices": ("four", "five")}),
        ("Four", {"kind": "exact", "answer": "four"}),
        ("```python\ndef f(): return 4\n```", {"kind": "code", "tests": ["assert f() == 4"]}),
    ],
)
def test_what_was_thought_is_no_answer(answer: str, known: dict[str, Any]) -> None:
    known = {"answer": None, **known}
    for thoughts in (THOUGHTS, THOUGHTS.removeprefix("<think>"), "<think>\n\n</think>\n\n"):
        assert judge(thoughts + answer, **known).correct
    unfinished = THOUGHTS.removesuffix("</think>\n\n") + answer
    assert judge(unfinished, **known).correct is False
    assert judge("\n" + unfinished, **known).correct is False
    assert judge(answer, **known).correct


# Pieces that extractors stumble over, beside any text at all.
PIECES = [
    "\\boxed{",
    "}",
    "{",
    "####",
    "Final Answer:",
    "the answer is",
    "$",
    "\\frac",
    "1,234",
    "-",
    "%",
    "A",
    "(b)",
]
PIECES += [
    "not",
    "or",
    "\n",
    "```python\n",
    "def f():",
    "=",
    "1/2",
    "\\",
    "9^9",
    "<<",
    ">>",
    "\u2212",
    "\u00bd",
    "\u0663",
]
RESPONSES = st.one_of(
    st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join)
)


@given(
    RESPONSES,
    st.sampled_from(
        ["10", "x+1", r"\boxed{\frac12}", "A", "kitchen", "####", "{", "\u0663", "1/0"]
    ),
)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_response_raises(monkeypatch: pytest.MonkeyPatch, response: str, answer: str) -> None:
    monkeypatch.setattr(
        symbolic, "equal", lambda gold, other: None
    )  # its own tests are in test_maths
    for kind in ("math", "choice", "exact"):
        for choices in ((), ("kitchen", "wooden box", "box"), ("1", "2"), ("", "a")):
            judge(response, kind=kind, answer=answer, choices=choices)  # type: ignore[arg-type]
    guess_kind(response, (), ())
    mentions_reference(response)
    extract_program(response)


def test_importing_is_light() -> None:
    program = "import sys, fam_engine.measure.answers\nassert not {'torch', 'sympy', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
