"""Definitions that end, stall or flood whoever loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data import tokenizer_loading
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.errors import ModelRefusedError

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
