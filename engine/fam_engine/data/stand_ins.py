"""Special tokens users wrote as text, kept from becoming special.

In: users' texts and the names of special tokens. Out: texts in which a private-use character stands for each name, so
that they can go through a chat template and be told from the special tokens the template writes; and back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FIRST = 0xF0000


class StandIns:
    """Stand-ins for special tokens.

    Args:
        names: The special tokens' texts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._chars = {name: chr(_FIRST + i) for i, name in enumerate(names)}
        self._names = {char: name for name, char in self._chars.items()}
        self._name_pattern = _alternation(self._chars)
        self._char_pattern = _alternation(self._names)

    def first_special(self, text: str) -> re.Match[str] | None:
        """Find the first special token in a text."""
        return self._name_pattern.search(text) if self._name_pattern else None

    def specials(self, text: str) -> Iterable[re.Match[str]]:
        """Find all special tokens in a text."""
        return self._name_pattern.finditer(text) if self._name_pattern else ()

    def are_in(self, text: str) -> bool:
        """Whether a text holds a stand-in."""
        # A flag of the string says whether it is ASCII; most are, and hold none.
        if text.isascii() or self._char_pattern is None:
            return False
        return self._char_pattern.search(text) is not None

    def put(self, text: str) -> str:
        """Replace special tokens by what stands for them."""
        if self._name_pattern is None:
            return text
        return self._name_pattern.sub(lambda match: self._chars[match.group()], text)

    def restore(self, text: str) -> str:
        """Replace stand-ins by what they stand for."""
        if not self.are_in(text) or self._char_pattern is None:
            return text
        return self._char_pattern.sub(lambda match: self._names[match.group()], text)


def _alternation(names: Iterable[str]) -> re.Pattern[str] | None:
    """Compile a pattern that finds any of the names, the longest first; None if there are none."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
