"""Which option a response picks."""

from __future__ import annotations

import pytest

from fam_engine.measure.answers import judge

PLACES = ["wooden box", "harbour", "kitchen", "paper boat", "tulips"]


def picked(response: str, choices: list[str] = PLACES) -> str | None:
    """Give the letter of the option picked."""
    letters = "ABCDEFGHIJ"[: len(choices)]
    right = [
        x for x in letters if judge(response, kind="choice", answer=x, choices=choices).correct
    ]
    assert len(right) <= 1
    return right[0] if right else None


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("C", "C"),
        ("(C)", "C"),
        ("c)", "C"),
        ("**C**", "C"),
        ("C. kitchen", "C"),
        ("3", "C"),
        ("(3) the kitchen.", "C"),
        ("kitchen", "C"),
        ("The kitchen.", "C"),
        ("Final Answer: 3", "C"),
        ("Final Answer: (3)", "C"),
        ("Final Answer: The correct option is (3) kitchen", "C"),
        (
            "Final Answer:\n\nBased on this, the correct answer is option (3): kitchen. Not (1).",
            "C",
        ),
        ("Final Answer: kitchen (Option 3)\n\nExplanation: a paper boat is too small.", "C"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        ("The answer is C.", "C"),
        ('the most likely answer is (3) "kitchen", as it fits better than tulips.', "C"),
        ("A harbour is for ships.\nSo it is the kitchen.", "C"),
        ("C\nExplanation: a harbour is for ships.", "C"),
        ("A. wooden box: no.\nB. harbour: no.\nC. kitchen: yes.\nSo I choose C.", "C"),
        # Negation.
        ("The answer is not A but C.", "C"),
        ("It cannot be A or B, so it must be C.", "C"),
        ("It is C. A is incorrect.", "C"),
        ("I would rather put it in the kitchen than in a harbour; A is wrong", None),
        ("It is the kitchen rather than the harbour.", "C"),
        ("Neither A nor B is right", None),
        ("A and B are wrong.", None),
        ("The answer is anything but B", None),
        ("The answer is anything but the harbour: the kitchen", "C"),
        ("Kitchen, harbour is wrong", "C"),
        ("A) wooden box is incorrect, C) kitchen is right", "C"),
        ("Option A (wooden box) is wrong. Option C (kitchen) fits.", "C"),
        ("Boats are found there. Harbours don\u2019t hold a wooden box so it cant be A", None),
        # What is inferred from a denial is not denied.
        ("It does not say where it is therefore kitchen", "C"),
        ("It cannot be both so the kitchen", "C"),
        ("It is not for ships -> kitchen", "C"),
        ("I am not so sure about the kitchen", None),
        ("It does not matter so much in the kitchen", None),
        # A number that a text begins with counts what follows, unless that is its option's text.
        ("2 women cook, so it is the kitchen", "C"),
        ("2 Women cook, so it is the kitchen", "C"),
        ("2 women cook. It is the kitchen.", "C"),
        ("3 kitchen", "C"),
        ("3 the kitchen is where women cook", "C"),
        ("3 is right", "C"),
        ("3 because women cook", "C"),
        ("Final Answer: 3 instead of 2.", "C"),
        ("Option 3 suits best", "C"),
        # A is an article, I a pronoun.
        ("A kettle is used in the kitchen", "C"),
        ("Final Answer: A kitchen", "C"),
        ("Final Answer: A", "A"),
        ("A is the answer.", "A"),
        ("I think it is B.", "B"),
        # `box` is no mention of another option inside `wooden box`.
        ("Final Answer: wooden box", "A"),
        # Several.
        ("Final Answer: A or C", None),
        ("Final Answer: (1) wooden box or (3) kitchen", None),
        ("Final Answer: 1, 2 and 3", None),
        ("Final Answer: either (2) or (3).", None),
        # A refusal as the final answer stands, whatever was said before.
        ("The closest would be (3) kitchen.\nFinal Answer: None of the above.", None),
        ("Final Answer: It is impossible to tell.", None),
        ("", None),
        ("Final Answer: 7", None),
    ],
)
def test_what_is_picked(response: str, letter: str | None) -> None:
    assert picked(response) == letter


