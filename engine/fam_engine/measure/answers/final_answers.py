r"""The final answer a response states.

In: a response. Out: the text of its final answer, and how it was stated. The rules, strongest first; within a rule
the *last* place counts, for a solution may name intermediate answers on its way:

1. `\boxed{...}` (or `\fbox`; braces may nest), `#### x`, `Final Answer: x` (any case; the value may stand on the next
   line that has text).
2. `the final answer is x`.
3. `the answer is x`, `Answer: x`, `the correct option is x`, `the best choice for this would be x`.

A line that only opens a display (`\[`, `$$`, `\begin{align*}`) is no line with text: the value stands below it.
A statement with nothing after it counts as none. `#### Step 2` and `#### 2. Sum up` are headings, not answers. Of a
prose statement only its line is taken, and where that line states an answer again (`Final Answer: the answer is 5`)
only what follows. A response that a stop string should have ended, and that goes on with another question, is judged
by its last answer: cutting it is the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Longer statements are no final answers; the bound keeps every later rule quick.
MAX_LENGTH = 1000

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES = re.compile(r"(?<![#\w])####(?!#)[ \t]*(?P<value>[^\n]*)")
_HEADING = re.compile(r"(?i)\d+\s*[.):]\s+[^\W\d]|(?:step|part|case)\b")
# `(Final Answer):`, `**Final Answer:**`, `FINAL_ANSWER =`, or a heading with the answer below.
_FINAL = re.compile(r"""(?ix) \bfinal[ _-]{1,2}answer[*_)"' ]*+ (?:[:=\uff1a]|(?=\n)) [*_ ]*+""")
_FINAL_IS = re.compile(
    r"""(?ix) \bfinal\ answer[*_)"' ]*+ (?:\bis\b|\b(?:would|should|must)\ be\b)(?!\s+not\b) [*_ ]*+ :? [*_ ]*+"""
)
_ANSWER = re.compile(
    r"""(?ix)
    (?:\banswer(?:\s+(?:here|to\s+(?:this|the)\s+(?:question|problem)))?
      |\b(?:correct|right|best|closest|likely)\s+(?:answer|option|choice|one)\b[^.,:;\n]{0,80}?)
    [*_)"' ]*+
    (?:[:=\uff1a]|\b(?:is|would\s+be|should\s+be|must\s+be|is\s+therefore)\b(?!\s+not\b)\s*:?)
    [*_ ]*+
    """
)
# White space, and lines with nothing but what opens a formula.
_NO_TEXT = re.compile(
    r"\s*(?:(?:\$\$?|\\[\[(]|\\begin\{[A-Za-z]+\*?\}(?:\{[^{}\n]*\})?)[ \t]*\n\s*)*"
)


@dataclass(frozen=True)
class Statement:
    """A final answer as stated.

    Args:
        text: What was stated, without the marker.
        boxed: Whether it stood in a box, so that all of it is the answer.
        final: Whether it was called final (rules 1 and 2).
    """

    text: str
    boxed: bool
    final: bool


def stated_answer(response: str) -> Statement | None:
    """Find the last statement of the strongest rule that applies; None if nothing is stated."""
    strongest = [*_boxes(response), *_hashes(response), *_lines(_FINAL, response)]
    if strongest:
        _, text, boxed = max(strongest, key=lambda place: place[0])
        return Statement(text, True, True) if boxed else _innermost(text, final=True)
    for marker in (_FINAL_IS, _ANSWER):
        lines = list(_lines(marker, response))
        if lines:
            return _innermost(lines[-1][1], final=marker is _FINAL_IS)
    return None


def _innermost(line: str, *, final: bool) -> Statement:
    """Give what the line states where it states an answer in turn."""
    boxes = list(_boxes(line))
    if boxes:
        return Statement(boxes[-1][1], True, final)
    for marker in (_FINAL, _FINAL_IS, _ANSWER):
        inner = list(_lines(marker, line))
        if inner:
            line = inner[-1][1]
    return Statement(line, False, final)


def _hashes(text: str) -> Iterator[tuple[int, str, bool]]:
    for match in _HASHES.finditer(text):
        value = match["value"].strip()
        if value and not _HEADING.match(value) and not _FINAL.match(value):
            yield match.start(), value[:MAX_LENGTH], False


def _lines(marker: re.Pattern[str], text: str) -> Iterator[tuple[int, str, bool]]:
    """Find the first line with text after each marker: its place, its text, and that it is no box."""
    for match in marker.finditer(text):
        opened = _NO_TEXT.match(text, match.end())
        assert opened is not None
        start = opened.end()
        line = text[start : start + MAX_LENGTH].split("\n", 1)[0].strip()
        if line.strip("*_$\"'`.# "):
            yield match.start(), line, False


def _boxes(text: str) -> Iterator[tuple[int, str, bool]]:
    """Find the content of each box with balanced braces, or the word after a box without any."""
    matches = list(_BOX.finditer(text))
    if not matches:
        return
    ends = _brace_ends(text)
    for match in matches:
        start = match.end()
        if start in ends:
            content = text[start + 1 : ends[start]].strip()
        else:
            bare = re.match(r"[-\w.,/%]+", text[start : start + MAX_LENGTH])
            content = bare[0] if bare else ""
        if content and len(content) <= MAX_LENGTH:
            yield match.start(), content, True


def _brace_ends(text: str) -> dict[int, int]:
    r"""Pair every opening brace with its closing one, in one pass; `\{` and `\}` are no braces of TeX's."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.start()
    return ends
