from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fam_engine import ResidentModel, Sampling, Scorer
from fam_engine.errors import ModelRefusedError, UsageError
from fam_engine.model.generation.requests import Request


@pytest.fixture(scope="module")
def model(bos_model: Path) -> Iterator[ResidentModel]:
    with ResidentModel(bos_model, precision="fp32", device="cpu") as made:
        yield made


TEXTS = ["a b", "", "<s>a", "a<s>", "</s>", "caf\u00e9 \U0001f34e", " a"]


def test_texts_become_the_ids_of_transformers(model: ResidentModel, bos_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bos_model / "tokenizer.json"))
    for text, ids, bare in zip(
        TEXTS, model.encode(TEXTS), model.encode(TEXTS, add_bos=False), strict=True
    ):
        assert bare.tolist() == tokenizer.encode(text, add_special_tokens=False)
        expected = bare.tolist() if text.startswith("<s>") else tokenizer.encode(text)
        assert ids.tolist() == expected


def test_bos_is_put_first_once(model: ResidentModel) -> None:
    for text, ids in zip(TEXTS, model.encode(TEXTS, add_bos=True), strict=True):
        assert ids[0] == model.bos_token_id == 0
        assert ids[:2].tolist() != [0, 0], text


def test_special_tokens_are_known_by_name(model: ResidentModel) -> None:
    assert (model.bos_token_id, model.eos_token_id, model.max_length) == (0, 1, 256)


def test_a_length_beyond_the_model_is_refused(bos_model: Path) -> None:
    with pytest.raises(UsageError, match="at most 256"):
        ResidentModel(bos_model, max_length=257, precision="fp32", device="cpu")
    with pytest.raises(ModelRefusedError, match="not a folder"):
        ResidentModel(bos_model, adapter="nowhere", precision="fp32", device="cpu")


@pytest.mark.parametrize("value", [0, -5, 2.5, "abc", True])
@pytest.mark.parametrize("name", ["max_length", "max_tokens_per_batch"])
def test_a_number_of_tokens_is_whole_and_above_0(bos_model: Path, name: str, value: Any) -> None:  # noqa: ANN401
    said = f"{name} is {value!r}, expected a whole number of at least 1"
    with pytest.raises(UsageError, match=said):
        ResidentModel(bos_model, **{name: value})
    if name == "max_tokens_per_batch":
        with pytest.raises(UsageError, match=said):
            Scorer(bos_model, max_tokens_per_batch=value)


def test_a_text_says_which_token_ended_it(model: ResidentModel) -> None:
    context = np.array([0, 40], np.int32)
    [text] = model.generate([Request(context, seed=0)], Sampling(max_new_tokens=3))
    assert text.finish_reason == "length"
    assert text.end_token_id is None
    # What it wrote second ends it, if that is among the end tokens.
    ends = model.generator._model.ends.token_ids
    second = int(text.token_ids[1])
    object.__setattr__(model.generator._model.ends, "token_ids", ends | {second})
    try:
        [ended] = model.generate([Request(context, seed=0)], Sampling(max_new_tokens=3))
    finally:
        object.__setattr__(model.generator._model.ends, "token_ids", ends)
    assert (ended.finish_reason, ended.end_token_id) == ("eos", second)
    assert ended.token_ids.tolist() == text.token_ids[:1].tolist()
