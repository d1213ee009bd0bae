"""The decoder against a plain float64 forward: every config field, every precision."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.config import Precision
from fam_engine.errors import ModelRefusedError
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder, check_ids
from fam_engine.model.generation.prompts import pack_prompts
from fam_engine.model.loading import load_model
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.plain import facts_of, plain_logprobs, random_entries

# One-token prompts and answers, lengths around the grid of 64, and one longer than a block of 512
# queries in neither part (that has its own test).
LENGTHS = [(1, 1), (1, 2), (2, 1), (5, 33), (64, 64), (63, 2), (40, 65), (7, 90)]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "all keys": ("llama", {"num_key_value_heads": 4}),
    "one key": ("llama", {"num_key_value_heads": 1}),
    "wide head": ("llama", {"head_dim": 40, "hidden_size": 48}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "eps": ("llama", {"rms_norm_eps": 0.1}),
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    ),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "window": ("mistral", {"sliding_window": 17}),
    "window of 1": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2 windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3 windows": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 9, "rope_parameters": YARN},
    ),
}


def entries_with_siblings(vocab_size: int) -> list[Entry]:
    entries = random_entries(vocab_size, LENGTHS)
    context = entries[3][0]
    return [*entries, (context, [3, 1, 4, 1, 5]), entries[0], (context, [9])]


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_the_plain_forward(tiny_checkpoint: TinyCheckpoint, case: str) -> None:
    model_type, overrides = CASES[case]
    decoder = load_model(
        tiny_checkpoint(model_type, **overrides), precision="fp32", compute_dtype="fp64"
    )
    entries = entries_with_siblings(decoder.config.vocab_size)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        truth = plain_logprobs(decoder.config, decoder.weights, entry)
        assert np.abs(facts.logprobs - truth).max() <= 1e-9


@pytest.mark.parametrize("case", ["llama", "biases", "yarn", "window", "qwen2", "qwen3", "smollm3"])
def test_fp32_is_within_5e_5_a_token(tiny_checkpoint: TinyCheckpoint, case: str) -> None:
    model_type, overrides = CASES[case]
    decoder = load_model(
        tiny_checkpoint(model_type, **overrides), precision="fp32", compute_dtype="fp32"
    )
    entries = entries_with_siblings(decoder.config.vocab_size)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        truth = plain_logprobs(decoder.config, decoder.weights, entry)
        assert np.abs(facts.logprobs - truth).max() <= 5e-5


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_quantized_with_fp32_compute_is_within_5e_5_a_token(
    tiny_checkpoint: TinyCheckpoint, precision: Precision
) -> None:
    decoder = load_model(tiny_checkpoint("qwen2"), precision=precision, compute_dtype="fp32")
    entries = entries_with_siblings(decoder.config.vocab_size)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        truth = plain_logprobs(decoder.config, decoder.weights, entry)
        assert np.abs(facts.logprobs - truth).max() <= 5e-5


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "smollm3"])
def test_bf16_sequence_mean_is_within_0_02(
    tiny_checkpoint: TinyCheckpoint, model_type: str, precision: Precision
) -> None:
    # Against float64 on the same rounded or dequantized weights. 0.03 are the weights' spread of a
    # real model (initializer_range 0.02 to 0.05); the tests above use 0.1 to make mistakes loud.
    folder = tiny_checkpoint(model_type, initializer_range=0.03)
    decoder = load_model(folder, precision=precision, compute_dtype="bf16")
    entries = random_entries(decoder.config.vocab_size, [(20, 60), (64, 100), (3, 30)])
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        truth = plain_logprobs(decoder.config, decoder.weights, entry)
        assert abs((facts.logprobs - truth).mean()) <= 0.02


def test_scores_of_many_records_are_near_float64(tiny_checkpoint: TinyCheckpoint) -> None:
    """fp32 to a sequence mean of 5e-6; bf16 without a side it leans to, and in the same order."""
    folder = tiny_checkpoint("llama", initializer_range=0.03, num_hidden_layers=4)
    entries = random_entries(160, [(3 + i, 24 + 5 * (i % 9)) for i in range(48)], seed=4)
    errors, means = {}, {}
    for compute_dtype in ("fp32", "bf16"):
        decoder = load_model(folder, precision="nf4", compute_dtype=compute_dtype)
        truth = [plain_logprobs(decoder.config, decoder.weights, entry) for entry in entries]
        found = [facts.logprobs for facts in facts_of(decoder, entries)]
        errors[compute_dtype] = [f - t for f, t in zip(found, truth, strict=True)]
        means[compute_dtype] = [[x.mean() for x in found], [x.mean() for x in truth]]
    assert max(abs(error.mean()) for error in errors["fp32"]) <= 5e-6
    tokens = np.concatenate(errors["bf16"])
    assert np.quantile(np.abs(tokens), 0.99) <= 0.15
    assert np.abs(tokens).mean() <= 0.05
    assert abs(tokens.mean()) <= 2e-3
    assert max(abs(error.mean()) for error in errors["bf16"]) <= 0.02
    ranks = np.argsort(np.argsort(means["bf16"], axis=1), axis=1)
    assert (
        np.corrcoef(ranks)[0, 1] >= 0.9995
    )  # 48 random records lie closer together than real ones


@pytest.mark.parametrize("case", ["llama", "window"])
def test_segments_longer_than_a_block_of_queries(
    tiny_checkpoint: TinyCheckpoint, case: str
) -> None:
    model_type, overrides = CASES[case]
    folder = tiny_checkpoint(
        model_type, **overrides, num_hidden_layers=2, max_position_embeddings=4096
    )
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    # 1300 and 600 need three and two blocks; 2300 positions make the rotary tables grow.
    for entry in random_entries(decoder.config.vocab_size, [(1300, 600), (20, 1025), (1700, 600)]):
        truth = plain_logprobs(decoder.config, decoder.weights, entry)
        assert np.abs(facts_of(decoder, [entry])[0].logprobs - truth).max() <= 1e-9


def test_every_config_field_that_shapes_the_result_is_in_a_case(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    base = ModelConfig.from_folder(tiny_checkpoint("llama"))
    configs = [
        ModelConfig.from_folder(tiny_checkpoint(model_type, **overrides))
        for model_type, overrides in CASES.values()
    ]
    # Sizes of the checkpoint (checked by name when it is read), and what decoding does not use.
    elsewhere = {
        "vocab_size",
        "intermediate_size",
        "max_position_embeddings",
        "quantization",
        "bos_token_id",
        "eos_token_ids",
        "num_attention_heads",
    }
    for field in fields(ModelConfig):
        if field.name not in elsewhere:
            values = [getattr(config, field.name) for config in configs]
            assert any(value != getattr(base, field.name) for value in values), field.name


def test_hidden_rows_are_finite_where_rows_are_filling(tiny_checkpoint: TinyCheckpoint) -> None:
    decoder = load_model(tiny_checkpoint("qwen3"), precision="bf16", compute_dtype="bf16")
    batch = pack_reference(random_entries(decoder.config.vocab_size, [(3, 4)]))
    hidden_RD = decoder.hidden_rows(batch)
    assert hidden_RD.shape == (64, 64)
    assert hidden_RD.dtype == torch.bfloat16
    assert bool(hidden_RD.isfinite().all())


def test_sizes(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("qwen2", num_hidden_layers=1, tie_word_embeddings=True)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp32")
    qkv, o, mlp, norms = 128 * 64 + 128, 64 * 64, 3 * 96 * 64, 3 * 64
    assert decoder.num_parameters == qkv + o + mlp + norms + 160 * 64
    assert decoder.weights.memory_bytes == 4 * decoder.num_parameters
    nf4 = load_model(folder, precision="nf4", compute_dtype="fp32")
    assert nf4.num_parameters == decoder.num_parameters
    assert nf4.weights.memory_bytes < decoder.weights.memory_bytes


def test_an_adapter_is_part_of_the_result(tiny_checkpoint: TinyCheckpoint) -> None:
    from fam_engine.model.weights import LoraDelta, LoraPart

    torch.manual_seed(0)
    plain = load_model(tiny_checkpoint("llama"), precision="nf4", compute_dtype="fp32")
    layers = list(plain.weights.layers)
    # On v only, rows 96 to 128 of the merged q, k, v; and on down.
    part = LoraPart(
        row_start=96,
        row_stop=128,
        lora_A=torch.randn(4, 64) * 0.1,
        lora_B=torch.randn(32, 4) * 0.1,
        scaling=2.0,
    )
    down = LoraPart(
        row_start=0,
        row_stop=64,
        lora_A=torch.randn(8, 96) * 0.1,
        lora_B=torch.randn(64, 8) * 0.1,
        scaling=0.5,
    )
    layers[1] = replace(
        layers[1],
        qkv=replace(layers[1].qkv, lora=LoraDelta(parts=(part,))),
        down=replace(layers[1].down, lora=LoraDelta(parts=(down,))),
    )
    weights = replace(plain.weights, layers=tuple(layers))
    adapted = Decoder(
        plain.config,
        weights,
        precision="nf4",
        compute_dtype=torch.float32,
        device=plain.device,
    )
    (entry,) = random_entries(plain.config.vocab_size, [(9, 40)])
    (without,), (facts,) = facts_of(plain, [entry]), facts_of(adapted, [entry])
    truth = plain_logprobs(plain.config, weights, entry)
    assert np.abs(facts.logprobs - truth).max() <= 5e-5
    assert np.abs(facts.logprobs - without.logprobs).max() > 1e-2


def test_a_decoder_needs_no_folder(tmp_path: Path, tiny_checkpoint: TinyCheckpoint) -> None:
    loaded = load_model(tiny_checkpoint("llama"), precision="fp32", compute_dtype="fp32")
    built = Decoder(
        loaded.config,
        loaded.weights,
        precision="fp32",
        compute_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    entries = random_entries(loaded.config.vocab_size, [(5, 6)])
    assert np.array_equal(
        facts_of(built, entries)[0].logprobs, facts_of(loaded, entries)[0].logprobs
    )


@pytest.mark.parametrize("token_id", [-1, 258])
def test_ids_without_a_row_are_refused_before_they_are_looked_up(
    tiny_model: Path, token_id: int
) -> None:
    """By numpy and torch a negative one would be counted from the end."""
    batch = pack_prompts([np.array([0, token_id], np.int32)], at_least=0)
    with pytest.raises(ModelRefusedError, match=f"the id {token_id}, the model has rows for 258"):
        check_ids(batch, ModelConfig.from_folder(tiny_model))
