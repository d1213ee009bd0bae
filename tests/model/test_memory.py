"""The memory plan: against the tensors of a pass at the shapes of real models, and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine.model import memory, ops
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from fam_engine.model.logprobs import token_facts
from fam_engine.model.memory import (
    CONTEXT_BYTES,
    batch_bytes,
    free_bytes,
    plan_cards,
    plan_device,
    tokens_that_fit,
    weight_bytes,
)
from fam_engine.model.weights import LayerWeights, Linear, Weights
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import Entry, pack_reference
from tests.model.peak_bytes import PeakBytes
from tests.model.plain import random_entries

BF16, META = torch.bfloat16, torch.device("meta")
# Llama-3.2 1B and 3B, Llama-3.1 8B: [D, F, layers, query heads, key heads, head width, tied].
SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, 64, True),
    "3B": (3072, 8192, 28, 24, 8, 128, True),
    "8B": (4096, 14336, 32, 32, 8, 128, False),
}


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    hidden, inner, layers, heads, keys, width, tied = SHAPES[request.param]
    fields = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": width,
        "tie_word_embeddings": tied,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return ModelConfig.from_folder(tmp_path)


each_size = pytest.mark.parametrize("config", SHAPES, indirect=True)


def without_values(config: ModelConfig, num_layers: int) -> Decoder:
    """Make a model whose tensors have shapes only."""
    c = config
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=BF16, device=META)

    layer = LayerWeights(
        input_norm_D=empty(c.hidden_size),
        post_norm_D=empty(c.hidden_size),
        qkv=Linear(weight=empty(query + 2 * key, c.hidden_size)),
        o=Linear(weight=empty(c.hidden_size, query)),
        gate_up=Linear(weight=empty(2 * c.intermediate_size, c.hidden_size)),
        down=Linear(weight=empty(c.hidden_size, c.intermediate_size)),
    )
    table = empty(c.vocab_size, c.hidden_size)
    weights = Weights(
        embed_VD=table,
        head_VD=table,
        final_norm_D=empty(c.hidden_size),
        layers=(layer,) * num_layers,
    )
    return Decoder(config, weights, precision="bf16", compute_dtype=BF16, device=META)


@pytest.fixture
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kernels make the tensors that a GPU's make, and nothing else."""

    def attend(query: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)

    def find(name: str, *, is_triton: bool) -> Any:  # noqa: ANN401
        del is_triton
        return (
            (lambda x, *_, **__: torch.empty_like(x))
            if name == "rmsnorm"
            else (lambda *_, **__: None)
        )

    monkeypatch.setattr(ops, "has_varlen_attention", lambda *_: True)
    monkeypatch.setattr(ops, "varlen_attention", attend)
    monkeypatch.setattr(ops, "_find_kernel", find)


