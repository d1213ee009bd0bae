r"""Responses that are code.

In: a response and its tests. Out: a `Verdict`. What counts as the program:

1. The fenced blocks (three backticks or tildes) in Python or in no named language that define a function or class,
   joined in order: helpers and corrections come together, examples of use stay out. Without such a one, what the last
   fenced block yields by rule 2. A fence that is never closed reaches to the end: the response was cut there.
2. Without fences, everything, if that is Python; else what stands after the last `Final Answer:` or `Answer:`, what
   begins at the first line that looks like code, or at the first definition, whichever first defines something. Prose
   after the code is cut off at the line that Python's parser stumbles over.

Names of `typing` need no import, for tasks show signatures with them.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence

from fam_engine.measure.answers.unit_tests import run_tests
from fam_engine.measure.answers.verdict import Verdict

# No answer to an exercise is longer, and Python's parser stays quick.
_MAX_CHARACTERS = 100_000
_LANGUAGES = frozenset(["", "python", "python3", "py", "py3"])
_FENCE = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)")
_MARKER = re.compile(r"(?i)\b(?:final[ _-]?)?answer[*_) ]*:[*_ \t]*\n?")
_DEFINITION = re.compile(r"(?:def|class|async def)\s+\w+|@\w+")
_CODE_LINE = re.compile(
    rf"{_DEFINITION.pattern}|import\s+\w|from\s+[\w.]+\s+import\s|[A-Za-z_]\w*\s*=\s*\S"
)
_CUTS = 20


def judge_code(response: str, tests: Sequence[str]) -> Verdict:
    """Judge a response by running tests against its program."""
    if not tests:
        return Verdict(None, None, "no tests")
    program = extract_program(response)
    if program is None:
        return Verdict(False, None, "no code found")
    run = run_tests(program, tests)
    return Verdict(run.passed, program, "; ".join((run.reason, *_missing(run.guards))))


def _missing(guards: Sequence[str]) -> list[str]:
    """Say what did not hold the code, where the kernel does not help: see `unit_tests`."""
    if not guards:
        return []  # the run was ended before it could tell
    missing = ["file access not confined"] if "landlock" not in guards else []
    return missing if "seccomp" in guards else [*missing, "held by an audit hook only"]


def extract_program(response: str) -> str | None:
    """Find the program in a response; None for one without any text, or of absurd length."""
    if len(response) > _MAX_CHARACTERS or not response.strip():
        return None
    response = response.replace("\r\n", "\n").expandtabs(4)
    blocks = [textwrap.dedent(b) for language, b in _fenced(response) if language in _LANGUAGES]
    defining = [block for block in blocks if _defines(block)]
    if defining:
        return "\n".join(defining)
    return _unfenced(blocks[-1] if blocks else response)


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """Find fenced blocks: language (lower case) and content."""
    fence, language = "", ""
    lines: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence and match:
            fence, language, lines = match["fence"], match["language"].lower(), []
        elif fence and match and match["fence"].startswith(fence) and not match["language"]:
            yield language, "\n".join(lines) + "\n"
            fence = ""
        elif fence:
            lines.append(line)
    if fence and lines:
        yield language, "\n".join(lines) + "\n"


def _unfenced(text: str) -> str:
    if _defines(text):
        return text
    starts = [match.end() for match in _MARKER.finditer(text)][-1:]
    starts += [place for place in (_first(_CODE_LINE, text), _first(_DEFINITION, text)) if place]
    for start in starts:
        program = _without_prose(text[start:])
        if _defines(program):
            return program
    program = _without_prose(text)
    return program if _defines(program) else text


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    """Find where the first line of a kind begins."""
    place = 0
    for line in text.split("\n"):
        if pattern.match(line):
            return place
        place += len(line) + 1
    return None


def _without_prose(text: str) -> str:
    """Cut a text before the first line that is no Python, again until it parses."""
    for _ in range(_CUTS):
        try:
            ast.parse(text)
            return text
        except SyntaxError as error:
            lines = text.split("\n")
            # An error at the end (an open bracket) may be reported past it.
            text = "\n".join(lines[: min(error.lineno or 1, len(lines)) - 1])
        except (ValueError, MemoryError, RecursionError):
            return text
    return text


def _defines(text: str) -> bool:
    """Whether a text is Python that defines a function or class, or names a lambda, at its top level."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda))
        for node in body
    )
