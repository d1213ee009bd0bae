r"""Mathematics as it is typed, in TeX.

In: text. Out: the same, with the characters and words that stand for mathematics as TeX: `36\pi` for `36π` and
`36 pi`, `\sqrt{2}` for `√2` and `sqrt(2)`, `x^2` for `x²`, `\frac{1}{2}` for `½`, `\infty` for `∞`. So one reader knows
them all, and a number before one of them (`5²`) is seen not to be the whole. Signs of reckoning and degrees are left.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = str.maketrans(
    {
        "π": r"\pi ",
        "∞": r"\infty ",
        "\u222a": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "∈": r"\in ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "±": r"\pm ",
        "\u2044": "/",
        "\u2215": "/",
    }
)
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b\u207f]+")
_SUBSCRIPTS = re.compile("[\u2080-\u208b]+")
_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
# With its radicand: in parentheses, or all of a number, or a letter.
_ROOT = re.compile(
    r"(?:\u221a|(?<![\\A-Za-z])sqrt)\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))"
)
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")


def to_tex(text: str) -> str:
    """Write the mathematics of a text in TeX."""
    text = text.translate(_SIGNS)
    text = _SUPERSCRIPTS.sub(lambda match: f"^{_plain(match[0])}", text)
    text = _SUBSCRIPTS.sub(lambda match: f"_{_plain(match[0])}", text)
    text = _FRACTION.sub(_fraction, text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or ''}}}", text)
    return _PI.sub(r"\\pi ", text).replace("\u221a", r"\sqrt")


def _plain(digits: str) -> str:
    """Give small digits at their usual size, in braces where TeX needs them."""
    plain = unicodedata.normalize("NFKC", digits).replace("\u2212", "-")
    return plain if len(plain) == 1 else f"{{{plain}}}"


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"
