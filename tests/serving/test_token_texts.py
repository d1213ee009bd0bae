"""Where tokens begin, with real tokenizers: byte-level, and SentencePiece with bytes as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from fam_engine.data.tokenizer_loading import load_tokenizer


@pytest.mark.parametrize("name", ["qwen2.5", "gpt2", "mistral_v03", "phi3_mini"])
@pytest.mark.parametrize(
    "text", ["Tom \ufffd has", "Tom \U0001f600 has", "Tom \ufffd\ufffd\U0001f600 has"]
)
def test_a_token_begins_after_the_characters_before_it(shared: Path, name: str, text: str) -> None:
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from fam_engine.serving.token_texts import TokenTexts

    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode_batch([text])[0].tolist()
    starts = texts.offsets(ids, length=len(text))
    assert texts.name(ids[-1]) == " has"
    assert starts[-1] == text.index(" has")
    # With nothing after it, what may still be unfinished counts as well: a blank that the tokenizer
    # puts first would else be taken for part of the text.
    assert texts.offsets(ids[:-1], length=text.index(" has")) == starts[:-1]
