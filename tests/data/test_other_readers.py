"""Where transformers reads a folder otherwise, its user is told, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fam_engine.data.other_readers import REMEDY, read_otherwise
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.data.tokenizer_loading import load_tokenizer

LLAMA_2 = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
SAID = "which transformers 5.24 leaves out where tokenizer_class is LlamaTokenizer"


def note(
    folder: Path, tmp_path: Path, config: dict[str, Any], model_type: str | None = None
) -> str | None:
    """What is said of a tokenizer with other files beside it."""
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return read_otherwise(load_tokenizer(tmp_path), tmp_path)


@pytest.mark.parametrize("model_type", [None, "llama"])
@pytest.mark.parametrize(
    "config",
    [
        LLAMA_2,
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True},
        {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_prefix_space": False},
    ],
)
def test_a_blank_that_transformers_leaves_out_is_told(
    shared: Path, tmp_path: Path, config: dict[str, Any], model_type: str | None
) -> None:
    said = note(shared / "tokenizers" / "phi3_mini", tmp_path, config, model_type) or ""
    assert f"where tokenizer_class is {config['tokenizer_class']}" in said


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        (LLAMA_2, "phi3"),
        (LLAMA_2, "mistral"),
        (LLAMA_2 | {"legacy": True}, "llama"),  # it puts the blank then
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "llama"),
        ({}, None),
    ],
)
def test_what_transformers_reads_the_same_is_passed_by(
    shared: Path, tmp_path: Path, config: dict[str, Any], model_type: str | None
) -> None:
    assert note(shared / "tokenizers" / "phi3_mini", tmp_path, config, model_type) is None


def test_only_blanks_that_are_there_are_missed(shared: Path, tmp_path: Path) -> None:
    """Of a published folder only where it is so; Mistral and bytes have no blank after special tokens."""
    for folder in (shared / "tokenizers").iterdir():
        if folder.name not in ("added_tokens_ortx", "phi3_mini", "t5_small") and folder.is_dir():
            assert read_otherwise(load_tokenizer(folder), folder) is None
            assert note(folder, tmp_path, LLAMA_2) is None


def test_what_is_said_of_transformers_is_so(shared: Path, tmp_path: Path) -> None:
    """As a release of transformers it was written for has it; another may read the file again."""
    transformers = pytest.importorskip("transformers", minversion="5.24")
    shutil.copytree(shared / "tokenizers" / "phi3_mini", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    text = "<|user|>What is 2+2?<|end|>"
    ours = load_tokenizer(tmp_path).encode_batch([text])[0].tolist()

    def theirs(tokenizer_class: str) -> list[int]:
        changed = json.dumps(config | {"tokenizer_class": tokenizer_class})
        (tmp_path / "tokenizer_config.json").write_text(changed)
        found = transformers.AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)
        return list(found.input_ids)

    assert theirs("PreTrainedTokenizerFast") == ours
    assert theirs("LlamaTokenizer") != ours


def test_without_a_template_nothing_is_said(shared: Path) -> None:
    folder = shared / "tokenizers" / "phi3_mini"
    with contextlib.closing(TextEncoder(folder)) as encoder:
        assert SAID in (encoder.read_otherwise or "")
        assert f"({REMEDY})" in (encoder.read_otherwise or "")
    with contextlib.closing(TextEncoder(folder, template="none")) as encoder:
        assert encoder.read_otherwise is None
