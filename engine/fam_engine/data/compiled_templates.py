"""Chat templates as data: what a template makes of every conversation of one shape.

A *shape* is the roles of a conversation, whether a generation prompt is asked for, and what it tells the template. In:
nothing. Out: `CompiledTemplate`, literal texts and contents in a row, and what a conversation's contents must not be
for that to be its rendering. `template_tracing` makes them; the Rust records path reads them; `fits` and `render` here
are the plain reference it is compared with. Deciding by a template's name or source was rejected: users bring their
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

# What `trim` and `str.strip()` take away: the characters of `str.isspace`. Unlike Unicode's White_Space (and Rust's
# `char::is_whitespace`) that includes the four separators U+001C to U+001F.
WHITE_SPACE: Final = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

Test = Literal["contains", "startswith", "endswith", "equals"]


@dataclass(frozen=True)
class Shape:
    """What is the same in all conversations a compiled template serves.

    Attributes:
        roles: The turns' roles, in order.
        add_generation_prompt: Whether the rendering ends in the opening of an assistant's turn.
        kwargs: What the template is told of each of them by name, as JSON.
    """

    roles: tuple[str, ...]
    add_generation_prompt: bool
    kwargs: str = "{}"


@dataclass(frozen=True)
class Content:
    """A place in a rendering where a turn's content stands.

    Attributes:
        turn: Index of the turn, from 0.
        trimmed: Whether white space (`WHITE_SPACE`) at both ends is left out.
    """

    turn: int
    trimmed: bool

    def of(self, contents: Sequence[str]) -> str:
        """Give the text that stands here."""
        text = contents[self.turn]
        return text.strip(WHITE_SPACE) if self.trimmed else text


@dataclass(frozen=True)
class Guard:
    """A test that must be false of a content.

    Attributes:
        content: What is tested, trimmed or not.
        test: How.
        text: What the content must not contain, start with, end with or equal. Equal to "" is how
            a content must not be empty; the other tests never have an empty text.
    """

    content: Content
    test: Test
    text: str

    def holds(self, contents: Sequence[str]) -> bool:
        """Whether the test is false, as it must be."""
        found = self.content.of(contents)
        if self.test == "contains":
            return self.text not in found
        if self.test == "startswith":
            return not found.startswith(self.text)
        if self.test == "endswith":
            return not found.endswith(self.text)
        return found != self.text


@dataclass(frozen=True)
class CompiledTemplate:
    """A template's rendering of one shape.

    Attributes:
        shape: The conversations it is for.
        pieces: Literal texts and contents; joined they are the rendering. No literal is empty and
            no two are neighbours.
        guards: What all must hold of the contents.
    """

    shape: Shape
    pieces: tuple[str | Content, ...]
    guards: tuple[Guard, ...]

    def fits(self, contents: Sequence[str]) -> bool:
        """Whether `render` gives what the template gives: one content a turn, in order."""
        return all(guard.holds(contents) for guard in self.guards)

    def render(self, contents: Sequence[str]) -> str:
        """Give the rendering of contents that fit."""
        return "".join(
            piece if isinstance(piece, str) else piece.of(contents) for piece in self.pieces
        )

    @cached_property
    def written(self) -> frozenset[int]:
        """The turns whose contents stand in the rendering."""
        return frozenset(piece.turn for piece in self.pieces if isinstance(piece, Content))


def keeps_response(context: CompiledTemplate, whole: CompiledTemplate) -> bool:
    """Whether a response stands verbatim after its context, whatever both are.

    Args:
        context: The turns before the response, with a generation prompt.
        whole: The same turns and the response, without one.

    Returns:
        False also where it depends on the contents: then only the texts tell.
    """
    response = Content(len(context.shape.roles), trimmed=False)
    if not context.pieces:
        return response in whole.pieces
    *before, last = context.pieces
    rest = whole.pieces[len(before) :]
    if whole.pieces[: len(before)] != tuple(before) or not rest:
        return False
    goes_on = rest[0] == last
    if isinstance(last, str) and isinstance(rest[0], str):
        goes_on = rest[0].startswith(last)
    return goes_on and response in rest[1:]
