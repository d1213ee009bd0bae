"""Verdicts on mathematics: the traps known from other extractors, and what only math-verify can tell."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from fam_engine.errors import UsageError
from fam_engine.measure.answers import judge, symbolic
from fam_engine.measure.answers.verdict import Verdict


def math(response: str, answer: str) -> Verdict:
    return judge(response, kind="math", answer=answer)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("5+5=10\n#### 10", "10"),
        ("5+5=10\n#### 10", "so 10.\n#### 10"),
        ("#### 12", "Final Answer: the total is 12 cookies."),
        ("Two cost $<<2*9=18>>18.\nA: 18", "18"),
        ("Final Answer: $2,160", "2160"),
        ("Final Answer: 10.0", "10"),
        ("Final Answer: $16,500/month", "16500"),
        ("Final Answer: 36%", "36"),
        ("Final Answer: Dr. Roe needs 15 glass jars. ", "15"),
        ("Final Answer: 10.5 km (7 laps * 1.5 km/lap)", "10.5"),
        ("Final Answer: $21.00 (All three pens were $21.00)", "21"),
        ("Final Answer: $110 + $200 + $150 = $460", "460"),
        ("Final Answer: 40 (in May) + 52 (in June) = 92 letters.", "92"),
        ("Final Answer: Zoe walks 120 minutes (or 2 hours) along the river.", "120"),
        ("Final Answer: The deposit was $\\$450$ at first.", "450"),
        ("Final Answer: The sum of both roots $r$ is $-4+13=9$.", "9"),
        ("Final Answer: The slope of $h(t)-k(t)$ is 6.", "6"),
        ("Final Answer: There are 9 primes $p$ of this kind.", "9"),
        ("Final Answer: roughly $v \\approx 2.3026$.", "2.3026"),
        ("Final Answer: 6 cooks are enough to feed 80 guests.", "6"),
        ("The answer is the sum of 3 and 4, which is 7", "7"),
        ("Answer: x = -5/4", "-1.25"),
        ("Answer: x = -5/4", r"-\frac{5}{4}"),
        ("We get 3.\nThe total is 12.\nThat is 12 apples in all", "12"),
        ("42", "42"),
        # Of one line that states nothing the last number counts, of a statement the one it begins with.
        ("12 apples, so 3 are left", "3"),
        ("That makes 12. So 3 are left.", "3"),
        ("Answer: 12 apples, of which 3 are red", "12"),
        ("10.5 km (7 laps * 1.5 km/lap)", "10.5"),
        ("The profit is -$5.", "-5"),
        (r"Hence $\boxed{\text{(A)}}$", r"\text{(A)}"),
        (r"so $\boxed{\left( 3, \dfrac{\pi}{2} \right)}$.", r"\left(3,\frac{\pi}{2}\right)"),
        (r"\boxed{x \leq 5}", r"x\le5"),
        (r"\boxed{\frac12}", "0.5"),
        (r"The function is $f(x) = 2x+3$.", "2x+3"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{10\text{ cm}}", "10"),
        ("The answer is:\n\\[\n\\text{Total} = 18\n\\]", "18"),
        ("The answer is negative 3 degrees, up from 5.", "-3"),
        ("The answer is **minus 3**", "-3"),
        ("The answer is non-negative 3", "3"),
        ("5 minus 3 is 2", "2"),
        # One amount said twice.
        ("The answer is 120 minutes or 2 hours.", "120"),
        ("The answer is 0.5 or 50%.", "0.5"),
        ("Final Answer: $0.24 or 24 cents", "0.24"),
        ("The answer is: this gives $30 + $160 or $190", "190"),
        ("The answer is 10:00 am.", "10"),
        ("The answer is: in week 3:210 pages", "210"),
        ("#### 5 apples and 3 oranges", "5"),
        # A list and a number of thousands may look the same.
        (r"\boxed{100,200}", "100, 200"),
        (r"\boxed{100,\ 200}", "100, 200"),
        (r"\boxed{(1234, 5)}", r"(1,\! 234, 5)"),
        (r"\boxed{0.\overline{3}}", r"\frac{1}{3}"),
        (r"The answer is $\frac16$.", r"0.1\overline{6}"),
        (r"\boxed{2516_{8}}", "2516_8"),
    ],
)
def test_right(response: str, answer: str) -> None:
    verdict = math(response, answer)
    assert verdict.correct is True, verdict


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 10\n", "11"),
        ("Final Answer: Ducks: 14, Geese: 7", "21"),
        ("Final Answer: undefined", "30"),
        ("Final Answer: 25k marbles.", "25"),
        ("Final Answer: -", "2"),
        ("The first step gives 18.\nFinal Answer: 17", "18"),
        ("the answer is 18 ... no wait, the answer is 20", "18"),
        ("I do not know.", "18"),
        ("", "18"),
        ("Final Answer: 17.6", "18"),
        (r"\boxed{-5}", "5"),
        ("Answer: x^2+1", "1"),
        ("The answer is the length 2x", "2"),
        (r"The answer is the length 4\sqrt{3}", "3"),
        (r"\boxed{x+2}", "2"),
        (r"\boxed{\text{(B)}}", r"\text{(A)}"),
        ("Final Answer: 2,160", "2"),
        ("12 apples, so 3 are left", "12"),
        ("That makes 12. So 3 are left.", "12"),
        ("The length is 2x", "2"),
        ("The answer is negative 3", "3"),
        ("The answer is minus 3", "3"),
        ("The answer is 5 minus 3", "5"),
        ("The answer is x minus 3", "-3"),
        ("The answer is plus or minus 3", "3"),
        ("The answer is 8 or 9.", "8"),
        (r"The answer is $8$ or $9$.", "8"),
        (r"The answer is \(8\) or \(9\).", "9"),
        ("The value of $x$ is either $8 or $9", "9"),
        ("8 or 9", "9"),
        ("The answer is 10:30 am.", "10"),
        ("She gets up at 10:30 am.", "30"),
        (r"\boxed{2516_7}", "2516_8"),
        ("The answer is $2516_{7}$.", "2516_8"),
    ],
)
def test_wrong(response: str, answer: str) -> None:
    verdict = math(response, answer)
    assert verdict.correct is False, verdict


@pytest.mark.parametrize(
    "statement",
    [
        *(
            "18π",
            "18 π",
            "18 pi",
            "√18",
            "sqrt(18)",
            "18²",
            "18³",
            "18½",
            "18\u204437",
            "±18",
            "x > 18",
            "18 squared",
        ),
        *(
            "18 and 37",
            "18 & 37",
            "18, 37",
            "18 to 37",
            "18\u201337",
            "18 537",
            "18 times 2",
            "between 37 and 18",
        ),
        *(
            "3, 5, 18",
            "The two are 3 and 18",
            "18 and a half",
            "18 hundred",
            "18 lakh",
            "18 thousand",
        ),
        *(
            "18 hours and 35 minutes",
            "18 hours, 35 minutes",
            "It took 35 hours and 18 minutes",
            "18 feet 6 inches",
        ),
        *("18'6\"", "$18 and 35 cents", r"$18\text{ hours }35\text{ minutes}$"),
        *("not 18", "It cannot be 18", "It isn't 18", "less than 18", "It is more than 18"),
    ],
)
def test_what_is_not_the_number_in_it(statement: str) -> None:
    for response in (f"Final Answer: {statement}", f"The answer is {statement}.", statement):
        verdict = math(response, "18")
        assert verdict.correct is False, verdict


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        ("18½", "18.5"),
        ("18 and a half", "18.5"),
        ("18 hundred", "1800"),
        ("2 hundred thousand", "200000"),
        ("3 lakh", "300000"),
        ("12 345", "12345"),
        # A unit.
        ("18 dozen eggs", "18"),
        ("10 m²", "10"),
        ("10 cm²", "10"),
        ("9.8 m/s²", "9.8"),
        ("<b>18</b>", "18"),
        # Said beside it.
        ("18 dollars and 5 apples", "18"),
        ("18 and the rest is 5", "18"),
        ("18, not 5", "18"),
        ("no more than 18", "18"),
        ("at least 18", "18"),
        ("It rose from 5 to 18", "18"),
        ("4 12-ounce bottles", "4"),
        ("2 $10 bills", "2"),
        ("12 => 18", "18"),
    ],
)
def test_what_is_the_number_in_it(statement: str, answer: str) -> None:
    for response in (f"Final Answer: {statement}", f"Final Answer: {statement}."):
        verdict = math(response, answer)
        assert verdict.correct is True, verdict


def test_a_last_number_that_is_a_factor_is_not_the_whole() -> None:
    walk = "We walk on along the path. " * 4
    for response, answer, right in (
        ("So the area is 36π.", "36", False),
        ("So the area is 36π.", r"36\pi", True),
        (r"So it is √36.", "36", False),
        (r"So it is $6^2$.", "6", False),
        (r"So $a_{36}$ is \text{36}", "36", True),
        (r"So the angle is ${36^{\circ}}$.", "36", True),
    ):
        assert math(walk + response, answer).correct is right, response


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("9π", r"9\pi"),
        ("9pi", r"9\pi"),
        ("2√3", r"2\sqrt{3}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("2sqrt(3)", r"2\sqrt{3}"),
        ("x²+1", "x^2+1"),
        ("x¹⁰", "x^{10}"),
        ("x⁻¹", "x^{-1}"),
        ("x^{2}", "x^2"),
        ("½x", r"\frac{1}{2}x"),
        ("¾", r"\frac{3}{4}"),
        ("(-∞,2)\u222a(3,∞)", r"(-\infty,2)\cup(3,\infty)"),
        ("x≤5", r"x \leq 5"),
        ("2516₈", "2516_8"),
    ],
)
def test_mathematics_as_it_is_typed(typed: str, answer: str) -> None:
    for one, other in ((typed, answer), (answer, typed)):
        for response in (rf"\boxed{{{one}}}", f"Final Answer: {one}"):
            verdict = math(response, other)
            assert verdict.correct is True, verdict
            assert "math-verify" not in verdict.reason


@pytest.mark.parametrize(
    ("response", "answer", "equal"),
    [
        (r"\boxed{2\sqrt{25}}", "10", True),
        (r"\boxed{10\sqrt{2}}", "10", False),
        (r"\boxed{5!}", "120", True),
        (r"\boxed{5!}", "5", False),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{(x+1)^2}", "x^2+1", False),
        (r"\boxed{\frac{\sqrt{3}}{3}}", r"\frac{1}{\sqrt{3}}", True),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", True),
        (r"\boxed{(2,1)}", "(1,2)", False),
        (r"\boxed{[1,2)}", "[1,2]", False),
        (r"\boxed{100200}", "100, 200", False),
        (r"\boxed{1200}", "1, 200", False),
        (r"\boxed{2516}", "2516_8", True),
    ],
)
def test_symbolic(response: str, answer: str, *, equal: bool) -> None:
    pytest.importorskip("math_verify")
    verdict = math(response, answer)
    assert verdict.correct is equal, verdict
    assert "math-verify" in verdict.reason


@pytest.mark.parametrize(
    "piece", ["\\[", "\\(", "\\[ \\(", "\\(\n", "\\\\[", "\\$", "\\$1 ", "$", "$a\n", "{", "<<"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    # A pattern that reads on to the end from each of them would take minutes here.
    assert math(piece * (200000 // len(piece)), "x^2").correct is False


def test_a_row_of_a_display_ends_without_opening_another() -> None:
    response = "There is more to say.\n" * 4 + r"\[ x \\[2ex] + y \] and so on, and so on."
    assert math(response, r"x \\[2ex] + y").correct is True


def test_a_hostile_formula_costs_one_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    assert math(r"\boxed{2+3}", "5").correct is True  # the child is up
    with monkeypatch.context() as patched:
        patched.setattr(symbolic, "_PATIENCE_SECONDS", 0.5)
        verdict = math(r"\boxed{9^{9^{9}}}", "10")
    assert verdict.correct is False
    assert "limits" in verdict.reason
    assert math(r"\boxed{2+3}", "5").correct is True  # another child


def test_the_child_ends_itself_when_it_computes_too_long() -> None:
    pytest.importorskip("math_verify")
    program = (
        "from fam_engine.measure.answers import symbolic_worker as worker\n"
        "worker.SECONDS = 0.3\nworker.main()"
    )
    requests = "".join(json.dumps(pair) + "\n" for pair in (["1+1", "2"], ["10", "9^{9^{9}}"]))
    child = subprocess.run(
        [sys.executable, "-c", program], input=requests.encode(), capture_output=True, timeout=60
    )
    assert child.stdout == b"ready\ntrue\n"
    assert child.returncode < 0


def test_without_the_extra_numbers_still_work_and_formulas_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name == "math_verify" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert math(r"#### \frac{1}{2}", "0.5").correct is True
    assert math(r"\boxed{\dfrac{1}{\pi}}", r"\frac{1}{\pi}").correct is True  # the same text
    assert math("Final Answer: y + 31", "77").correct is False  # an unknown is no number
    with pytest.raises(UsageError, match=r"fam-engine\[math\]"):
        math(r"\boxed{2\sqrt{25}}", "10")
