"""Ids back to text: whole, and one id at a time.

In: token ids of a continuation. Out: its text. Responses are encoded as continuations (no blank put
in front), so they are decoded as such: after an anchor, whose text is then taken off. Decoded alone,
a SentencePiece tokenizer would drop the leading blank that the model wrote.

Encoding the text need not give the same ids again: a model may spell a word in another way than the
tokenizer's merges, and special tokens it writes in the middle leave no trace in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fam_engine._rust_tokenize import Tokenizer

# What unfinished characters decode to.
REPLACEMENT: Final = "\ufffd"
_ANCHOR: Final = "a"


def byte_tokens(tokenizer: Tokenizer) -> set[int]:
    """Give the tokens that stand for one byte; they are decoded run by run, and one more can spoil a whole run."""
    found = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return {token for token in found if token is not None}


class Detokenizer:
    """Decodes continuations.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        anchor, _ = tokenizer.encode_batch([_ANCHOR], continuation=True)
        self._anchor: list[int] = anchor.tolist()
        self._anchor_text = tokenizer.decode(anchor)
        # A special token, left out, does not end a run of bytes.
        self._open = byte_tokens(tokenizer) | {token for _, token in tokenizer.special_tokens()}

    def text(self, token_ids: Sequence[int]) -> str:
        """Give the text of the ids of a continuation."""
        whole = self._tokenizer.decode([*self._anchor, *token_ids], skip_special_tokens=True)
        return whole.removeprefix(self._anchor_text)

    def is_open(self, token_id: int, text: str) -> bool:
        """Whether what comes next may change the text that ends with this token."""
        return token_id in self._open or text.endswith(REPLACEMENT)


class TextStream:
    """The text of a growing list of ids; a character comes as soon as nothing can change it.

    Args:
        detokenizer: Of the model.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._held: list[int] = []

    def add(self, token_id: int) -> str:
        """Take one more id; give the text that is now certain, which may be none."""
        self._held.append(token_id)
        text = self._detokenizer.text(self._held)
        if self._detokenizer.is_open(token_id, text):
            return ""
        self._held = []
        return text
