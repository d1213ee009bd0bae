"""What the model is asked: one plain text a method, with places for what is known of a record.

In: a method, or a user's file in place of its template. Out: a `PromptTemplate`. A template is plain text with
`{{question}}`, `{{response}}` (the given answer), `{{answer}}` (its final answer alone) and `{{attempt}}` (the model's
own first answer). A line that is nothing but `[Words in brackets]` is a heading: where the model writes one of them
itself, it has begun the next example, and its text ends there. So the same file serves a model with a chat template, to
which it is one user's message, and a base model, which goes on with it.

Jinja was rejected: braces are common in what a template says (TeX, code), and there is nothing to compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fam_engine.config import RewriteMethod, nearest
from fam_engine.data.turns import Message
from fam_engine.errors import UsageError

TEMPLATES = Path(__file__).parent / "templates"

# What a template of each method may show, and what it must. Whoever answers directly sees no answer.
_PLACES: dict[RewriteMethod, tuple[str, ...]] = {
    "rewrite": ("question", "response", "answer"),
    "answer": ("question",),
    "explain": ("question", "answer"),
    "minimum-change": ("question", "response", "answer", "attempt"),
}
_REQUIRED: dict[RewriteMethod, tuple[str, ...]] = {
    "rewrite": ("question", "response"),
    "answer": ("question",),
    "explain": ("question", "answer"),
    "minimum-change": ("question", "attempt"),
}
_PLACE = re.compile(r"\{\{([^{}]*)\}\}")
_HEADING = re.compile(r"^\[[^\[\]\n]+\]$", re.MULTILINE)


@dataclass(frozen=True)
class PromptTemplate:
    """A checked template.

    Attributes:
        text: What it says, places unfilled.
        places: Names of the places it has.
        stops: Strings that end the model's text: its headings.
    """

    text: str
    places: frozenset[str]
    stops: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """Put values in the places; ends in one line break. What a value says is never a place."""
        text = _PLACE.sub(lambda match: values[match[1].strip()].strip(), self.text)
        return f"{text.rstrip()}\n"


def load_prompt(method: RewriteMethod, file: Path | None) -> PromptTemplate | None:
    """Read the template of a method.

    Args:
        method: What is asked of the model.
        file: A user's own, in place of ours.

    Returns:
        The template; None for `answer` without a file: the record's own prompt is asked as it is.

    Raises:
        UsageError: The file does not read, names a place its method does not have, or lacks one.
    """
    if file is None:
        if method == "answer":
            return None
        file = TEMPLATES / f"{method}.txt"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read as a prompt: {error}", code="E_PROMPT_FILE", where=str(file)
        ) from None
    return _checked(text, method, file)


def _checked(text: str, method: RewriteMethod, file: Path) -> PromptTemplate:
    known = _PLACES[method]
    names = set()
    for match in _PLACE.finditer(text):
        name = match[1].strip()
        if name not in known:
            raise _problem(
                f"names the place `{name}`, method {method} has {', '.join(known)}"
                f"{nearest(name, known)}",
                file,
                text,
                match.start(),
            )
        names.add(name)
    opened = _PLACE.sub(lambda match: "-" * len(match[0]), text).find("{{")
    if opened >= 0:
        raise _problem("has `{{` without `}}`, expected {{name}}", file, text, opened)
    for name in _REQUIRED[method]:
        if name not in names:
            raise UsageError(
                f"has no place {{{{{name}}}}}, which method {method} needs",
                code="E_PROMPT_PLACE",
                where=str(file),
                hint=f"start from {TEMPLATES}",
            )
    return PromptTemplate(text, frozenset(names), tuple(dict.fromkeys(_HEADING.findall(text))))


def _problem(message: str, file: Path, text: str, start: int) -> UsageError:
    line = text.count("\n", 0, start) + 1
    return UsageError(message, code="E_PROMPT_PLACE", where=f"{file}:{line}")


def question_text(context: Sequence[Message]) -> str:
    """Give a conversation as one text: a single turn as it is, several with who speaks."""
    if len(context) == 1:
        return context[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in context)
