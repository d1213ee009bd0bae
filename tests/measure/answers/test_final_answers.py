"""Where a response states its final answer."""

from __future__ import annotations

import pytest

from fam_engine.measure.answers.final_answers import stated_answer


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("so 5+5=10.\n#### 10", "10"),
        ("so 5+5=10. #### 10", "10"),
        ("#### 1,200", "1,200"),
        (r"Thus $x=\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{3} no, \boxed{\text{four}}", r"\text{four}"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7 apples", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("Final Answer: 5", "5"),
        ("FINAL_ANSWER:\n5", "5"),
        ("**Final Answer:** 5", "5"),
        ("## Final Answer\n\n5\n", "5"),
        ("Final Answer:\n\nThey raised $2,500 in all.", "They raised $2,500 in all."),
        ("Final Answer: the answer is 5", "5"),
        (r"Final Answer: $\boxed{5}$ I hope it is correct.", "5"),
        ("The final answer is $5$.", "$5$."),
        ("The answer is 3. No: the answer is 4", "4"),
        ("Answer: 3", "3"),
        ("the correct option is (C)", "(C)"),
        ("The best option for this plan would be (3) later.", "(3) later."),
        ("The answer to this question is 12.", "12."),
        # What only opens a display is no answer.
        ("The final answer is:\n\\[\n18\n\\]", "18"),
        ("**Answer:**\n\n\\[\n18\n\\]", "18"),
        ("The answer is: \\(\n18\n\\)", "18"),
        ("The answer is:\n$$\n18\n$$\nfor 2 < 3.", "18"),
        ("The answer is:\n\\[\n\\text{Total} = 18\n\\]", "\\text{Total} = 18"),
        ("The answer is:\n\\begin{equation*}\n18\n\\end{equation*}", "18"),
        ("Answer:\n\\[\n\\begin{array}{c}\n18\n\\end{array}", "18"),
        (r"Final Answer: \[ 18 \]", r"\[ 18 \]"),
        # The last place counts, as far as it is one of the strongest rule.
        ("#### 1\nQuestion: ...\n#### 2", "2"),
        (r"\boxed{5}. Final Answer: 6", "6"),
        ('Final Answer: A"\n\nMind that the final answer is kept.', 'A"'),
        ("Final Answer: 1\n\nAnswer: 2", "1"),
        # An empty statement is none.
        ("The answer is 4.\nFinal Answer:", "4."),
        ("The answer is 4.\nFinal Answer: ____", "4."),
        # A box that was cut off is none.
        (r"The answer is 4, so \boxed{\frac{1}{2", r"4, so \boxed{\frac{1}{2"),
    ],
)
def test_stated(response: str, text: str) -> None:
    statement = stated_answer(response)
    assert statement is not None
    assert statement.text == text


@pytest.mark.parametrize(
    "response",
    [
        "",
        "so it is 5",
        "#### Step 2: add",
        "#### 2. Sum up\nx",
        "##### 5",
        "The answer is not 5",
        "Final Answer:",
    ],
)
def test_not_stated(response: str) -> None:
    assert stated_answer(response) is None


def test_headings_do_not_hide_the_answer() -> None:
    statement = stated_answer("#### Step 1\n2+2\n#### 4\n#### Note")
    assert statement is not None
    assert statement.text == "Note"  # a heading after the answer cannot be told from one
    statement = stated_answer("#### 4\n#### Step 2: check")
    assert statement is not None
    assert statement.text == "4"


def test_what_is_final() -> None:
    for response, final in (
        ("Final Answer: 5", True),
        ("the answer is 5", False),
        ("\\boxed{5}", True),
    ):
        statement = stated_answer(response)
        assert statement is not None
        assert statement.final is final


def test_many_open_boxes_take_linear_time() -> None:
    assert stated_answer("\\boxed{" * 50000) is None
    statement = stated_answer("\\boxed{" * 50000 + "5" + "}" * 50000)
    assert statement is not None
    assert statement.text == "5"
