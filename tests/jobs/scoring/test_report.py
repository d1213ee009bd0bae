"""Answers token by token: each token with its own text, in time that grows with the answer and no faster."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.tokenizer import Ids
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.jobs.scoring.report import token_texts
from fam_engine.model.generation.detokenizer import byte_tokens

# Byte-level BPE, SentencePiece with bytes as tokens, WordPiece.
TOKENIZERS = (
    *("qwen2.5", "gpt2", "deepseek", "mistral_v03", "phi3_mini"),
    *("gemma_shaped_mistral_vocab", "bert_base_cased"),
)
TEXT = " blank  first, \n\tna\u00efve \u65e5\u672c\u8a9e \U0001f642\u200d\U0001f467 \ufffd\ufffd x \u2581 end "


def texts_from_the_start(tokenizer: Tokenizer, ids: Ids) -> list[str]:
    """The plain reference: all that there is so far is decoded for every token."""
    texts, known = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end]).rstrip("\ufffd")
        texts.append(whole[len(known) :])
        known = whole
    return texts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_texts_are_those_of_the_whole_text(shared: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    ids, _ = tokenizer.encode_batch([TEXT * 3])
    assert token_texts(tokenizer, ids) == texts_from_the_start(tokenizer, ids)
    random = np.random.default_rng(0)
    special = [token for _, token in tokenizer.special_tokens()][:5]
    # Pieces of characters and single bytes, where a window can go wrong; an id that has no token.
    pool = [*ids.tolist(), *sorted(byte_tokens(tokenizer)), *special * 5, tokenizer.vocab_size + 9]
    for _ in range(60):
        drawn = [*random.choice(pool, 30), *random.integers(0, tokenizer.vocab_size, 10)]
        mixed = random.permutation(drawn).astype(np.int32)
        assert token_texts(tokenizer, mixed) == texts_from_the_start(tokenizer, mixed)


class Counting:
    """A tokenizer that counts the ids it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token_to_id = tokenizer.token_to_id
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, ids: Ids) -> str:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["some words, 12 numbers. ", "\U0001f642\u65e5\u672c"])
def test_a_long_answer_is_not_decoded_again_and_again(shared: Path, text: str) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / "gpt2")
    ids, _ = tokenizer.encode_batch([text * 300])
    counting = Counting(tokenizer)
    token_texts(cast("Tokenizer", counting), ids)
    assert counting.num_decoded < 20 * len(ids)
