"""Answers compared as text.

In: a response and the gold answer. Out: a `Verdict`. The rule: what the response states as its final answer
(`final_answers`), or all of it where it states nothing, equals the gold answer after both are normalised: Unicode
NFKC, case folded, runs of white space as one space, quotes, asterisks and backticks round it and a final `.`, `!`, `,`
or `;` left out. Articles, and punctuation inside, count.
"""

from __future__ import annotations

import unicodedata

from fam_engine.measure.answers.final_answers import stated_answer
from fam_engine.measure.answers.verdict import Verdict

_AROUND = "*_`\"'“”\u2018\u2019 "
_AT_THE_END = ".!,;"


def judge_exact(response: str, answer: str) -> Verdict:
    """Judge a response by equality after normalisation."""
    statement = stated_answer(response)
    text = statement.text if statement is not None else response.strip()
    equal = normalise(text) == normalise(answer)
    return Verdict(equal, text, "equal as text" if equal else "not equal as text")


def normalise(text: str) -> str:
    """Bring a text to the form in which it is compared."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(_AROUND).rstrip(_AT_THE_END).strip(_AROUND)
