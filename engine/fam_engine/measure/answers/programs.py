r"""Responses that are code.

In: a response and its tests. Out: a `Verdict`. What counts as the program:

1. The fenced blocks (three backticks or tildes) in Python or in no named language that define a function or class, and
   those of nothing but imports and constants, joined in order: helpers and corrections come together, examples of use
   stay out. Without one that defines, what the last fenced block yields by rule 2. A fence that is never closed
   reaches to the end: the response was cut there.
2. Without fences, everything, if that is Python; else what stands after the last `Final Answer:` or `Answer:`, what
   begins at the first line that looks like code, or at the first definition, whichever first defines something. Prose
   after the code is cut off at the line that Python's parser stumbles over.

A line that is one name, bare or in brackets (`[BEGIN]`, `[DONE]`, `Solution`), is prose that happens to parse; it is
left out.

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
# What a constant may call: `float("inf")`, but not `int(input())` or the function that was asked for.
_MAKERS = frozenset(["dict", "float", "frozenset", "int", "list", "range", "set", "str", "tuple"])


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
    response = re.sub("\r\n?", "\n", response).expandtabs(4)
    blocks = [textwrap.dedent(b) for language, b in _fenced(response) if language in _LANGUAGES]
    defining = [block for block in blocks if _defines(block)]
    if defining:
        defined = _bound("\n".join(defining))
        kept = [block for block in blocks if block in defining or _provides(block, defined)]
        return _without_lone_names("\n".join(kept))
    return _without_lone_names(_unfenced(blocks[-1] if blocks else response))


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


def _without_lone_names(program: str) -> str:
    """Leave out the lines of a program that are one name, which does nothing but fail where nothing bears it."""
    if not _defines(program):
        return program
    lines = program.split("\n")
    lone = {
        node.lineno - 1
        for node in _statements(program)
        if isinstance(node, ast.Expr)
        and re.fullmatch(r"\w+|\[\w+\]", lines[node.lineno - 1].strip())
    }
    return "\n".join(line for number, line in enumerate(lines) if number not in lone)


def _defines(text: str) -> bool:
    """Whether a text is Python that defines a function or class, or names a lambda, at its top level."""
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda))
        for node in _statements(text)
    )


def _provides(block: str, defined: set[str]) -> bool:
    """Whether a block only imports or sets constants, and none that is defined elsewhere (`from solution import f`)."""
    body = _statements(block)
    return bool(body) and not _bound(block) & defined and all(_is_constant(node) for node in body)


def _is_constant(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    return isinstance(node, ast.Assign | ast.AnnAssign) and all(
        isinstance(call.func, ast.Name) and call.func.id in _MAKERS for call in calls
    )


def _bound(text: str) -> set[str]:
    """Find the names that the statements at the top level of a text bind."""
    names: set[str] = set()
    for node in _statements(text):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
            names.update(part.id for part in parts if isinstance(part.ctx, ast.Store))
    return names


def _statements(text: str) -> list[ast.stmt]:
    """Give the statements of a text at its top level; none where it is no Python."""
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
