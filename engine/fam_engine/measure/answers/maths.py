r"""Answers of mathematics: numbers exactly, the rest as text or by math-verify.

In: a response and the gold answer. Out: a `Verdict`. The gold answer may be the bare answer or a worked solution that
states it (`#### 10`, `\boxed{10}`). What the response answers is what it states last (`final_answers`); where it
states nothing: all of it if it is one short line, else its last number, and for a gold answer that is no number its
last formula.

A statement is read as the number it is; in prose as the number after its last `=` or `≈`, else the one it begins with,
else the last one of its first sentence, asides in parentheses left out. A short line that states nothing is read so
too, but as its last number: what it begins with is where its reasoning starts (`12 apples, so 3 are left`), while a
statement begins with the answer (`12 apples, of which 3 are red`). Where that is no single number, or not the whole of
what is meant (`8 or 9`, `8 pi`), it is none (`prose`).

Mathematics is read as TeX, however it is typed (`tex`). Numbers are compared exactly (`numerals`). Two texts that TeX
would set alike are equal, two numbers in different bases are not. Only what is left goes to math-verify, in a child
process (`symbolic`).
"""

from __future__ import annotations

import re

from fam_engine.measure.answers import symbolic
from fam_engine.measure.answers.final_answers import MAX_LENGTH, Statement, stated_answer
from fam_engine.measure.answers.numerals import Number, equal_numbers, find_numbers, parse_number
from fam_engine.measure.answers.prose import number_meant
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
    more = re.match(
        r"(?!\^\{?\\circ)[^\s$.,]*\^[^\s$.,]*|\s*\\(?:pi|sqrt|frac)[^\s$.,]*", text[end:]
    )
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
    number, meant = number_meant(sentence, numbers, takes_last=takes_last)
    return number, Statement(meant, False, statement.final)


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
