"""The generated problems: right by recomputation, the same for the same seed, skills kept apart."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

import pytest

from fam_engine.embedded.problems import (
    FORMAL_EVERY,
    HELD_OUT_SKILLS,
    SKILLS,
    TRAINED_SKILLS,
    generate,
    training_texts,
)

# Every equation of an answer: "15 - $9 = $6"; dollar signs say nothing to the sum.
EQUATION = re.compile(r"(\d+(?: [-+*/] \d+)+) = (\d+)")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def compute(node: ast.expr) -> Fraction:
    """Work out a sum exactly, without `eval`."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](compute(node.left), compute(node.right))
    assert isinstance(node, ast.Constant)
    return Fraction(node.value)


def equations(answer: str) -> list[tuple[str, str]]:
    return EQUATION.findall(answer.replace("$", ""))


@pytest.mark.parametrize("skill", SKILLS)
def test_every_sum_is_right_and_ends_at_gold(skill: str) -> None:
    for seed in range(200):
        problem = generate(skill, seed)
        for style, answer in problem.answers.items():
            found = equations(answer)
            assert found, (style, answer)
            for sum_, result in found:
                assert compute(ast.parse(sum_, mode="eval").body) == int(result), answer
            assert int(found[-1][1]) == problem.gold, answer
            last = "A" if style == "plain" else "Result"
            assert answer.splitlines()[-1] == f"{last}: {problem.gold}"


@pytest.mark.parametrize("skill", SKILLS)
def test_same_seed_same_problem_other_seed_another(skill: str) -> None:
    assert generate(skill, 7) == generate(skill, 7)
    # Unit conversion has the fewest distinct questions, 336.
    assert len({generate(skill, seed).question for seed in range(200)}) > 100


def test_a_seed_means_the_same_for_ever() -> None:
    assert generate("addition", 1).question == (
        "Ben has 56 cards. He buys 9 more cards. How many cards does Ben have now?"
    )


@pytest.mark.parametrize("skill", SKILLS)
def test_styles_share_the_numbers_and_little_else(skill: str) -> None:
    problem = generate(skill, 3)
    plain, formal = (set(problem.answers[s].split()) for s in ("plain", "formal"))
    words = [{w for w in style if w.isalpha()} for style in (plain, formal)]
    assert len(words[0] & words[1]) <= len(words[0] | words[1]) / 3


@pytest.mark.parametrize("skill", HELD_OUT_SKILLS)
def test_brief_is_the_end_of_formal_and_as_long_as_plain(skill: str) -> None:
    worked = [generate(skill, seed).answers for seed in range(100)]
    assert all(one["formal"].endswith("\n" + one["brief"]) for one in worked)
    lengths = {style: sum(len(one[style]) for one in worked) for style in ("plain", "brief")}
    # What the small study needs it for: an answer as long as the familiar one.
    assert 0.8 < lengths["brief"] / lengths["plain"] < 1.25


def test_training_text_keeps_to_the_trained_skills() -> None:
    known = {
        generate(skill, seed).question
        for index, skill in enumerate(TRAINED_SKILLS)
        for seed in range(index, 900, len(TRAINED_SKILLS))
    }
    texts = list(training_texts(900))
    assert {question for question, _ in texts} == known
    assert not set(HELD_OUT_SKILLS) & set(TRAINED_SKILLS)
    formal = sum(answer.startswith("Given: ") for _, answer in texts)
    assert formal == len(texts) // FORMAL_EVERY


def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(KeyError):
        generate("juggling", 0)
