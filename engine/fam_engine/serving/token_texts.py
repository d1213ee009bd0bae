"""Tokens as the texts OpenAI's log-probs name them by, and where each begins.

In: token ids. Out: names, offsets. A token is named by its text; by its entry of the vocabulary where it is special or
holds part of a character only, since two tokens should not share the replacement character as their name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.model.generation.detokenizer import REPLACEMENT, Detokenizer, TextStream


class TokenTexts:
    """Names tokens.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._special = {token_id: name for name, token_id in tokenizer.special_tokens()}
        # Special or not, a text is cut at them, and what is between two is encoded apart.
        self._added = {token_id: name for name, token_id in tokenizer.added_tokens()}
        self.name = lru_cache(maxsize=1 << 16)(self._name)

    def _name(self, token_id: int) -> str:
        if token_id in self._special:
            return self._special[token_id]
        text = self._detokenizer.text([token_id])
        if text and REPLACEMENT not in text:
            return text
        return self._tokenizer.id_to_token(token_id) or ""

    def whole(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids that begin a text, special tokens included."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def written(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids that go on from a text, without a character that is cut."""
        return self._detokenizer.text(token_ids).rstrip(REPLACEMENT)

    def offsets(self, token_ids: Sequence[int], *, text: str | None = None) -> list[int]:
        """Give where each token begins, characters.

        Args:
            token_ids: The ids.
            text: The whole text they come from, if it is known: what a tokenizer puts before it, a
                special token or a blank, is not in it, nor is the blank that some put after every
                added token. Without it they go on from a text and special tokens among them have
                no length.
        """
        if text is None:
            return self._starts(token_ids)[0]
        starts: list[int] = []
        place = first = 0
        for end, token_id in enumerate(token_ids):
            if token_id in self._added:
                within, own = self._starts(token_ids[first:end])
                found = _find(self._added[token_id], text, place, own)
                starts += [*_placed(within, own, text[place:found], place), found]
                is_there = text.startswith(self._added[token_id], found)
                place = found + is_there * len(self._added[token_id])
                first = end + 1
        return starts + _placed(*self._starts(token_ids[first:]), text[place:], place)

    def _starts(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """Give where tokens begin in the text they make, which goes on from another, and that text."""
        stream = TextStream(self._detokenizer)
        starts: list[int] = []
        held: list[int] = []
        written = ""
        for token_id in token_ids:
            text = stream.add(token_id)
            before = self._detokenizer.text(held) if held and text else ""
            # What was held is whole before this token, unless they share a character.
            starts.append(len(written) + (len(before) if text.startswith(before) else 0))
            written += text
            held = [] if text else [*held, token_id]
        return starts, written + self._detokenizer.text(held)


def _placed(within: Sequence[int], own: str, part: str, place: int) -> list[int]:
    """Give where tokens begin that make a part of a text, between two added tokens.

    Args:
        within: Where they begin in what they make.
        own: What they make: with a blank more than the text has where one was put in front, one less
            where it was taken off beside an added token.
        part: The part of the text.
        place: Where it begins.
    """
    core = own.lstrip(" ")
    found = part.find(core) if core else -1
    shift = min(0, len(part) - len(own)) if found < 0 else found - len(own) + len(core)
    return [place + max(0, start + shift) for start in within]


def _find(name: str, text: str, place: int, own: str) -> int:
    """Give where an added token stands in a text, or would if it was not put there by the tokenizer.

    Args:
        name: Of the token.
        text: The text.
        place: Where the added token before it ends.
        own: What the tokens between the two make.
    """
    found = text.find(name, place)
    if own:
        return min(len(text), place + len(own)) if found < 0 else found
    # It stands right here or nowhere; some take the blanks around them away.
    return found if found >= 0 and not text[place:found].strip() else place
