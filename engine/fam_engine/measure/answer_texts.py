"""What a set of answers looks like, whatever a model thinks of them: length, correctness, marks of format.

In: texts, their gold answers, and whether they are right. Out: plain figures. A variant can win for any of these
rather than for being familiar, so a report shows them beside its perplexity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Name -> what an answer that carries the mark holds.
MARKS = {
    "<<...>>": re.compile(r"<<.*?>>"),
    "####": re.compile(r"^####", re.MULTILINE),
    "\\boxed{}": re.compile(r"\\boxed\s*\{"),
    "Final Answer:": re.compile(r"(?i)final answer\s*[:=]"),
    "A:": re.compile(r"^A:", re.MULTILINE),
    "Result:": re.compile(r"^Result:", re.MULTILINE),
    "numbered steps": re.compile(r"(?im)^\s*(?:step\s*\d+\b|\(?\d+[.)]\s)"),
    "code block": re.compile(r"```"),
}
# Shares of two variants this far apart are pointed out; so is a ratio of lengths.
SHARE_APART = 0.1
CORRECT_APART = 0.02
RATIO_APART = 1.1


def describe_texts(texts: Sequence[str], correct: Sequence[bool | None]) -> dict[str, Any]:
    """Describe a variant.

    Args:
        texts: Its answers.
        correct: Whether each is right, None where unknown.

    Returns:
        `n`; `characters` and `lines`, means an answer; `correct`: share of those known, None
        without any; `num_known`; `marks`: name -> share of answers that carry it, those that occur.
    """
    count = len(texts)
    known = [one for one in correct if one is not None]
    marks = {name: sum(bool(mark.search(t)) for t in texts) / count for name, mark in MARKS.items()}
    return {
        "n": count,
        "characters": math.fsum(map(len, texts)) / count,
        "lines": math.fsum(text.count("\n") + 1 for text in texts) / count,
        "correct": sum(known) / len(known) if known else None,
        "num_known": len(known),
        "marks": {name: share for name, share in marks.items() if share > 0.0},
    }


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Find what two variants differ in beside familiarity.

    Args:
        first: From `describe_texts`.
        second: The same of the other.

    Returns:
        `what` (`questions`, `length`, `correctness`, `mark`), `first`, `second`, for a mark its
        `name`; only differences beyond the bounds above.
    """
    found: list[dict[str, Any]] = []
    if first["n"] != second["n"]:
        found.append(_difference("questions", first["n"], second["n"]))
    if _ratio(first["characters"], second["characters"]) > RATIO_APART:
        found.append(_difference("length", first["characters"], second["characters"]))
    rights = first["correct"], second["correct"]
    if None not in rights and abs(rights[0] - rights[1]) > CORRECT_APART:
        found.append(_difference("correctness", *rights))
    for name in MARKS:
        shares = first["marks"].get(name, 0.0), second["marks"].get(name, 0.0)
        if abs(shares[0] - shares[1]) > SHARE_APART:
            found.append({**_difference("mark", *shares), "name": name})
    return found


def _difference(what: str, first: float, second: float) -> dict[str, Any]:
    return {"what": what, "first": first, "second": second}


def _ratio(first: float, second: float) -> float:
    low, high = sorted((first, second))
    return high / low if low > 0.0 else math.inf
