"""Ids to text, one by one and whole, with real tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fam_engine._rust_tokenize import Tokenizer
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.model.generation.detokenizer import REPLACEMENT, Detokenizer, TextStream
from fam_engine.model.generation.sequences import StopStrings

# Byte-level BPE, and SentencePiece with bytes as tokens, with a dummy blank and without.
TOKENIZERS = ["qwen2.5", "llama3", "gpt2", "mistral_v03", "phi3_mini", "gemma_shaped_mistral_vocab"]
TEXTS = [
    " leading blank",
    "  two, and at the end  ",
    "plain",
    "line\n\n  indented\t",
    "日本語と中文, naïve façade",
    "🙂🙃 👩‍👩‍👧 \u2581 \u202f x",
]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_continuation_comes_back(shared: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    detokenizer = Detokenizer(tokenizer)
    for text in TEXTS:
        if name in ("mistral_v03", "phi3_mini", "gemma_shaped_mistral_vocab"):
            text = text.replace("\u2581", "")  # SentencePiece's own sign for a blank
        ids, _ = tokenizer.encode_batch([text], continuation=True)
        assert detokenizer.text(ids.tolist()) == text
        stream = TextStream(detokenizer)
        pieces = "".join(map(stream.add, ids.tolist()))
        assert text.startswith(pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_stream_gave_stands(shared: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    detokenizer = Detokenizer(tokenizer)
    random = np.random.default_rng(0)
    single_bytes = [token for byte in range(256) if (token := byte_token(tokenizer, byte))]
    special = [token for _, token in tokenizer.special_tokens()][:5]
    for _ in range(40):
        # Mostly pieces of characters, where a stream can go wrong.
        pool = random.choice(single_bytes + special * 5, 12).tolist()
        pool += random.integers(0, tokenizer.vocab_size, 12).tolist()
        ids = random.permutation(pool).tolist()
        stream, given = TextStream(detokenizer), ""
        for count, token in enumerate(ids, 1):
            given += stream.add(token)
            assert detokenizer.text(ids[:count]).startswith(given)
        whole = detokenizer.text(ids)
        stream_end = detokenizer.text([*ids, plain_token(tokenizer)])
        given += stream.add(plain_token(tokenizer))
        assert given == stream_end
        assert stream_end.startswith(whole.rstrip(REPLACEMENT))


def byte_token(tokenizer: Tokenizer, byte: int) -> int | None:
    token = tokenizer.token_to_id(f"<0x{byte:02X}>")
    if token is None and byte >= 0x80:
        # Byte-level tokenizers write byte b >= 0xAE as the character of that number.
        token = tokenizer.token_to_id(chr(byte)) if byte > 0xAE else None
    return token


def plain_token(tokenizer: Tokenizer) -> int:
    ids, _ = tokenizer.encode_batch(["a"], continuation=True)
    return int(ids[0])


def test_a_byte_can_spoil_the_run_before_it(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "tokenizers" / "mistral_v03")
    stream = TextStream(Detokenizer(tokenizer))
    run = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0xE4, 0xB8, 0xAD, 0xFF)]
    assert [stream.add(token) for token in run] == ["", "", "", ""]
    assert stream.add(plain_token(tokenizer)) == 4 * REPLACEMENT + "a"


def test_stop_strings_are_found_once_complete() -> None:
    stops = StopStrings(("Question:", "##"))
    text = "one # two\nQuest"
    assert stops.find(text) is None
    assert stops.find(text + "ion: ##", known=len(text)) == 10
    assert stops.find("a ## Question:") == 2
    assert not StopStrings(())
