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
    starts = texts.offsets(ids, text=text)
    assert texts.name(ids[-1]) == " has"
    assert starts[-1] == text.index(" has")
    # With nothing after it, what may still be unfinished counts as well: a blank that the tokenizer
    # puts first would else be taken for part of the text.
    assert texts.offsets(ids[:-1], text=text.removesuffix(" has")) == starts[:-1]


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("models/stories260K", "Tom </s> ran", [0, 1, 3, 4, 8, 8, 10]),
        ("models/stories260K", "a </s> b </s> do", [0, 1, 2, 6, 6, 8, 9, 13, 13]),
        ("models/stories260K", "</s>Tom", [0, 4, 5]),
        ("tokenizers/phi3_mini", "Tom </s> ran", [0, 3, 4, 8]),
        ("tokenizers/phi3_mini", " <s>x", [0, 1, 4]),
        ("tokenizers/phi3_mini", "</s>Tom", [0, 4]),
        ("tokenizers/phi3_mini", "a <|end|>  b <|end|> <|end|>c", [0, 1, 2, 10, 12, 13, 21, 28]),
        ("tokenizers/mistral_v03", "Tom </s> ran", [0, 3, 4, 8]),
        ("tokenizers/qwen2.5", "<|im_end|> a<|im_end|>", [0, 10, 12]),
    ],
)
def test_blanks_beside_special_tokens_move_nothing(
    shared: Path, folder: str, text: str, expected: list[int]
) -> None:
    pytest.importorskip("starlette", reason="needs the extra `serve`")
    from fam_engine.serving.token_texts import TokenTexts

    tokenizer = load_tokenizer(shared / folder)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert texts.offsets(ids, text=text) == expected
    # A token of the vocabulary that the text does not have, put before it and behind it.
    bos = next(i for n, i in tokenizer.special_tokens() if n not in text)
    assert texts.offsets([bos, *ids, bos], text=text) == [0, *expected, len(text)]
