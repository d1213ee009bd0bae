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

    def offsets(self, token_ids: Sequence[int], *, length: int | None = None) -> list[int]:
        """Give where each token begins, characters.

        Args:
            token_ids: The ids.
            length: Of the whole text they come from, if it is known: what a tokenizer puts before
                a text, a blank or a special token, is not in it. Without it they go on from a text
                and special tokens among them have no length.
        """
        stream = TextStream(self._detokenizer)
        starts: list[int] = []
        held: list[int] = []
        end = 0
        for token_id in token_ids:
            text = stream.add(token_id)
            before = self._detokenizer.text(held) if held and text else ""
            # What was held is whole before this token, unless they share a character.
            starts.append(end + len(before) if text.startswith(before) else end)
            end += len(text) + (0 if length is None else len(self._special.get(token_id, "")))
            held = [] if text else [*held, token_id]
        end += len(self._detokenizer.text(held))
        excess = 0 if length is None else max(0, end - length)
        return [max(0, start - excess) for start in starts]
