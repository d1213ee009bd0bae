"""One judgement for every kind of task.

In: a response and what is known about the right answer. Out: a `Verdict`. The rules of each kind are in `maths`,
`choices`, `exact` and `programs`; which kind a record is, if it does not say, in `guess_kind`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fam_engine.measure.answers.choices import judge_choice
from fam_engine.measure.answers.exact import judge_exact
from fam_engine.measure.answers.maths import judge_math, looks_like_math
from fam_engine.measure.answers.programs import judge_code
from fam_engine.measure.answers.thoughts import after_thoughts
from fam_engine.measure.answers.verdict import TaskKind, Verdict

__all__ = ["TaskKind", "Verdict", "guess_kind", "judge"]


def judge(
    response: str,
    *,
    kind: TaskKind,
    answer: str | None,
    choices: Sequence[str] = (),
    tests: Sequence[str] = (),
) -> Verdict:
    r"""Judge a response.

    Args:
        response: What was written, by anyone; no response raises. Only what follows its thoughts counts.
        kind: How it is judged.
        answer: The gold answer; for `math` also a solution that states it (`#### 10`, `\boxed{10}`), for `choice`
            a letter, a number from 1, or an option's text; for `code` unused.
        choices: The options' texts in order, for `choice`.
        tests: Python texts that fail by raising, run in order in one namespace, for `code`. A test may call whatever
            the code defines; HumanEval's takes the form `test + "\ncheck(name)"`.

    Returns:
        The verdict; `correct` is None where there is no gold answer, or none that fits the kind.

    Raises:
        UsageError: `E_EXTRA`: this one can only be decided by math-verify, and it is not installed.
    """
    response = after_thoughts(response)
    if kind == "code":
        return judge_code(response, tests)
    if answer is None or not answer.strip():
        return Verdict(None, None, "no gold answer")
    if kind == "math":
        return judge_math(response, answer)
    if kind == "choice":
        return judge_choice(response, answer, choices)
    return judge_exact(response, answer)


def guess_kind(answer: str | None, choices: Sequence[str], tests: Sequence[str]) -> TaskKind:
    """Guess how a record's responses are to be judged from what it has.

    Tests mean `code`, options `choice`; a gold answer that is a number or holds TeX or a formula, or a solution that
    states one, `math`; anything else `exact`.
    """
    if tests:
        return "code"
    if choices:
        return "choice"
    return "math" if answer is not None and looks_like_math(answer) else "exact"
