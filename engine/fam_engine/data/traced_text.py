"""Text whose content nobody may look at: what stands for a turn's content while a template is traced.

In: operations a template does with it. Out: the same operations done symbolically (`TracedText` again), or decided by
a guard, or a refusal. Every decision assumes the plain content: not empty, equal to nothing named, containing nothing
named. All guards are therefore negative, and no two contradict each other.

`TracedText` is a `str`, since templates ask for that, but any method it has not been taught refuses, so Python code
that looks at it is noticed. C code that reads its characters is not; `TracingEnvironment` keeps it from such code, and
the characters are a marker no template knows, which gives leaks away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from fam_engine.data.compiled_templates import WHITE_SPACE, Content, Guard, Test

Piece = str | Content


class UntraceableError(Exception):
    """The template did something with a content that depends on more than guards can say."""


class Trace:
    """One run of a template: the guards it took for granted, and why it cannot be used if so."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self.guards: dict[Guard, None] = {}
        self.refusal: str | None = None

    def refuse(self, what: str) -> NoReturn:
        """Give up. Noted too, since code in between may swallow the exception."""
        self.refusal = self.refusal or what
        raise UntraceableError(what)

    def assume_not(self, content: Content, test: Test, text: str) -> bool:
        """Take for granted that a test of a content is false, and give that answer."""
        self.guards[Guard(content, test, text)] = None
        return False

    def join(self, parts: Iterable[str]) -> str:
        """Concatenate: plain text if no part is traced."""
        pieces: list[Piece] = []
        for part in parts:
            pieces.extend(part.pieces if isinstance(part, TracedText) else [self.plain(part)])
        return self.text(pieces)

    def text(self, pieces: Iterable[Piece]) -> str:
        """Make a text of pieces: neighbouring literals joined, plain if nothing else is in it."""
        merged: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, str) and merged and isinstance(merged[-1], str):
                merged[-1] += piece
            elif piece != "":
                merged.append(piece)
        if any(isinstance(piece, Content) for piece in merged):
            return TracedText(self, tuple(merged))
        return "".join(piece for piece in merged if isinstance(piece, str))

    def plain(self, value: str) -> str:
        """Check that a text is no subclass of `str` and holds no copied marker."""
        if type(value) is not str:
            self.refuse(f"a {type(value).__name__} in place of a text")
        if self.marker in value:
            self.refuse("a content copied in a way that was not followed")
        return value


class TracedText(str):
    """A text that holds contents, as the pieces it consists of."""

    trace: Trace
    pieces: tuple[Piece, ...]

    def __new__(cls, trace: Trace, pieces: tuple[Piece, ...]) -> TracedText:
        """Make one; what C code would see of it are markers."""
        seen = (p if isinstance(p, str) else f"{trace.marker}{p.turn}" for p in pieces)
        text = super().__new__(cls, "".join(seen))
        text.trace, text.pieces = trace, pieces
        return text

    def __str__(self) -> str:
        """Give itself: `str(...)` is how Jinja writes values."""
        return self

    def __bool__(self) -> bool:
        """Whether it is not empty; taken for granted where only a content could make it so."""
        if not any(isinstance(piece, str) for piece in self.pieces):
            assert isinstance(self.pieces[0], Content)
            self.trace.assume_not(self.pieces[0], "equals", "")
        return True


def _refusing(name: str) -> Any:  # noqa: ANN401 - stands for methods of any signature
    def refuse(self: TracedText, *_: object, **__: object) -> NoReturn:
        self.trace.refuse(f"`{name}` of a content")

    return refuse


# What makes it an object at all; everything else a string can do, by operator or by name, refuses.
_KEPT = {
    "__bool__",
    "__class__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__getattribute__",
    "__getstate__",
    "__init__",
    "__init_subclass__",
    "__new__",
    "__setattr__",
    "__str__",
    "__subclasshook__",
}
# Operators and protocols `str` does not have, but others would try.
_TRIED = ("__float__", "__html__", "__html_format__", "__index__", "__int__", "__radd__")
for _name in {*dir(str), *_TRIED} - _KEPT:
    setattr(TracedText, _name, _refusing(_name))


