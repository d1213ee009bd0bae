from __future__ import annotations

import sys

from fam_engine.data.compiled_templates import (
    WHITE_SPACE,
    CompiledTemplate,
    Content,
    Guard,
    Shape,
    Test,
)

SHAPE = Shape(("system", "user"), True)


def guarded(test: Test, text: str, *, trimmed: bool = False) -> CompiledTemplate:
    return CompiledTemplate(SHAPE, (), (Guard(Content(1, trimmed), test, text),))


def test_white_space_is_what_strip_takes_away() -> None:
    assert "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1)))) == WHITE_SPACE
    assert f"{WHITE_SPACE}a{WHITE_SPACE}".strip() == "a"


def test_a_rendering_is_its_pieces_joined() -> None:
    pieces = ("<", Content(1, False), "|", Content(0, True), ">", Content(1, False))
    compiled = CompiledTemplate(SHAPE, pieces, ())
    assert compiled.fits(["", ""])
    assert compiled.render(["\u3000s\x1c", " u "]) == "< u |s> u "


def test_guards_refuse_what_they_name() -> None:
    assert not guarded("contains", "b").fits(["", "abc"])
    assert guarded("contains", "b").fits(["b", "ac"])
    assert not guarded("startswith", "ab").fits(["", "abc"])
    assert guarded("startswith", "ab").fits(["ab", " abc"])
    assert not guarded("startswith", "ab", trimmed=True).fits(["", " abc"])
    assert not guarded("endswith", "bc").fits(["", "abc"])
    assert guarded("endswith", "bc").fits(["", "abc "])
    assert not guarded("equals", "").fits(["a", ""])
    assert guarded("equals", "").fits(["", " "])
    assert not guarded("equals", "", trimmed=True).fits(["a", " \n"])
