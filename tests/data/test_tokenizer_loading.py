"""Definitions that end, stall or flood whoever loads them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data import child_encoding, tokenizer_loading
from fam_engine.data.records import Record
from fam_engine.data.tokenizer import Encoded, TextEncoder
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.errors import ModelRefusedError, RecordError

WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"},
}
# Each `a` becomes a million characters, and a text of trial has a hundred thousand.
FLOOD = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000}


def written(folder: Path, definition: dict[str, Any]) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


def test_what_only_the_library_knows_loads(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, WORDS))
    assert tokenizer.engine == "tokenizers"
    assert tokenizer.encode_batch(["a"])[0].tolist() == [0]


def test_a_definition_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match=r"did not survive: it died of SIGABRT"):
        load_tokenizer(written(tmp_path, WORDS | {"normalizer": FLOOD}))


def test_a_definition_that_takes_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_loading, "_SECONDS_TO_TRY", 0)
    with pytest.raises(ModelRefusedError, match="it took too long"):
        load_tokenizer(written(tmp_path, WORDS | {"normalizer": FLOOD}))


def test_an_error_is_told_by_whoever_loads(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match=r"does not load: .*`model` section"):
        load_tokenizer(written(tmp_path, WORDS | {"model": {"type": "WordLevel"}}))


def test_our_own_reader_needs_no_child(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_loading, "start_child", lambda *_: pytest.fail("a child"))
    assert load_tokenizer(tiny_model).engine.startswith("native")


def test_a_decoder_that_fails_on_short_tokens_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The library cuts more from a token than it has."""
    definition = json.loads((tiny_model / "tokenizer.json").read_text())
    definition["decoder"] = {"type": "Strip", "content": "a", "start": 0, "stop": 9}
    with pytest.raises(ModelRefusedError, match="does not load"):
        load_tokenizer(written(tmp_path, definition))


# No text of trial has a `~`, of which this makes a million characters each.
TEXT_FLOOD = {"type": "Replace", "pattern": {"String": "~"}, "content": "b" * 1_000_000}


def test_a_text_that_ends_the_library_costs_itself(tmp_path: Path) -> None:
    folder = written(tmp_path, WORDS | {"normalizer": TEXT_FLOOD})
    with contextlib.closing(TextEncoder(folder, template="none")) as encoder:
        assert encoder.is_in_child
        records = [record("a"), record("~" * 100_000), record("a")]
        one, flood, other = encoder.encode(records)
        assert isinstance(flood, RecordError)
        assert flood.code == "E_TOKENIZE"
        assert "its process did not survive: it died of SIGABRT" in flood.reason
        for encoded in (one, other):
            assert isinstance(encoded, Encoded)
            assert encoded.response_ids.tolist() == [0]


def test_a_text_that_takes_too_long_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_encoding, "_SECONDS", 0)
    folder = written(tmp_path, WORDS | {"normalizer": TEXT_FLOOD})
    with contextlib.closing(TextEncoder(folder, template="none")) as encoder:
        (found,) = encoder.encode([record("~" * 2_000)])
        assert isinstance(found, RecordError)
        assert "it took too long" in found.reason


def test_a_child_encodes_as_the_library_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers

    pieces = ["<unk>", *map(chr, range(32, 127)), "tion", "the"]
    library = Tokenizer(models.Unigram([(text, -float(n)) for n, text in enumerate(pieces)], 0))
    library.normalizer = normalizers.NFKC()
    library.save(str(tmp_path / "tokenizer.json"))
    texts = ["", "the action", "\u00e9\u4e2d \U0001f600", "a\nb" * 1000]
    tokenizer = load_tokenizer(tmp_path)
    with contextlib.closing(TextEncoder(tmp_path, template="none")) as encoder:
        for options in ({}, {"parse_special": False, "continuation": True}):
            found = encoder.encode_batch(texts, **options)
            expected = tokenizer.encode_batch(texts, **options)
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                assert one.tolist() == other.tolist()


def record(response: str) -> Record:
    return Record("f", 1, (), "a", response, id="1", source="f")
