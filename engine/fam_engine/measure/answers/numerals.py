r"""Numbers as people and models write them, read exactly.

In: text. Out: `Number`s with exact rational values, or None. Read are signs (also the Unicode minus, `negative`, and
`minus` where it does not subtract), currency signs before or after the sign, thousands commas (plain, `{,}`, `\,`) and
blanks (a plain blank only in a text that is nothing but the number), decimals without a leading zero or with repeating
digits (`0.1\overline{6}`), scientific notation (`1.5e3`, `1.5 \times 10^{3}`), fractions (`1/2`, `\frac{1}{2}`,
`\dfrac12`), mixed numbers, percent, degrees, units, words for hundred to trillion, and `and a half`. A dozen is a unit,
for questions ask for dozens. Nothing is evaluated, and lengths and exponents are bounded: `1e999999999` is no number
here, for its exact value would not fit in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import prod

# Longer than any answer, and far below where exact arithmetic becomes slow.
_MAX_DIGITS = 300
_MAX_EXPONENT = 300

_SIGN = r"[-+\u2212\u2013]"
# In words. `minus` is one where a text begins and after these words; after others it subtracts: `36 kids minus 4`.
_SIGN_WORD = (
    r"(?=[mnMN])(?:(?<!-)(?i:negative)|(?:(?<!\S\s)|(?<=[:=]\s)|(?<=\b(?:is|be|to|of|at)\s)|(?<=\b(?:are|was)\s)"
    r"|(?<=\bequals\s))(?i:minus))\s+"
)
_CURRENCY = r"(?:\\?\$|[€£¥₹]|\\pounds|\\text\{\\?\$\})"
# A plain blank may stand between two numbers, but nobody writes a number `000`.
# Bounded, for else every group of a long row of groups reads on to its end.
_BLANK = r"[\u00a0\u2009\u202f]|[ ](?=(?:\d{3}[ ]){0,9}000(?!\d))"
_GROUPING = rf"(?:,\\![ ]?|\\!,|\{{,\}}|\\,|,|{_BLANK})"
_INTEGER = rf"(?:\d{{1,3}}(?:{_GROUPING}\d{{3}})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_FRAC = r"\\[dtc]?frac"
_NUMBER = re.compile(
    rf"""
    (?<![\w.\\^_])(?<!\d/)                           # `x2`, `1.2.3`, exponents, the rest of a date
    (?P<sign>(?<![)\]}}]){_SIGN}|{_SIGN_WORD})?
    (?:{_CURRENCY}\s?)?
    (?P<inner>{_SIGN})?
    (?:
        (?:(?P<whole>\d+)\s*)?{_FRAC}\s*
            (?:\{{\s*(?:(?P<top_sign>{_SIGN})\s*)?(?P<top>\d+)\s*\}}\s*\{{\s*(?P<bottom>\d+)\s*\}}
              |\s*(?P<top_digit>\d)\s*(?P<bottom_digit>\d))
      | (?P<mixed>\d+)[ ]+(?P<mixed_top>\d+)\s?/\s?(?P<mixed_bottom>\d+)
      | (?P<slash_top>\d+)\s?/\s?(?P<slash_bottom>\d+)(?![\d/]|\.\d)
      | (?P<fixed>\d*\.\d*)\\(?:overline|bar)\s*\{{\s*(?P<repeating>\d+)\s*\}}
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+)\b
            |\s*(?:\\times|\\cdot|[\u00d7x*·])\s*10\s*\^\s*(?:\{{\s*)?(?P<power>[-+\u2212]?\d+)\s*\}}?)?
    )
    (?:\s+and\s+(?:an?|one)[ -](?P<part>half|third|quarter)\b)?
    (?:\s*(?P<braced>\\(?:text|mbox|textrm|mathrm|textit)\s*\{{\s*)?
        (?P<scale>(?:hundred\s+)?(?:thousand|million|billion|trillion|lakh|crore)|hundred)\b(?(braced)[^{{}}\d]*\}}))?
    (?P<percent>\s*(?:\\?%|percent\b|per\ cent\b))?
    """,
    re.VERBOSE | re.ASCII,
)
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_PARTS = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
# All of a text, for within one `3 100 dollar notes` are three.
_BLANKS = re.compile(
    rf"[^\w.,]*?(?<![\d.,])\d{{1,3}}(?: \d{{3}})+(?:\.\d+)?(?:\W|{_CURRENCY})*", re.ASCII
)
# What may stand round a number, again and again, and leave it the same number. The repeating is done in Python: up to
# 3.11.4 a possessive repetition may end in the wrong place where what it repeats looks back or ahead (gh-106052).
_OPENING = re.compile(r"[\s*_`\"'“\u2018]|\\[(\[]|\\left(?![a-z])|\\displaystyle|\$(?=\\?\$)")
_UNIT = re.compile(
    r"""
        \^\s*(?:\{\s*)?\\circ\s*\}?|\\circ|\\degree|°
      | \\(?:text|mbox|textrm|mathrm|textit)\s*\{[^{}\d]*\}(?:\s*\^\s*\{?[23]\}?)?
      | \\[,!;:\ \])]|\\right|[$€£¥*_`"'”\u2019.,;:!\s)]
      | (?<=\s)m\s*\^\s*\{?[23]\}?
      | (?<=[\s%])(?!(?:or|and|to|plus|minus|times|by|over|mod|pi|if|when|where|squared|cubed|factorial)\b)
        [A-Za-z][A-Za-z'/-]+(?:\s*\^\s*\{?[23]\}?)?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """A number as written.

    Args:
        value: Its exact value; of `20%` it is 20.
        decimals: Digits after the point; 0 for a whole number, None for a fraction.
        percent: Whether a percent sign or word follows.
    """

    value: Fraction
    decimals: int | None
    percent: bool


def find_numbers(text: str) -> list[tuple[Number, int, int]]:
    """Find every number in a text: the number, where it starts and where it ends."""
    found = []
    for match in _NUMBER.finditer(text):
        number = _read(match)
        if number is not None:
            found.append((number, match.start(), match.end()))
    return found


def parse_number(text: str) -> Number | None:
    """Read a text that is one number, with its wrapping and units and nothing else."""
    text = text.strip()
    if _BLANKS.fullmatch(text):
        text = re.sub(r"(?<=\d) (?=\d)", "", text)
    body = re.sub(rf"^({_SIGN})\s+", r"\1", text[_end_of_all(_OPENING, text, 0) :])
    match = _NUMBER.match(body)
    if match is None or _end_of_all(_UNIT, body, match.end()) < len(body):
        return None
    return _read(match)


def _end_of_all(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Find where a pattern has matched as often as it can from `start` on, one match after another."""
    while match := pattern.match(text, start):
        start = match.end()
    return start


def equal_numbers(gold: Number, other: Number) -> bool:
    """Compare two numbers as answers.

    - Whole golds are compared exactly: 17.99 is not 18, and 1000001 is not 1000000.
    - A gold with two decimals or more is a rounded value: what rounds to it at its own decimals is equal to it
      (0.33 = 1/3, 3.14 = 3.14159).
    - Other golds (fractions, one decimal) are equal to what differs by at most a millionth of them: 1/3 = 0.3333333,
      but not 0.33.
    - A percent sign is a unit, which one side may leave out or carry out: 20% equals 20 and 0.2. Where both have one
      only the numbers count.
    """
    if _equal_values(gold, other.value):
        return True
    if other.percent and not gold.percent:
        return _equal_values(gold, other.value / 100)
    if gold.percent and not other.percent:
        return _equal_values(gold, other.value * 100)
    return False


def _equal_values(gold: Number, value: Fraction) -> bool:
    if gold.value == value:
        return True
    if gold.value.denominator == 1:
        return False
    if gold.decimals is not None and gold.decimals >= 2:
        # Half a unit in the last place, either way: both conventions of rounding a tie are accepted.
        return abs(gold.value - value) * 2 * Fraction(10) ** gold.decimals <= 1
    return abs(gold.value - value) * 10**6 <= abs(gold.value)


def _read(match: re.Match[str]) -> Number | None:
    part = match.groupdict()
    if match.end() - match.start() > _MAX_DIGITS:
        return None
    exponent = int((part["exponent"] or part["power"] or "0").replace("\u2212", "-"))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    decimals: int | None = None
    if part["decimal"] is not None:
        plain = re.sub(r"[^0-9.]", "", part["decimal"])
        decimals = max(0, len(plain.partition(".")[2]) - exponent)
        value = Fraction(plain) * Fraction(10) ** exponent
    elif part["repeating"] is not None:
        value = _repeating(part["fixed"] or "", part["repeating"])
    else:
        top, bottom = _fraction(part)
        if bottom == 0:
            return None
        value = Fraction(top, bottom) + int(part["whole"] or part["mixed"] or 0)
    signs = sum(_is_minus(part[name]) for name in ("sign", "inner", "top_sign"))
    value += _PARTS.get(part["part"] or "", 0)
    value *= prod(_SCALES[word] for word in (part["scale"] or "").split()) * (-1) ** signs
    rounded = not part["scale"] and not part["part"]
    return Number(value, decimals if rounded else None, part["percent"] is not None)


def _repeating(fixed: str, digits: str) -> Fraction:
    """Give the value of a decimal: the part up to its repeating digits (`0.1`), and these (`6`)."""
    places = len(fixed.partition(".")[2])
    return Fraction(fixed + "0") + Fraction(int(digits), 10**places * (10 ** len(digits) - 1))


def _fraction(part: dict[str, str | None]) -> tuple[int, int]:
    for name in ("", "_digit"):
        if part[f"top{name}"] is not None:
            return int(part[f"top{name}"] or 0), int(part[f"bottom{name}"] or 0)
    kind = "mixed" if part["mixed_top"] is not None else "slash"
    return int(part[f"{kind}_top"] or 0), int(part[f"{kind}_bottom"] or 0)


def _is_minus(sign: str | None) -> bool:
    return (sign or "").strip().lower() in ("-", "\u2212", "\u2013", "minus", "negative")
