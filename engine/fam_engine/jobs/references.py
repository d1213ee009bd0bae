"""What a model's answers are compared with: a record's gold answer, or the final answer its response gives.

In: a record, its options and tests. Out: a `Reference`, or None where nothing can be compared. Without a gold answer
the response's own final answer is read by the rules by which candidates are judged: what it states; else the number
its last line holds; else a response of a few words is an answer as a whole. An essay has no final answer, so nobody
can tell whether a rewritten one says the same: it keeps its words.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fam_engine.measure.answers import TaskKind, Verdict, guess_kind, judge
from fam_engine.measure.answers.final_answers import stated_answer
from fam_engine.measure.answers.numerals import parse_number
from fam_engine.measure.answers.thoughts import after_thoughts

# A response that is a bare answer: `yes`, `entailment`, `the dining room`, `The final answer is 18`.
_MAX_BARE_WORDS = 5


@dataclass(frozen=True)
class Reference:
    """What a right candidate must agree with.

    Attributes:
        kind: How it is judged.
        answer: The final answer to agree with; None for code, which tests decide.
        choices: Texts of the options.
        tests: Of code.
        is_gold: Whether it came with the record; else it was read from the response.
    """

    kind: TaskKind
    answer: str | None
    choices: tuple[str, ...]
    tests: tuple[str, ...]
    is_gold: bool

    @staticmethod
    def from_json(text: str) -> Reference:
        """Read one that `to_json` wrote."""
        fields = json.loads(text)
        lists = {name: tuple(fields[name]) for name in ("choices", "tests")}
        return Reference(**{**fields, **lists})

    def to_json(self) -> str:
        """Write it for the journal."""
        return json.dumps(asdict(self))

    def judge(self, text: str) -> Verdict:
        """Judge a text.

        Raises:
            UsageError: Only math-verify can decide, and it is not installed.
        """
        return judge(
            text, kind=self.kind, answer=self.answer, choices=self.choices, tests=self.tests
        )


def find_reference(
    response: str,
    answer: str | None,
    choices: Sequence[str],
    tests: Sequence[str],
    *,
    kind: TaskKind | None = None,
) -> Reference | None:
    """Find what candidates are compared with.

    Args:
        response: The given answer.
        answer: The gold answer, if the record has one.
        choices: Texts of the options, for a question that has them.
        tests: Of code, for a question that has them.
        kind: How it is judged; None: what all this looks like.
    """
    options = tuple(choices)
    if tests and kind in (None, "code"):
        return Reference("code", None, options, tuple(tests), is_gold=True)
    if answer is not None and answer.strip():
        guessed = kind or guess_kind(answer, options, ())
        return Reference(guessed, answer, options, (), is_gold=True)
    if options:
        letter = _picked(response, options)
        return Reference("choice", letter, options, (), is_gold=False) if letter else None
    final = _final_answer(after_thoughts(response))
    if final is None:
        return None
    return Reference(kind or guess_kind(final, (), ()), final, (), (), is_gold=False)


def _picked(response: str, choices: Sequence[str]) -> str | None:
    letters = string.ascii_uppercase[: len(choices)]
    return next(
        (
            letter
            for letter in letters
            if judge(response, kind="choice", answer=letter, choices=choices).correct
        ),
        None,
    )


def _final_answer(response: str) -> str | None:
    stated = stated_answer(response)
    if stated is not None and guess_kind(stated.text, (), ()) == "math":
        return stated.text
    last_line = response.strip().rsplit("\n", 1)[-1]
    # Judged against any number at all: what counts is what is read, not whether it is equal.
    read = judge(response if stated else last_line, kind="math", answer="0").extracted
    if read is not None and parse_number(read) is not None:
        return read
    if stated is not None:
        return stated.text
    return response.strip() if is_bare(response) else None


def is_bare(text: str) -> bool:
    """Whether a text is no more than an answer without its working."""
    return len(re.findall(r"\w+", text)) <= _MAX_BARE_WORDS
