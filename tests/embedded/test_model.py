"""The embedded model: small, plain to load, and it knows a true answer from a shuffled one."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.embedded.problems import TRAINED_SKILLS, generate

LIMIT_BYTES = 8 * 1024 * 1024
NEVER_TRAINED_SEED = 10**9


@pytest.fixture(scope="module")
def tokenizer() -> Any:  # noqa: ANN401 - transformers is untyped
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:  # noqa: ANN401
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DEMO_RECORDS.read_text(encoding="utf-8").splitlines()]


def nll_mean(model: Any, tokenizer: Any, prompt: str, response: str) -> float:  # noqa: ANN401
    """Nats a token of the response after the prompt."""
    context = tokenizer(prompt).input_ids
    answer = tokenizer(response, add_special_tokens=False).input_ids
    ids = torch.tensor([context + answer])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(context) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


def test_the_folder_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in MODEL.iterdir()}
    assert sum(files.values()) <= LIMIT_BYTES
    assert {"config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"} <= set(files)


def test_weights_are_bf16_and_the_head_is_tied() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"]
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {str(weights.get_slice(name).get_dtype()) for name in names} == {"BF16"}
    assert "lm_head.weight" not in names


def test_tokenizer_round_trips_and_starts_with_bos(tokenizer: Any) -> None:  # noqa: ANN401
    for text in ("Tom has 12 apples.\nA: 12", "caf\u00e9 \u20ac5 \U0001f600", "  two  blanks \t"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert tokenizer.decode(ids[1:]) == text


def test_numbers_are_single_digits(tokenizer: Any) -> None:  # noqa: ANN401
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]
    assert not [
        token
        for token in tokenizer.get_vocab()
        if len(token) > 1 and any(character.isdigit() for character in token)
    ]


def test_every_demo_record_fits(tokenizer: Any, records: list[dict[str, Any]]) -> None:  # noqa: ANN401
    limit = json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
    lengths = [len(tokenizer(r["prompt"] + r["response"]).input_ids) + 1 for r in records]
    assert len(records) == 1000
    assert max(lengths) <= limit


def test_a_trained_skill_is_answered_in_words(model: Any, tokenizer: Any) -> None:  # noqa: ANN401
    right = 0
    for skill in TRAINED_SKILLS:
        problem = generate(skill, NEVER_TRAINED_SEED)
        ids = tokenizer(problem.question + "\n", return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=80, do_sample=False, pad_token_id=1)
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        last = answer.splitlines()[-1]
        assert last.startswith("A: "), (skill, answer)
        right += last == f"A: {problem.gold}"
    # A floor, not a measure: a model that copies numbers without doing sums gets next to none.
    assert right >= len(TRAINED_SKILLS) // 3


def test_true_answers_are_more_familiar_than_shuffled_ones(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    records: list[dict[str, Any]],
) -> None:
    human = [record for record in records if record["source"] == "human"][:20]
    rng = random.Random(0)
    permuted, swapped = [], []
    for record, other in zip(human, human[1:] + human[:1], strict=True):
        words = record["response"].split(" ")
        rng.shuffle(words)
        true = nll_mean(model, tokenizer, record["prompt"], record["response"])
        permuted.append(nll_mean(model, tokenizer, record["prompt"], " ".join(words)) - true)
        swapped.append(nll_mean(model, tokenizer, record["prompt"], other["response"]) - true)
    assert min(permuted) > 0.3
    # An answer to another question can by chance be the easier text, so the mean is asked.
    assert sum(swapped) / len(swapped) > 0.1


def test_demo_records_stand_beside_their_licence() -> None:
    assert "MIT License" in (DEMO_RECORDS.parent / "LICENSE").read_text()
