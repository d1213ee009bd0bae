"""The native engine through Python: which files it takes, ids on real text, kept definitions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fam_engine import _rust_tokenize as rt
from tests.rust_tokenize.test_tokenizer import encode, reference, tiny_definition

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = {
    "bert_base_cased": "tokenizers",
    "deepseek": "native:deepseek",
    "falcon": "tokenizers",
    "gemma_shaped_mistral_vocab": "native:sentencepiece",
    "gpt2": "native:gpt2",
    "gpt_neox": "native:gpt2",
    "llama3": "native:cl100k",
    "mistral_v03": "native:sentencepiece",
    "phi2": "native:gpt2",
    "phi3_mini": "native:sentencepiece",
    "qwen2.5": "native:qwen2",
    "qwen3": "native:qwen2",
    "roberta_base": "native:gpt2",
    "smollm2_shaped_gpt2_vocab": "native:digits-gpt2",
    "t5_small": "tokenizers",
}


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "definitions"
    monkeypatch.setenv("FAM_ENGINE_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_the_engine_of_real_files(shared: Path, name: str) -> None:
    path = shared / "tokenizers" / name / "tokenizer.json"
    assert rt.Tokenizer.from_file(path).engine == ENGINES[name]


@pytest.mark.parametrize("name", sorted(name for name in ENGINES if ENGINES[name] != "tokenizers"))
def test_ids_on_real_text(shared: Path, name: str) -> None:
    """Mathematics, code and made-up CJK, with the definition read once from JSON, once kept."""
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text().splitlines()[:150]
    texts = [text for line in lines for text in json.loads(line).values()]
    lines = (shared / "data" / "mbpp" / "mbpp.jsonl").read_text().splitlines()[:100]
    texts += [json.loads(line)["code"] for line in lines]
    texts += ["".join(chr(0x3041 + (i * j) % 0x2000) for i in range(40)) for j in range(1, 40)]
    path = shared / "tokenizers" / name / "tokenizer.json"
    expected = [found.ids for found in reference(path).encode_batch(texts)]
    for _ in range(2):
        ours = rt.Tokenizer.from_file(path)
        assert encode(ours, texts, add_special_tokens=True) == expected
        assert encode(ours, texts, add_special_tokens=True) == expected  # all of it remembered


def test_definitions_are_kept_where_the_variable_says(
    shared: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "tokenizers" / "gpt2" / "tokenizer.json"
    first = rt.Tokenizer.from_file(path)
    [kept] = cache_folder.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(good[: len(good) // 2])
    again = rt.Tokenizer.from_file(path)
    assert kept.read_bytes() == good
    assert encode(again, ["Hello world"]) == encode(first, ["Hello world"])
    kept.unlink()
    monkeypatch.setenv("FAM_ENGINE_CACHE", "off")
    assert encode(rt.Tokenizer.from_file(path), ["Hello world"]) == encode(first, ["Hello world"])
    assert list(cache_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"dropout": 0.5}, "dropout 0.5"),
        ({"merges": [["h", "zz"]]}, "`model` section"),
        ({"vocab": {"h": 0}, "merges": []}, "`<|end|>` has id 259"),
    ],
)
def test_what_is_no_tokenizer_is_refused_as_before(
    tmp_path: Path, edit: dict[str, object], message: str
) -> None:
    definition = tiny_definition()
    model = definition["model"]
    assert isinstance(model, dict)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition | {"model": model | edit}))
    with pytest.raises(rt.TokenizerError, match=message.replace("|", r"\|")):
        rt.Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "edit",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {
            "decoder": None,
            "post_processor": {"type": "Sequence", "processors": []},
            "normalizer": {"type": "NFKC"},
        },
    ],
)
def test_what_is_not_known_to_the_letter_is_left_to_the_library(
    tmp_path: Path, edit: dict[str, object]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tiny_definition() | edit))
    ours, theirs = rt.Tokenizer.from_file(path), reference(path)
    assert ours.engine == "tokenizers"
    texts = ["Hello  World", "he hel \ufb01"]
    assert encode(ours, texts) == [
        theirs.encode(text, add_special_tokens=False).ids for text in texts
    ]
