"""`Tokenizer`: ids equal to those of the `tokenizers` package, on small and on real files."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fam_engine import _rust_tokenize as rt

if TYPE_CHECKING:
    import tokenizers

# What breaks tokenizers: blanks and newlines in runs, contraction folding, combining marks, byte
# fallback, special tokens inside text, digits, nothing at all.
TRICKY = [
    "",
    " ",
    "  ",
    "\t",
    "\n\n  \n a",
    "Hello world",
    "  two  spaces ",
    " leading",
    "don't I'LL x'\u017fe",
    "a\x85b\u00a0c\u2028d",
    "e\u0301 \u00e9",
    "\u65e5\u672c\u8a9e\u30c6\u30ad\u30b9\u30c8 123456",
    "a  b\r\n\r\nc",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "Hello<s>Hello</s>",
    "<|endoftext|> a",
    "<|im_start|>user\nhi<|im_end|>",
    "<|end|>\n hi",
    "<|begin_of_text|>x<|eot_id|>",
    "\u00e9" * 300,
    "x" * 300,
    '{"a": 1.5e3}',
    "1234567 3.14159",
    "\x00\x01",
    "\ufeffbom",
    "\u0e20\u0e32\u0e29\u0e32",
    "def f(x):\n\treturn x",
]
REAL = [
    "bert_base_cased",
    "deepseek",
    "falcon",
    "gemma_shaped_mistral_vocab",
    "gpt2",
    "gpt_neox",
    "llama3",
    "mistral_v03",
    "phi2",
    "phi3_mini",
    "qwen2.5",
    "qwen3",
    "roberta_base",
    "smollm2_shaped_gpt2_vocab",
    "t5_small",
]


def tiny_definition() -> dict[str, object]:
    """Byte-level BPE of 256 bytes, three merges and one special token."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    others = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    vocab = {letters[byte]: byte for byte in range(256)}
    vocab |= {"he": 256, "hel": 257, letters[32] + "w": 258}
    special = {"id": 259, "content": "<|end|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | flags],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [["h", "e"], ["he", "l"], [letters[32], "w"]],
        },
    }


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.json"
    path.write_text(json.dumps(tiny_definition()))
    return path


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> rt.Tokenizer:
    return rt.Tokenizer.from_file(tiny_path)


def encode(tokenizer: rt.Tokenizer, texts: list[str], **options: bool) -> list[list[int]]:
    ids, offsets = tokenizer.encode_batch(texts, **options)
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


def reference(path: Path) -> tokenizers.Tokenizer:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_ids_are_flat_arrays(tiny: rt.Tokenizer) -> None:
    ids, offsets = tiny.encode_batch(["hello w", "", "<|end|>"])
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    assert ids.tolist() == [257, ord("l"), ord("o"), 258, 259]
    assert offsets.tolist() == [0, 4, 4, 5]


def test_what_it_knows_of_itself(tiny: rt.Tokenizer) -> None:
    assert tiny.engine == "native:gpt2"
    assert tiny.vocab_size == 260
    assert tiny.special_tokens() == tiny.added_tokens() == [("<|end|>", 259)]
    assert (tiny.token_to_id("hel"), tiny.token_to_id("zzz")) == (257, None)
    assert (tiny.id_to_token(256), tiny.id_to_token(260), tiny.id_to_token(-1)) == (
        "he",
        None,
        None,
    )


def test_special_tokens_can_be_plain_text(tiny: rt.Tokenizer) -> None:
    assert encode(tiny, ["<|end|>"], parse_special=False) == [[ord(char) for char in "<|end|>"]]


def test_decoding(tiny: rt.Tokenizer) -> None:
    ids, _ = tiny.encode_batch(["hello w\u00e9<|end|>"])
    assert tiny.decode(ids) == tiny.decode(ids.tolist()) == "hello w\u00e9<|end|>"
    assert tiny.decode(ids.astype(np.int64), skip_special_tokens=True) == "hello w\u00e9"
    assert tiny.decode(ids[:-2]) == "hello w\ufffd"  # half a character
    assert tiny.decode([]) == ""
    with pytest.raises(ValueError, match=r"ids\[1\]` is -5"):
        tiny.decode([1, -5])
    with pytest.raises(TypeError):
        tiny.decode("12")  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8))
