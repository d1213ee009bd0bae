r"""Answers of mathematics: numbers exactly, the rest as text or by math-verify.

In: a response and the gold answer. Out: a `Verdict`. The gold answer may be the bare answer or a worked solution that
states it (`#### 10`, `\boxed{10}`). What the response answers is what it states last (`final_answers`); where it
states nothing: all of it if it is one short line, else its last number, and for a gold answer that is no number its
last formula.

A statement is read as the number it is; in prose as the number after its last `=` or `≈`, else the one it begins with,
else the last one of its first sentence, asides in parentheses left out. A short line that states nothing is read so
too, but as its last number: what it begins with is where its reasoning starts (`12 apples, so 3 are left`), while a
statement begins with the answer (`12 apples, of which 3 are red`). No single number are `8 or 9`, `8 and 9`, `8 to 9`,
`8, 9`, `8 9`, `10:30` and `8 hours and 9 minutes`; nor is one that is denied or a bound (`not 8`, `more than 8`), or
that ends or begins a formula (`8 pi`, `8^2`). In doubt it is none.

Mathematics is read as TeX, however it is typed (`tex`). Numbers are compared exactly (`numerals`). Two texts that TeX
would set alike are equal, two numbers in different bases are not. Only what is left goes to math-verify, in a child
process (`symbolic`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fam_engine.measure.answers import symbolic
from fam_engine.measure.answers.final_answers import MAX_LENGTH, Statement, stated_answer
from fam_engine.measure.answers.numerals import Number, equal_numbers, find_numbers, parse_number
from fam_engine.measure.answers.tex import to_tex
from fam_engine.measure.answers.verdict import Verdict

# No alternative reads past what opens it again, nor starts at an escape (`\$`, the `\\[2ex]` after a row): a text of
# nothing but opening delimiters would take the square of its length.
_FORMULA = re.compile(
    r"""(?<!\\)(?:
        \$\$((?:\\.|[^$\\])+)\$\$
      | \$((?:\\.|[^$\n\\])+)\$
      | \\\[((?:\\[^\[\]]|[^\\])+)\\\]
      | \\\(((?:\\[^()]|[^\\])+)\\\)
    )""",
    re.DOTALL | re.VERBOSE,
)
# Between two dollar signs that are prices there is prose.
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s+[A-Za-z]{2,}")
# A response of one line and no more characters is all answer.
_SHORT = 60
_CALCULATOR = re.compile(r"<<[^<>]*>>")
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
_ASIDE = re.compile(r"\((?=[^()]*[A-Za-z]{2})[^()]*\)")
_SENTENCE_END = re.compile(r"(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s|$)|[!?](?=\s|$)|;")
_EQUALS = re.compile(r"=>?|\u2248|\\approx\b|\\doteq\b")
# What keeps a text in TeX from being one number: `5\text{ hours }35`, `5, 7`.
_SEVERAL = re.compile(
    r"\d[^\d{}]*\\(?:text|mbox|textrm|mathrm)\s*\{[^{}]*\}\s*\d|^[^(]*(?<!\\),[^(]*$"
)
_TEX_ALIKE = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt(\d)", r"\\sqrt{\1}"),
        (r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°", ""),
        (r"\\[,!;: ]|~|\\quad|\\(?=[$%])|[$]", ""),
        (r"\\[\[\]()]", ""),
        (r"\\(le|ge|ne)q(?![A-Za-z])", r"\\\1"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"\s+", ""),
    )
]
# `2516_8`: a number written in base eight.
_BASE = re.compile(r"(?<![\dA-Z])[\dA-F]+_\{?(\d+)\}?$")
# The comma of thousands; one with white space after it separates the members of a list.
_THOUSANDS = re.compile(r"(?<=\d)\{?,\}?(?:\\! ?)?(?=\d{3}(?!\d))")

# A number, where it starts and where it ends.
_Place = tuple[Number, int, int]


def judge_math(response: str, answer: str) -> Verdict:
    """Judge a response by its final number or formula.

    Raises:
        UsageError: Only math-verify can decide, and it is not installed.
    """
    gold_text, gold = _gold(to_tex(answer))
    response = to_tex(response)
    stated = stated_answer(response)
    statement = stated or _unstated(response, formula=gold is None)
    if statement is None:
        return Verdict(False, None, "no final answer found")
    number = parse_number(statement.text)
    if statement.boxed and re.search(r"(?<!\\)!", statement.text):
        number = None  # a factorial; in prose it is an exclamation
    if number is None and not statement.boxed:
        number, statement = _number_in_prose(
            statement, gold_is_number=gold is not None, takes_last=stated is None
        )
    text = statement.text
    if gold is not None and number is not None:
        return _verdict(equal_numbers(gold, number), text, "as numbers")
    if _alike(gold_text, text) or _alike(gold_text, _right_side(text)):
        return _verdict(True, text, "as text")
    if _other_base(gold_text, text):
        return Verdict(False, text, "a number in another base")
    if gold is not None and not _may_be_a_number(text):
        return Verdict(False, text, "the final answer is not a number")
    equal = symbolic.equal(gold_text, text)
    if equal is None:
        return Verdict(False, text, "could not be compared within the limits of time and memory")
    return _verdict(equal, text, "by math-verify")


def _verdict(equal: bool, text: str, how: str) -> Verdict:
    shown = text.strip("*_`\"'“” ").rstrip('.!,;"”')
    return Verdict(equal, shown, f"{'equal' if equal else 'not equal'} {how}")


def looks_like_math(answer: str) -> bool:
    """Whether a gold answer is a number or a formula, or a solution that states one."""
    text, number = _gold(answer)
    if text != answer.strip() or number is not None:
        return True
    if re.search(r"\\[a-zA-Z]{2,}|\$[^$]+\$", text):
        return True
    return _is_formula(re.sub(r"\\[a-z]+", " ", to_tex(text)))


def _is_formula(text: str) -> bool:
    """Whether a text is digits, signs and single letters (`4t`, `-4, 4`, `p - q`); `3qr + 6q - 15r` has them, too."""
    alone = set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", text))
    if not all(set(word) <= alone for word in re.findall(r"(?<=\d)[a-z]{2,}", text)):
        return False
    text = re.sub(r"(?<=\d)[a-z]{2,}", " ", text)
    if re.search(r"[^\W\d_]{2}|[^\x00-\x7f]|[\"'?@#&]", text):
        return False
    return bool(re.search(r"\d", text)) or bool(re.fullmatch(r"[a-z](?:\s*[-+]\s*[a-z])+", text))


def _gold(answer: str) -> tuple[str, Number | None]:
    """Read a gold answer: its text, and the number it is."""
    statement = stated_answer(answer)
    if statement is None:
        return answer.strip(), parse_number(answer)
    number = parse_number(statement.text)
    if number is None and not statement.boxed:
        number, statement = _number_in_prose(statement, gold_is_number=True)
    return statement.text, number


def _unstated(response: str, *, formula: bool) -> Statement | None:
    """Fall back to all of a short response, the last formula, or the last number."""
    text = _CALCULATOR.sub("", response).strip()
    if len(text) <= _SHORT and "\n" not in text:
        return Statement(text, False, False) if text else None
    formulas = _formulas(text) if formula else []
    if formulas:
        return Statement(formulas[-1][0][-MAX_LENGTH:], True, False)
    numbers = find_numbers(text)
    if not numbers:
        return None
    _, start, end = numbers[-1]
    # A last number that is a factor, a base or under a root is not the whole of what stands there.
    if text[:start].endswith("\\sqrt{"):
        start, end = start - len("\\sqrt{"), end + text[end:].startswith("}")
    more = re.match(r"[^\s$.,]*\^[^\s$.,]*|\s*\\(?:pi|sqrt|frac)[^\s$.,]*", text[end:])
    return Statement(text[start : end + (more.end() if more else 0)].strip(), True, False)


def _number_in_prose(
    statement: Statement, *, gold_is_number: bool, takes_last: bool = False
) -> tuple[Number | None, Statement]:
    """Find the number a sentence means, or give the formula it holds instead."""
    text = _CALCULATOR.sub("", statement.text)
    for formula, start, end in _formulas(text)[-1:]:
        means_it = not gold_is_number or re.search(r"[\d=]", formula) is not None
        if means_it and not re.search(r"\d", text[end:]) and re.search(r"[A-Za-z=\\]", formula):
            number = parse_number(formula) or parse_number(_right_side(formula))
            return number, Statement(formula, True, statement.final)
        if parse_number(formula) is None:
            text = f"{text[:start]} {text[end:]}"
    if not gold_is_number:
        return None, statement
    text = _right_side(_ASIDE.sub(" ", text))
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    if takes_last or not find_numbers(sentence):
        sentence = text
    numbers = find_numbers(sentence)
    if not numbers:
        return None, statement
    number, meant = _number_meant(sentence, numbers, takes_last=takes_last)
    return number, Statement(meant, False, statement.final)


def _number_meant(
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


def _formulas(text: str) -> list[tuple[str, int, int]]:
    """Find formulas between TeX's delimiters: content, start, end."""
    found = []
    for match in _FORMULA.finditer(text):
        content = next(group for group in match.groups() if group is not None)
        price = re.match(r"\d", content) and content[-1].isspace()  # `$280 + $300`
        if content.strip() and not price and not _PROSE.search(content):
            found.append((content.strip(), match.start(), match.end()))
    return found


