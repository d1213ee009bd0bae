"""`Tokenizer.verify`: what Python gets from the differential check; the check is tested in Rust."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine import _rust_tokenize as rt


@pytest.fixture
def tokenizer_file(tiny_model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return file


def test_a_tokenizer_agrees_with_the_reference(tokenizer_file: Path) -> None:
    found = rt.Tokenizer.from_file(tokenizer_file).verify(["one", "</s> two", ""], num_threads=2)
    assert found == {"num_compared": 12, "num_mismatched": 0, "mismatches": []}


def test_a_difference_is_shrunk_and_shows_both_ids(tokenizer_file: Path) -> None:
    ours = rt.Tokenizer.from_file(tokenizer_file)
    # A reference that differs: the file now gives `q` and `z` each other's ids.
    definition = json.loads(tokenizer_file.read_text())
    vocab = definition["model"]["vocab"]
    vocab["q"], vocab["z"] = vocab["z"], vocab["q"]
    tokenizer_file.write_text(json.dumps(definition))
    found = ours.verify(["none of them", "a long text with q in it"])
    assert (found["num_compared"], found["num_mismatched"]) == (8, 4)
    [mismatch] = found["mismatches"]
    assert mismatch == {
        "text_index": 1,
        "text": "q",
        "parse_special": True,
        "continuation": False,
        "ids": [vocab["z"]],
        "expected_ids": [vocab["q"]],
    }


def test_a_file_that_is_gone_is_an_os_error(tokenizer_file: Path) -> None:
    ours = rt.Tokenizer.from_file(tokenizer_file)
    tokenizer_file.unlink()
    with pytest.raises(FileNotFoundError):
        ours.verify(["a"])
