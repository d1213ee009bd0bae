"""Definitions that end, stall or flood whoever loads them."""

from __future__ import annotations

import contextlib
import json
import re
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


MINE = "<|mine|>"
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
CALLED = f"tokenizer_config.json: names the token '{MINE}'"


def named(folder: Path, **files: object) -> Path:
    """A folder whose tokenizer has two words and `<s>`, with id 2, and other files beside it."""
    (folder / "tokenizer.json").write_text(
        json.dumps(WORDS | {"added_tokens": [{"id": 2, "content": "<s>", "special": True} | FLAGS]})
    )
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def decoder(text: str, token_id: str) -> dict[str, Any]:
    return {"added_tokens_decoder": {token_id: {"content": text, "special": True} | FLAGS}}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config": decoder(MINE, "3")}, f"{CALLED} with id 3, tokenizer.json does not"),
        (
            {"tokenizer_config": decoder("<s>", "3")},
            "'<s>' with id 3, tokenizer.json has it with id 2",
        ),
        ({"tokenizer_config": decoder("a", "0")}, "'a' with id 0, tokenizer.json does not have it"),
        ({"tokenizer_config": {"added_tokens_decoder": {"3": MINE}}}, f"{CALLED} with id 3"),
        ({"tokenizer_config": {"additional_special_tokens": [MINE]}}, f"{CALLED}, tokenizer.json"),
        ({"tokenizer_config": {"extra_special_tokens": {"my_token": MINE}}}, CALLED),
        ({"added_tokens": {MINE: 3}}, f"added_tokens.json: names the token '{MINE}' with id 3"),
        (
            {"special_tokens_map": {"additional_special_tokens": [{"content": MINE}]}},
            f"special_tokens_map.json: names the token '{MINE}'",
        ),
    ],
)
def test_tokens_that_only_other_files_name_are_refused(
    tmp_path: Path, files: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelRefusedError, match=re.escape(said)) as refused:
        load_tokenizer(named(tmp_path, **files))
    assert refused.value.code == "E_TOKENIZER"
    assert "save_pretrained" in str(refused.value)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": decoder("<s>", "2") | {"extra_special_tokens": ["<s>"]}},
        # As transformers: what is older is not read beside `added_tokens_decoder`.
        {"tokenizer_config": decoder("<s>", "2"), "added_tokens": {MINE: 3}},
        {
            "tokenizer_config": {"added_tokens_decoder": {}},
            "special_tokens_map": {"additional_special_tokens": [MINE]},
        },
        {"added_tokens": {"<s>": 2}, "special_tokens_map": {"extra_special_tokens": ["<s>"]}},
    ],
)
def test_tokens_that_all_files_name_load(tmp_path: Path, files: dict[str, Any]) -> None:
    assert load_tokenizer(named(tmp_path, **files)).token_to_id("<s>") == 2


@pytest.mark.parametrize("name", ["added_tokens_decoder", "extra_special_tokens"])
@pytest.mark.parametrize("found", [None, 7, "x", [7], [[]], {"a": None}, {"3": {"content": 7}}, {}])
def test_what_is_no_token_is_passed_by(tmp_path: Path, name: str, found: object) -> None:
    load_tokenizer(named(tmp_path, tokenizer_config={name: found}))


def test_what_the_refusal_advises_helps(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = named(tmp_path, tokenizer_config=decoder(MINE, "3"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(folder)
    ids, _ = load_tokenizer(folder).encode_batch([f"a{MINE}a"])
    assert ids.tolist() == theirs(f"a{MINE}a").input_ids == [0, 3, 0]


def test_every_shared_tokenizer_has_the_tokens_its_files_name(shared: Path) -> None:
    """Two are refused for what they are: merges of an unknown kind, and words that cannot be continued."""
    folders = [file.parent for file in shared.glob("*/*/tokenizer.json")]
    assert len(folders) > 15
    for folder in folders:
        if folder.name in ("added_tokens_ortx", "t5_small"):
            with pytest.raises(ModelRefusedError, match="does not load"):
                load_tokenizer(folder)
        else:
            load_tokenizer(folder)


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