def _right_side(text: str) -> str:
    """Give what stands after the last equals sign, or all of it."""
    side = _EQUALS.split(text)[-1].strip()
    return side or text


def _alike(one: str, other: str) -> bool:
    """Whether TeX sets two texts alike, as they are or both without the commas of thousands."""
    if _spelling(one) == _spelling(other):
        return True
    return _spelling(_THOUSANDS.sub("", one)) == _spelling(_THOUSANDS.sub("", other))


def _other_base(one: str, other: str) -> bool:
    """Whether two numbers name different bases, which math-verify leaves out."""
    bases = [_BASE.search(_spelling(text)) for text in (one, other)]
    return None not in bases and len({base[1] for base in bases if base}) == 2


def _spelling(text: str) -> str:
    r"""Bring texts that TeX sets alike to one spelling."""
    text = text.strip().rstrip(".,;").strip("*`\"'")
    for pattern, replacement in _TEX_ALIKE:
        text = pattern.sub(replacement, text)
    return text


def _may_be_a_number(text: str) -> bool:
    r"""Whether a text that is no plain number could still be worth one, like `2\\sqrt{4}` or `3 x 4`.

    A letter that is an unknown says it is not; e, i and pi are numbers.
    """
    if not re.search(r"\d|\\pi|\\frac|\\sqrt", text) or _SEVERAL.search(_THOUSANDS.sub("", text)):
        return False
    rest = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?|(?<=\d)\s*x\s*(?=\d)|\bpi\b", " ", text)
    return re.search(r"[a-df-hj-zA-Z]", rest) is None