class TracedLength:
    """The length of a traced text, which can be compared with nothing but zero."""

    def __init__(self, text: TracedText) -> None:
        self.text = text

    def __bool__(self) -> bool:
        """Whether the text is not empty."""
        return bool(self.text)


class TracedMethod:
    """A method of a traced text that a template may call."""

    def __init__(self, text: TracedText, name: str) -> None:
        self.text = text
        self.name = name

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401 - as the methods of `str`
        """Do what the method would do, symbolically."""
        return _METHODS[self.name](self.text, *args)


def strip(text: TracedText, chars: Any = None) -> str:  # noqa: ANN401 - as `str.strip`
    """Take characters (white space by default) off both ends."""
    if chars is None and len(text.pieces) == 1:
        content = _only(text, "strip")
        return text.trace.text([Content(content.turn, trimmed=True)])
    stripped = _left_strip(text, chars)
    return _right_strip(stripped, chars) if isinstance(stripped, TracedText) else stripped


def _left_strip(text: TracedText, chars: Any = None) -> str:  # noqa: ANN401
    return text.trace.text(_strip_start(text, text.pieces, chars, "startswith"))


def _right_strip(text: TracedText, chars: Any = None) -> str:  # noqa: ANN401
    pieces = _strip_start(text, text.pieces[::-1], chars, "endswith")
    return text.trace.text(pieces[::-1])


def _strip_start(
    text: TracedText, pieces: tuple[Piece, ...], chars: object, end: Test
) -> tuple[Piece, ...]:
    """Strip the first piece; a content there is taken to begin with none of the characters."""
    taken = WHITE_SPACE if chars is None else _constant(text, chars)
    first, rest = pieces[0], pieces[1:]
    if isinstance(first, str):
        left = first.lstrip(taken) if end == "startswith" else first.rstrip(taken)
        return (left, *rest) if left else _strip_start(text, rest, chars, end)
    for char in dict.fromkeys(taken):
        if not (first.trimmed and char in WHITE_SPACE):
            text.trace.assume_not(first, end, char)
    if rest:
        # Were it empty, its neighbour would be stripped too.
        text.trace.assume_not(first, "equals", "")
    return pieces


def _starts(text: TracedText, start: object) -> bool:
    return any(_is_found(text, "startswith", one) for one in _alternatives(start))


def _ends(text: TracedText, end: object) -> bool:
    return any(_is_found(text, "endswith", one) for one in _alternatives(end))


def _alternatives(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _split(text: TracedText, separator: object = None) -> list[str]:
    """Split where the separator does not occur."""
    if _is_found(text, "contains", separator):
        text.trace.refuse("`split` at an empty text")
    return [text]


def _replace(text: TracedText, old: object, new: object) -> str:
    """Replace what does not occur."""
    _constant(text, new)
    if _is_found(text, "contains", old):
        text.trace.refuse("`replace` of an empty text")
    return text


def _is_found(text: TracedText, test: Test, wanted: object) -> bool:
    """Answer a test of a content: every text has the empty one in it, and no other is assumed."""
    constant = _constant(text, wanted)
    return constant == "" or text.trace.assume_not(_only(text, test), test, constant)


def contains(text: TracedText, wanted: object) -> bool:
    """Whether a constant is in the text."""
    return _is_found(text, "contains", wanted)


def equals(text: TracedText, other: object) -> bool:
    """Whether a constant is equal to the text; what is no text never is."""
    if not isinstance(other, str):
        return False
    constant = _constant(text, other)
    return text.trace.assume_not(_only(text, "=="), "equals", constant)


def _only(text: TracedText, what: str) -> Content:
    """Give the content the text consists of, if that is all there is to it."""
    if len(text.pieces) != 1 or not isinstance(text.pieces[0], Content):
        text.trace.refuse(f"`{what}` of a content with other text around it")
    return text.pieces[0]


def _constant(text: TracedText, value: object) -> str:
    if type(value) is not str:
        text.trace.refuse(f"a {type(value).__name__} where only a constant text can be followed")
    return text.trace.plain(value)


_METHODS: dict[str, Callable[..., Any]] = {
    "strip": strip,
    "lstrip": _left_strip,
    "rstrip": _right_strip,
    "startswith": _starts,
    "endswith": _ends,
    "split": _split,
    "replace": _replace,
}
METHOD_NAMES = frozenset(_METHODS)