def own_prompts(num_tokens: int) -> list[Entry]:
    return random_entries(1000, [(60, 65)] * (num_tokens // 124))


def shared_prompts(num_tokens: int) -> list[Entry]:
    """Prompts of 600 with 16 answers each: 6 keys are gathered for a token, of 8 that are counted."""
    groups = num_tokens // 1752
    prompts = random_entries(1000, [(600, 1)] * groups)
    answers = random_entries(1000, [(1, 73)] * 16 * groups)
    return [(prompts[i // 16][0], answer) for i, (_, answer) in enumerate(answers)]


@each_size
@pytest.mark.parametrize(("entries", "slack"), [(own_prompts, 1.8), (shared_prompts, 1.15)])
@pytest.mark.usefixtures("kernels_of_a_gpu")
def test_no_batch_of_a_gpu_takes_more(
    config: ModelConfig, entries: Callable[[int], list[Entry]], slack: float
) -> None:
    batch, decoder = pack_reference(entries(8192)), without_values(config, 2)
    num_tokens = len(batch.input_ids)
    with PeakBytes() as tensors:
        decoder.hidden_rows(batch)
    estimate = batch_bytes(config, num_tokens, BF16, "cuda")
    # What the head takes in the end is no part of this.
    body = estimate - batch_bytes(config, 0, BF16, "cuda")
    assert tensors.peak <= estimate
    assert body <= slack * tensors.peak


@pytest.mark.parametrize("config", ["3B"], indirect=True)
def test_layers_without_rope_have_tables_of_their_own(config: ModelConfig) -> None:
    mixed = replace(config, uses_rope=(True, True, True, False) * 7)
    more = [batch_bytes(one, 1000, BF16, "cuda") for one in (config, mixed)]
    # cos and sin of 64 values in fp32.
    assert more[1] - more[0] == 1000 * 2 * 64 * 4


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16"])
def test_no_batch_of_a_cpu_takes_more(
    tiny_checkpoint: TinyCheckpoint, compute_dtype: ComputeDtype
) -> None:
    folder = tiny_checkpoint("llama", hidden_size=256, intermediate_size=688, vocab_size=4096)
    decoder = load_model(folder, precision="nf4", compute_dtype=compute_dtype)
    batch = pack_reference(random_entries(4096, [(100, 156)] * 16))
    num_tokens = len(batch.input_ids)
    with PeakBytes() as tensors:
        hidden_RD = decoder.hidden_rows(batch)
        head_VD = decoder.weights.head_VD
        token_facts(hidden_RD, head_VD, batch.targets, num_rows=batch.num_rows)
    estimate = batch_bytes(decoder.config, num_tokens, decoder.compute_dtype, "cpu")
    assert tensors.peak <= estimate


def plan(config: ModelConfig, precision: str, size: int, longest: int = 64) -> tuple[float, int]:
    """Give what is left on a card of a size in GiB, and the tokens of a batch."""
    plans = plan_cards(config, precision=precision, compute_dtype=BF16, longest=longest)
    return round(plans[size].left_bytes / 2**30, 2), plans[size].max_tokens_per_batch


@each_size
def test_cards_of_every_size_take_a_model_in_nf4(config: ModelConfig) -> None:
    tokens = [plan(config, "nf4", size)[1] for size in (8, 12, 16, 24)]
    assert tokens == sorted(tokens)
    assert all(4096 <= count <= 16384 and count % 64 == 0 for count in tokens)
    assert tokens[-1] == 16384


@pytest.mark.parametrize("config", ["8B"], indirect=True)
def test_by_hand(config: ModelConfig) -> None:
    # 6.979 G weights of 0.51587 bytes, 2 x 0.5253 G of 2 bytes, and the scratch of 28672 x 4096 of 2 bytes.
    expected = 6_979_321_856 * (0.5 + 1 / 64 + 1 / 4096) + 4 * 525_336_576 + 2 * 28672 * 4096
    assert abs(weight_bytes(config, "nf4", BF16) - expected) < 2
    assert plan(config, "nf4", 8) == (1.72, 16_384)
    assert plan(config, "bf16", 12) == (-3.71, 0)
    # Beside the weights there is no room for a record of 4096 tokens.
    assert plan(config, "bf16", 16) == (0.29, 64)
    assert plan(config, "bf16", 16, longest=4096) == (0.29, 0)
    assert plan(config, "bf16", 24)[1] == 16384


@pytest.mark.parametrize("config", ["1B"], indirect=True)
@pytest.mark.parametrize("longest", [1, 64, 5000])
def test_the_longest_record_fits_to_the_byte(config: ModelConfig, longest: int) -> None:
    def tokens(free: int) -> int:
        return plan_device(
            config,
            precision="bf16",
            compute_dtype=BF16,
            device_type="cuda",
            free=free,
            longest=longest,
        ).max_tokens_per_batch

    rows = -(-longest // 64) * 64
    least = weight_bytes(config, "bf16", BF16) + batch_bytes(config, rows, BF16, "cuda")
    assert tokens(least) >= 64
    assert tokens(least - 1) == 0


@each_size
def test_a_budget_takes_its_share_of_what_is_free(config: ModelConfig) -> None:
    for free in (1 << 30, 2 << 30):
        budget = tokens_that_fit(config, free, BF16, "cuda")
        assert batch_bytes(config, budget, BF16, "cuda") <= 0.7 * free
        assert batch_bytes(config, budget + 64, BF16, "cuda") > 0.7 * free or budget == 16384
    assert tokens_that_fit(config, -1, BF16, "cuda") == 64
    assert CONTEXT_BYTES >= 512 << 20


def test_what_the_allocator_holds_for_nobody_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (5, 20), "memory_reserved": 9, "memory_allocated": 7}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert free_bytes(torch.device("cuda")) == 5 + 9 - 7


@pytest.mark.parametrize(
    ("limit", "left"),
    [("6000000", 6_000_000 - 4_000_000 + 1_500_000), ("2000000", 0), ("max", None)],
)
def test_a_container_s_limit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, left: int | None
) -> None:
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    assert unlimited > 10_000_000
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1500000\nactive_file 7\n")
    found = free_bytes(torch.device("cpu"))
    if left is None:
        assert found > 10_000_000
    else:
        assert found == left