@pytest.mark.parametrize(
    "line",
    [
        "{letter}) {text} is {word}.",
        "({number}) {text} is {word}.",
        "({number}) The {text} is {word} because of something.",
        "{number}. {text} is {word}.",
        "Option {letter} ({text}) is {word}.",
        "{letter}. {text}: {word}.",
        "**{letter}. {text}**: {word}",
        "- {text}: {word}.",
    ],
)
def test_what_is_left_of_a_list_that_rejects_the_others(line: str) -> None:
    for right in range(len(PLACES)):
        lines = [
            line.format(
                letter="ABCDE"[place],
                number=place + 1,
                text=text,
                word="correct" if place == right else "incorrect",
            )
            for place, text in enumerate(PLACES)
        ]
        assert picked("\n".join(lines)) == "ABCDE"[right], lines


def test_options_of_one_text_are_one_option() -> None:
    choices = ["country", "park", "Country", "park"]
    for response in ("A", "C", "(3) country", "The answer is C) country", "A or C", "country"):
        for gold in ("A", "C", "country"):
            assert judge(response, kind="choice", answer=gold, choices=choices).correct is True
        assert judge(response, kind="choice", answer="B", choices=choices).correct is False
    assert judge("A or B", kind="choice", answer="A", choices=choices).correct is False
    rejected = "B) park is right.\nC) country is wrong."
    assert judge(rejected, kind="choice", answer="D", choices=choices).correct is True


def test_shorter_texts_inside_longer_ones_do_not_count() -> None:
    assert (
        picked("Final Answer: Surely the office building", ["building", "office building"]) == "B"
    )
    assert picked("it will be in the building", ["building", "office building"]) == "A"


def test_numbers_are_texts_where_options_are_numbers() -> None:
    assert picked("The answer is 3", ["3", "1", "2"]) == "A"
    assert picked("The answer is 12.", ["15", "12", "18"]) == "B"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("12 + 3 = 15", "B"),
        ("12 + 3 = 15, so B", "B"),
        ("15 = 12 + 3", "B"),
        ("20 - 5 = 15", "B"),
        ("A) 12 is wrong, B) 15 is right", "B"),
        ("- 12 is wrong.\n- 15 is right.", "B"),
        ("It is *15*", "B"),
        ("12 - 15", None),
        ("12 or 15", None),
    ],
)
def test_operands_are_no_picks(response: str, letter: str | None) -> None:
    assert picked(response, ["12", "15", "18", "20"]) == letter


def test_operands_with_units_are_no_picks() -> None:
    lengths = ["12 cm", "15 cm", "18 cm"]
    assert picked("12 cm + 3 cm = 15 cm", lengths) == "B"
    assert picked("15 cm = 12 cm + 3 cm", lengths) == "B"


@pytest.mark.parametrize("gold", ["C", "c", "(C)", "3", "kitchen", "Kitchen.", "option C"])
def test_forms_of_the_gold_answer(gold: str) -> None:
    assert judge("So C.", kind="choice", answer=gold, choices=PLACES).correct is True
    assert judge("So B.", kind="choice", answer=gold, choices=PLACES).correct is False


def test_a_gold_answer_that_is_no_option_cannot_be_judged() -> None:
    verdict = judge("C", kind="choice", answer="attic", choices=PLACES)
    assert verdict.correct is None
    assert verdict.reason == "the gold answer 'attic' is none of the options"
    verdict = judge("C", kind="choice", answer="0", choices=PLACES)
    assert (verdict.correct, verdict.reason[-26:]) == (None, ", which are counted from 1")


def test_without_options_the_label_counts() -> None:
    assert judge("The answer is (D).", kind="choice", answer="D").correct is True
    assert judge("Final Answer: 2", kind="choice", answer="3").correct is False
    assert judge("Final Answer: Neutral.", kind="choice", answer="neutral").correct is True


@pytest.mark.parametrize("piece", ["$", "\u201c", "*", "not A ", "A or ", "correct option ", " "])
def test_long_lines_do_not_hang(piece: str) -> None:
    assert picked(piece * 5000 + "x") in (None, "A")
