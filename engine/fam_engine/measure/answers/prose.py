"""Which number a sentence means.

In: a sentence in TeX (`tex`) and the numbers in it. Out: the one it begins with, or its last; None where that is not
what is meant, or not all of it. No single number are `8 or 9`, `8 and 9`, `8 to 9`, `8, 9`, `8 9`, `10:30` and `8 hours
and 9 minutes`; nor is one that is denied or a bound (`not 8`, `more than 8`), or that ends or begins a formula (`8 pi`,
`8^2`). In doubt it is none: a wrong answer taken for right does more harm than the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fam_engine.measure.answers.numerals import Number, equal_numbers

# After a number in prose: anything but an operator, a variable or TeX that would make it part of a formula.
_FORMULA_GOES_ON = re.compile(
    r"""\s*(?:[*^+=>\u00d7÷·_({\[] | <(?!/) | ['\u2032]\s*\d | /(?![A-Za-z]{2})
      | \\(?!text|mbox|mathrm|%|\$|[,!;:\ )\]])
      | [-\u2212\u2013]\s*[\d(\\] | (?:plus|minus|times|divided\s+by)\s+[\d$(\\] | (?:squared|cubed|factorial)\b
      | (?![aA]\b|m\s*\^\s*\{?[23])[A-Za-z]\b(?!'))""",
    re.VERBOSE,
)
# Before a number in prose: it is the end of a formula. A `>` may end an arrow or a tag.
_FORMULA_BEFORE = re.compile(
    r"(?:[-+\u2212*/^_{\u00d7\u00f7\u00b7<]|(?<![-=\w\"'/])>|\\(?:pm|mp|lt|gt|[lgn]eq?)| minus)$"
)
# Before a number in prose: it is another one.
_DENIED = re.compile(
    r"""(?:\b(?:not|never|cannot)|n['\u2019]t)(?:\s+(?:be|equal|to|exactly))*[\s*_$"'(]*$
      | (?<!\bno\ )(?<!\bnot\ )\b(?:less|fewer|more|greater|smaller|larger|higher|lower|other)\s+than[\s*_$"'(]*$""",
    re.IGNORECASE | re.VERBOSE,
)
# One amount in two units, the larger first.
_UNITS = (
    (
        "years?",
        "months?",
        "weeks?",
        "days?",
        "(?:hours?|hrs?)",
        "(?:minutes?|mins?)",
        "(?:seconds?|secs?)",
    ),
    ("(?:miles?|mi)", "(?:yards?|yds?)", "(?:feet|foot|ft)", "inch(?:es)?"),
    ("(?:kilomet(?:er|re)s?|km)", "(?:met(?:er|re)s?|m)", "(?:centimet(?:er|re)s?|cm)"),
    ("(?:pounds?|lbs?)", "(?:ounces?|oz)"),
    ("(?:kilograms?|kg)", "(?:grams?|g)"),
    ("dollars?", "cents?"),
)
_TWO_UNITS = re.compile(
    r"\$\d[\d,.]*\s+and\s+\d+\s+cents?\b|\d\s*(?:"
    + "|".join(
        rf"{larger}\s*(?:,|and|\s)*\d[\d.]*\s*(?:{'|'.join(units[place + 1 :])})\b"
        for units in _UNITS
        for place, larger in enumerate(units[:-1])
    )
    + ")",
    re.IGNORECASE,
)
# Between two numbers, before the first of them, and at the start of each.
_OR = re.compile(r"[\s$*\\()]*\bor\b[\s$*\\()]*")
_BOTH = re.compile(r"[\s$*\\()]*(?:\band\b|\bto\b|&)[\s$*\\()]*|[ \u00a0]+", re.IGNORECASE)
_COMMA = re.compile(r"[\s$*\\()]*,[\s$*\\()]*")
_LIST_GOES_ON = re.compile(r"[\s*_$\"'.)\\]*(?:$|,|and\b|or\b|&)")
_EITHER = re.compile(r"""(?:^|\beither\b)[\s*_$"'~:\\(]*$""", re.IGNORECASE)
_PRICE = re.compile(r"[-+\u2212]?\\?[$\u20ac\u00a3]")

# A number, where it starts and where it ends.
_Place = tuple[Number, int, int]


def number_meant(
    sentence: str, numbers: Sequence[_Place], *, takes_last: bool
) -> tuple[Number | None, str]:
    """Choose the number a sentence means and give its text; all of it where it means no single one."""
    leads = not takes_last and not sentence[: numbers[0][1]].strip("*_ $\"'~:(")
    number, start, end = numbers[0] if leads else numbers[-1]
    neighbours = numbers[:2] if leads else numbers[-2:]
    if (
        _FORMULA_BEFORE.search(sentence[:start].rstrip(" $"))
        or _DENIED.search(sentence[:start])
        or any(two.start() < end and start < two.end() for two in _TWO_UNITS.finditer(sentence))
        or _FORMULA_GOES_ON.match(sentence, end)
        or (len(neighbours) == 2 and _either(sentence, *neighbours))
    ):
        return None, sentence.strip()
    return number, sentence[start:end].strip()


def _either(text: str, one: _Place, other: _Place) -> bool:
    """Whether a text means neither of two neighbouring numbers alone: `8 or 9`, `8 to 9`, `8 9`, `10:30`.

    Of two joined by `or` it does mean one where the other says it again (`0.5 or 50%`, `$0.24 or 24 cents`, `10:00`),
    and where both end a formula (`$30 + $160 or $190`), so only what a text begins with, or `either`, is left open.
    """
    (first, start, end), (second, next_start, next_end) = one, other
    between = text[end:next_start]
    if between == ":":
        return second.value != 0 and next_end - next_start <= 2
    if _BOTH.fullmatch(between):
        # What it came from is not what it became: `it rose from 5 to 18`.
        came = between.strip() == "to" and re.search(r"\w\W+from\W*$", text[:start])
        return not came and not _counts(text, one, other)
    if _COMMA.fullmatch(between):
        listed = re.search(r"[A-Za-z]", text[:start]) is None
        return listed and _LIST_GOES_ON.match(text, next_end) is not None
    joined = _OR.fullmatch(between) and _EITHER.search(text[:start])
    if not joined or equal_numbers(first, second):
        return False
    return bool(_PRICE.match(text, start)) == bool(_PRICE.match(text, next_start))


def _counts(text: str, one: _Place, other: _Place) -> bool:
    """Whether a text begins with a number of things of a size or price: `4 12-ounce bottles`, `2 $10 bills`."""
    (_, start, end), (_, next_start, next_end) = one, other
    if text[end:next_start].strip() or not _EITHER.search(text[:start]):
        return False
    price = _PRICE.match(text, next_start) and not _PRICE.match(text, start)
    return bool(price or re.match(r"-[A-Za-z]", text[next_end:]))
