"""Multiple choice: which option a response picks.

In: a response, the gold answer and the options. Out: a `Verdict`. An option is named by its letter (A is the first),
its number (1 is the first; not where an option's text is itself a number) or its text; the gold answer likewise, by
text before label. Options of the same text are one option, the first of them.

Where to look: in what the response states as its answer (`final_answers`; where it calls that final, nowhere else:
`Final Answer: none of these` picks nothing); else in its first line, if that
begins with a label and no other line does (a list of options); else in its last sentence that names an option. There:

- it is one option's text, or begins with a label or an option's text: that one (`C`, `(3) kitchen`, `**C**.`,
  `option C, because ...`), with those joined to it by `or`, `and`, `/`;
- else what is named and not negated: labels, or, where there are none, texts. Negated are `not B`, `B is wrong`,
  `B) kitchen is wrong`, `B: wrong`, `rather than B`, `anything but B`, `neither A nor B`; a denial ends where something
  is inferred from it (`not sure, so B`, `it cannot be both so B`). A text inside a longer option's text does not count
  (`box` in `wooden box`), nor does a number that is reckoned with (`12` in `12 + 3 = 15`).
- More than one is no answer: `A or B` is not half right.

A capital A before a lower-case word is an article, I a pronoun; small letters are labels only alone or bracketed; a
number that a text begins with counts what follows (`3 women are outside`), unless that is its option's text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from fam_engine.measure.answers.exact import normalise
from fam_engine.measure.answers.final_answers import MAX_LENGTH, stated_answer
from fam_engine.measure.answers.verdict import Verdict

_MOST_OPTIONS = 26
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_WRAPPING = r"[\s*_\"'“`$\\]*+"
_LEADING = re.compile(
    rf"""{_WRAPPING}(?:(?i:the|(?:most\s+)?(?:likely|correct|right|best)|option|choice|answer|letter|number|is|:|\#)\s*+)*+
    {_WRAPPING}(?:\\text\{{)?[(\[{{]?{_WRAPPING}(?P<label>[A-Z]|\d{{1,2}}|[a-z](?=\s*[)\]}}:.]|{_WRAPPING}$))
    (?![\w'\u2019%]|[.,]\d|-\w)""",
    re.VERBOSE,
)
_LABEL = re.compile(
    r"""[(\[{][*_\s]*(?P<bracketed>[A-Za-z]|\d{1,2})[*_\s]*[)\]}]
    | \b(?i:option|choice|answer)s?\s+[*_"']*(?P<named>[A-Z]|\d{1,2})(?![\w'\u2019-])
    | (?<![\w'\u2019(-])(?P<bare>[A-HJ-Z])(?![\w'\u2019-])""",
    re.VERBOSE,
)
_ARTICLE = re.compile(
    r"A\s+(?!(?:is|was|or|and|nor|because|since|would|but|as|seems|makes|fits|are)\b)[a-z\"'“]"
)
# A number that begins a text is a label where it is called one, or one of these follows.
_CALLED = re.compile(r"(?i)\b(?:option|choice|answer|letter|number|is)\b|[:#(\[{]")
_COUNTS = re.compile(
    r"[ \t]+(?!(?i:is|was|or|and|nor|not|because|since|as|so|due|would|but|seems|makes|fits|which|instead|rather)\b)"
    r"[^\W\d_]"
)
_OPERATOR_BEFORE = re.compile(r"[\d%]\s*[-+*/^\u00d7\u00f7\u2212]\s*$")
_OPERATOR_AFTER = re.compile(r"\s*[-+*/^\u00d7\u00f7\u2212]\s*[\d(]")
# Between a label and its option's text.
_OWN_GAP = re.compile(r"[\W_]*(?:(?:the|an?)\s+)?", re.IGNORECASE)
_JOINED = re.compile(r"""[)\]}*_"'\s]*+(?:/|&|,|\bor\b|\band\b)\s*(?:or\b|and\b)?\s*""")
_NEGATION_BEFORE = re.compile(
    r"""\b(?:not|never|neither|nor|cannot|(?:is|are|was|ca|do|does)n['\u2019]?t|except|excluding|excludes?|unlike
      |eliminat(?:e|es|ed|ing)|rul(?:e|es|ed|ing)\s+out|rather\s+than|instead\s+of|other\s+than|anything\s+but
      |incorrect|wrong)\b
    (?:(?!\b(?:but|therefore|thus|hence|which\s+makes)\b|(?<!not\ )\bso\b(?!\s+(?:much|many|far)\b)|[-=]>)
     [^,.;:\u2192])*$""",
    re.IGNORECASE | re.VERBOSE,
)
_NEGATION_AFTER = re.compile(
    r"""[\s)\]}*"'\u2019]*+(?:(?:,|and|or|nor)\s*+\(?[A-Z0-9]\)?\s*+)*
    (?:(?:is|are|was|were|would\s+be|can|could|does|do|should)\s*
       (?:not\b|n['\u2019]t)|cannot\b|can['\u2019]t
      |(?:is|are|was|were|would\s+be)\s+(?:\w+\s+)?
       (?:incorrect|wrong|false|ruled\s+out|eliminated|excluded|unlikely|irrelevant|impossible)\b
      |:[\s*_]*+(?:incorrect|wrong|false|eliminated|excluded|unlikely|irrelevant|impossible|not
       |no(?=\s*(?:[.,;!]|$)))\b)""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class _Mention:
    """A place that names an option."""

    option: int
    start: int
    end: int
    label: bool


def judge_choice(response: str, answer: str, choices: Sequence[str]) -> Verdict:
    """Judge a response by the option it picks."""
    options = list(choices) or _options_like(answer)
    gold = _gold_option(answer, options)
    if gold is None:
        found = answer.strip()[:60]
        counted = ", which are counted from 1" * found.isdigit()
        return Verdict(None, None, f"the gold answer {found!r} is none of the options{counted}")
    picked = sorted(_picked(response, options))
    if not picked:
        return Verdict(False, None, "no option found")
    if len(picked) > 1:
        names = ", ".join(_letter(option) for option in picked)
        return Verdict(False, None, f"more than one option: {names}")
    text = ": ".join(part for part in (_letter(picked[0]), options[picked[0]]) if part)
    right = picked[0] == gold
    return Verdict(right, text, "the gold option" if right else "another option")


def _options_like(answer: str) -> list[str]:
    """Give options without texts where only the gold answer is known."""
    label = answer.strip().strip("().")
    return [""] * _MOST_OPTIONS if re.fullmatch(r"[A-Za-z]|[1-9]", label) else [answer]


def _letter(option: int) -> str:
    return string.ascii_uppercase[option] if option < _MOST_OPTIONS else str(option + 1)


def _gold_option(answer: str, options: Sequence[str]) -> int | None:
    wanted = normalise(answer)
    named = _first_of_text(wanted, options)
    if named is not None:
        return named
    label = re.fullmatch(r"(?:option\s+)?\(?([a-z]|\d{1,2})[).:]?", wanted)
    return _of_label(label[1], options) if label else None


def _of_label(label: str, options: Sequence[str]) -> int | None:
    """Find the option of a label: the first of those with the same text."""
    place = int(label) - 1 if label.isdigit() else string.ascii_uppercase.index(label.upper())
    if not 0 <= place < len(options):
        return None
    first = _first_of_text(normalise(options[place]), options)
    return place if first is None else first


def _first_of_text(wanted: str, options: Sequence[str]) -> int | None:
    same = (i for i, option in enumerate(options) if option and normalise(option) == wanted)
    return next(same, None)


def _picked(response: str, options: Sequence[str]) -> set[int]:
    """Find the options a response picks; more than one where it does not settle."""
    statement = stated_answer(response)
    if statement is not None:
        picked = _in_passage(statement.text, options)
        if picked or statement.final:
            return picked
    lines = [line[:MAX_LENGTH] for line in response.strip().split("\n")]
    begin = [line for line in lines if _leading(line, options) is not None]
    if begin and begin[0] is lines[0] and len(begin) == 1:
        return _in_passage(lines[0], options)
    for sentence in reversed(_sentences(response, options)):
        picked = _in_passage(sentence[:MAX_LENGTH], options)
        if picked:
            return picked
    return set()


def _sentences(text: str, options: Sequence[str]) -> list[str]:
    """Split a text into sentences; a label and the text of its option (`5. boss is wrong`) stay together."""
    sentences: list[str] = []
    for sentence in _SENTENCES.split(text):
        label = _leading(sentences[-1], options) if sentences else None
        if label is not None and not re.search(r"\w", sentences[-1][label.end :]):
            start = _leading_text(sentence, _mentions(sentence[:MAX_LENGTH], options))
            if start is not None and start.option == label.option:
                sentences[-1] += f" {sentence}"
                continue
        sentences.append(sentence)
    return sentences


def _in_passage(passage: str, options: Sequence[str]) -> set[int]:
    text = passage.strip()
    whole = _first_of_text(normalise(text), options)
    if whole is not None:
        return {whole}
    mentions = _mentions(text, options)
    first = _leading(text, options) or _leading_text(text, mentions)
    standing = [mention for mention in mentions if not _negated(text, mention, mentions)]
    if first is not None and not _negated(text, first, mentions):
        return {first.option} | _joined(text, first, standing, options)
    labels = {mention.option for mention in standing if mention.label}
    return labels or {mention.option for mention in standing}


def _leading(text: str, options: Sequence[str]) -> _Mention | None:
    """Find the label a text begins with."""
    match = _LEADING.match(text)
    if match is None or not _may_be_label(match["label"], options):
        return None
    if match["label"] == "A" and _ARTICLE.match(text, match.start("label")):
        return None
    option = _of_label(match["label"], options)
    if option is None:
        return None
    if match["label"].isdigit() and not _CALLED.search(match[0]):
        own = re.match(rf"{_OWN_GAP.pattern}{_words(options[option])}", text[match.end() :], re.I)
        if _COUNTS.match(text, match.end()) and not (options[option] and own):
            return None
    return _Mention(option, match.start("label"), match.end(), True)


def _leading_text(text: str, mentions: Sequence[_Mention]) -> _Mention | None:
    for mention in mentions:
        before = re.fullmatch(
            r"[\W_]*(?:(?:the|an?|in|at|to|on)\s+)?[\W_]*", text[: mention.start], re.I
        )
        if not mention.label and before:
            return mention
    return None


def _may_be_label(label: str, options: Sequence[str]) -> bool:
    """Numbers name options only where no option is a number."""
    return not (label.isdigit() and any(re.fullmatch(r"\W*\d[\d.,]*\W*", o) for o in options))


def _joined(
    text: str, first: _Mention, mentions: Sequence[_Mention], options: Sequence[str]
) -> set[int]:
    """Find what is joined to the first mention by `or`, `and`, a comma or a slash, and to that in turn."""
    # After a number, bare numbers go on the list: `1, 2 and 3`.
    more = re.match(r"(?:(?:[,/&\s]|and\b|or\b)+\d{1,2}(?![\w%.]\d?))+", text[first.end :])
    numbers = re.findall(r"\d+", more[0]) if more and text[first.start].isdigit() else []
    joined = {option for n in numbers if (option := _of_label(n, options)) is not None}
    end = first.end
    for mention in sorted(mentions, key=lambda m: m.start):
        if mention.start < end:
            continue
        gap = text[end : mention.start]
        own_text = mention.option == first.option or (
            not mention.label and mention.option in joined
        )
        if own_text and _OWN_GAP.fullmatch(gap):
            end = mention.end
        elif re.fullmatch(_JOINED.pattern + r"[(\[]?", gap):
            joined.add(mention.option)
            end = mention.end
        else:
            break
    return joined


def _mentions(text: str, options: Sequence[str]) -> list[_Mention]:
    """Find every place that names an option, in order; shorter texts inside longer ones left out."""
    found = []
    for match in _LABEL.finditer(text):
        label = match["bracketed"] or match["named"] or match["bare"]
        option = _of_label(label, options) if _may_be_label(label, options) else None
        article = match["bare"] == "A" and _ARTICLE.match(text, match.start())
        if option is not None and not article:
            found.append(_Mention(option, match.start(), match.end(), True))
    found += _texts_mentioned(text, options, [(m.start, m.end) for m in found])
    return sorted(found, key=lambda mention: mention.start)


def _texts_mentioned(
    text: str, options: Sequence[str], taken: list[tuple[int, int]]
) -> list[_Mention]:
    """Find every place that holds an option's text and is not taken, in no order."""
    found = []
    for index in sorted(range(len(options)), key=lambda i: -len(options[i])):
        words = _words(options[index])
        if not words or _first_of_text(normalise(options[index]), options) != index:
            continue
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE):
            if all(match.end() <= start or match.start() >= end for start, end in taken):
                found.append(_Mention(index, match.start(), match.end(), False))
                taken.append((match.start(), match.end()))
    if not any(re.search(r"\d", options[mention.option]) for mention in found):
        return found
    return _not_reckoned_with(text, found)


def _not_reckoned_with(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    """Leave out the operands of a calculation, and where something follows its last `=`, what stands before that."""
    free = [
        mention
        for mention in mentions
        if not _OPERATOR_BEFORE.search(text[: mention.start])
        and not _OPERATOR_AFTER.match(text, mention.end)
    ]
    result = text.rfind("=")
    return [mention for mention in free if mention.end > result] or free


def _words(option: str) -> str:
    """Give the pattern of an option's text."""
    return re.escape(option.strip()).replace("\\ ", r"\s+")


def _negated(text: str, mention: _Mention, mentions: Sequence[_Mention]) -> bool:
    """Whether an option is denied where it is mentioned: before its label, or after it and its text."""
    if _NEGATION_BEFORE.search(text[: mention.start]):
        return True
    end = mention.end
    for other in mentions:
        if other.option == mention.option and other.start >= end:
            if not _OWN_GAP.fullmatch(text, end, other.start):
                break
            end = other.end
    return _NEGATION_AFTER.match(text, end) is not None
