from __future__ import annotations

import pytest

from fam_engine.errors import UsageError
from fam_engine.jobs.references import Reference
from fam_engine.jobs.rewriting.verification import check_candidate

GOLD = Reference("math", "18", (), (), is_gold=True)
GIVEN = "16 - 3 - 4 = 9 eggs. 9 * 2 = 18. #### 18"


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("Nine eggs at $2 each make $18.", "eos", "verified"),
        ("Nine eggs at $2 each make $18.", "stop", "verified"),
        ("Nine eggs at $2 each make $18.", "length", "length"),
        ("", "nonfinite", "nonfinite"),
        ("", "eos", "empty"),
        ("16 - 3 - 4 = 9 eggs.\n9 * 2 = 18.  #### 18", "eos", "copy"),
        ("A: 18", "eos", "bare"),
        ("Like the reference answer says, nine eggs make $18.", "eos", "mentions_reference"),
        ("Nine eggs at $3 each make $27.", "eos", "wrong_answer"),
    ],
)
def test_a_candidate_has_one_reason(text: str, finish_reason: str, reason: str) -> None:
    check = check_candidate(text, finish_reason, GOLD, shown=GIVEN, with_working=True)
    assert check.reason == reason
    assert check.is_verified == (reason == "verified")
    assert check.detail


def test_an_own_answer_may_be_the_given_one_and_short() -> None:
    # It was not shown the given answer, so it cannot have copied it.
    assert check_candidate(GIVEN, "eos", GOLD).is_verified
    assert check_candidate("A: 18", "eos", GOLD).is_verified


def test_no_option_at_all_is_no_final_answer() -> None:
    choice = Reference("choice", "B", ("ladder", "umbrella"), (), is_gold=True)
    assert check_candidate("Whatever keeps one dry.", "eos", choice).reason == "no_final_answer"
    assert check_candidate("The ladder.", "eos", choice).reason == "wrong_answer"


def test_short_code_is_no_bare_answer() -> None:
    code = Reference("code", None, (), ("assert f(2) == 4",), is_gold=True)
    program = "def f(x): return x * x"
    assert check_candidate(program, "eos", code, with_working=True).is_verified
    assert check_candidate("def f(x): return x", "eos", code).reason == "wrong_answer"


def test_what_cannot_be_judged_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_math_verify(*_: object, **__: object) -> None:
        raise UsageError("math-verify is not installed", code="E_EXTRA")

    monkeypatch.setattr("fam_engine.jobs.references.judge", needs_math_verify)
    check = check_candidate("x = 18", "eos", GOLD)
    assert (check.reason, check.detail) == ("unjudged", "math-verify is not installed")