def test_bytes_survive(tiny: rt.Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, encode(tiny, texts), strict=True):
        assert tiny.decode(ids) == text


def test_threads_change_nothing(tiny: rt.Tokenizer) -> None:
    texts = [text * repeat for repeat in range(1, 60) for text in TRICKY]
    one_ids, one_offsets = tiny.encode_batch(texts, num_threads=1)
    for num_threads in (2, 5, None):
        ids, offsets = tiny.encode_batch(texts, num_threads=num_threads)
        np.testing.assert_array_equal(ids, one_ids)
        np.testing.assert_array_equal(offsets, one_offsets)


def test_bad_arguments(tiny: rt.Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_threads"):
        tiny.encode_batch(["a"], num_threads=0)
    with pytest.raises(UnicodeEncodeError):
        tiny.encode_batch(["\ud800"])
    with pytest.raises(TypeError):
        tiny.encode_batch("a text, not a list")
    with pytest.raises(FileNotFoundError):
        rt.Tokenizer.from_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"model": {"type": "BPE"}}, "`model` section"),
        ({"pre_tokenizer": {"type": "Nonsense"}}, "`pre_tokenizer` section"),
        ({"version": "9"}, "version is `9`"),
    ],
)
def test_definitions_that_are_refused(
    tmp_path: Path, edit: dict[str, object], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tiny_definition() | edit))
    with pytest.raises(rt.TokenizerError, match=message) as caught:
        rt.Tokenizer.from_file(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)


def test_a_definition_that_makes_the_library_panic_is_an_ordinary_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Precompiled normalizer of nonsense bytes is one of the panics of `tokenizers` 0.23."""
    path = tmp_path / "tokenizer.json"
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "/////////w=="}
    path.write_text(json.dumps(tiny_definition() | {"normalizer": charsmap}))
    with pytest.raises(rt.TokenizerError):
        rt.Tokenizer.from_file(path).encode_batch(["some text"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", REAL)
def test_ids_equal_the_reference(shared: Path, name: str) -> None:
    path = shared / "tokenizers" / name / "tokenizer.json"
    ours, theirs = rt.Tokenizer.from_file(path), reference(path)
    assert ours.vocab_size == theirs.get_vocab_size()
    for parse_special in (True, False):
        theirs.encode_special_tokens = not parse_special
        for add in (True, False):
            found = encode(ours, TRICKY, parse_special=parse_special, add_special_tokens=add)
            expected = [theirs.encode(text, add_special_tokens=add).ids for text in TRICKY]
            assert found == expected
    for ids in encode(ours, TRICKY):
        for skip in (True, False):
            expected_text = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected_text


@pytest.mark.parametrize("name", ["mistral_v03", "phi3_mini"])
def test_a_continuation_has_no_blank_in_front(shared: Path, name: str) -> None:
    """Truth: the reference without the step that adds the blank (Metaspace's or Prepend)."""
    library = pytest.importorskip("tokenizers")
    path = shared / "tokenizers" / name / "tokenizer.json"
    ours, theirs = rt.Tokenizer.from_file(path), reference(path)
    if name == "mistral_v03":
        theirs.pre_tokenizer.prepend_scheme = "never"
    else:
        theirs.normalizer = library.normalizers.Replace(" ", "\u2581")
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in TRICKY]
    assert encode(ours, TRICKY, continuation=True) == expected
    [ids] = encode(ours, ["Hello"], continuation=True)
    assert ours.id_to_token(ids[0]) == "Hello"
    [ids] = encode(ours, ["Hello"])
    assert ours.id_to_token(ids[0]) == "\u2581Hello"


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2.5", "gemma_shaped_mistral_vocab"])
def test_a_continuation_is_the_same_where_nothing_adds_a_blank(shared: Path, name: str) -> None:
    ours = rt.Tokenizer.from_file(shared / "tokenizers" / name / "tokenizer.json")
    assert encode(ours, TRICKY, continuation=True) == encode(ours, TRICKY)


def test_a_continuation_is_refused_where_every_word_gets_a_blank(shared: Path) -> None:
    ours = rt.Tokenizer.from_file(shared / "tokenizers" / "t5_small" / "tokenizer.json")
    with pytest.raises(rt.TokenizerError, match=re.escape("in front of every word")):
        ours.encode_batch(["Hello"], continuation=True)
