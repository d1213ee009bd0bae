"""The whole path of a GPU, kernel for kernel, on a CPU: scoring, generating and a training step.

Tensors lie on the CPU, `ops` is told that Triton serves them, and Triton interprets. So what is wired to what is tested
everywhere; what a real GPU makes of it is for tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.training.optim import AdamW
from fam_engine.kernels import linear_logprob_gpu
from fam_engine.kernels.linear_logprob import LinearLogprobs
from fam_engine.model import ops
from fam_engine.model.decoder import Decoder
from fam_engine.model.generation.cache import KVCache
from fam_engine.model.generation.generator import Generator
from fam_engine.model.generation.requests import Sampling
from fam_engine.model.generation.stepping import Stepper
from fam_engine.model.loading import load_model, with_adapter
from fam_engine.model.trainable import LoraSpec, Policy, TrainableModel
from tests.kernels.on import DEVICE
from tests.model.conftest import TinyCheckpoint
from tests.model.generation.conftest import by_sample, random_requests, write_tokenizer
from tests.model.packing_reference import pack_reference
from tests.model.plain import facts_of, random_entries
from tests.model.test_lora import save_adapter
from tests.model.training.reference import ALL, spec_of, trainable

# Eight records make more rows than the products of few rows take; two make fewer.
LENGTHS = [(9, 30), (1, 1), (40, 12), (3, 17), (25, 6), (7, 20), (2, 9), (5, 5)]
SHAPE: dict[str, Any] = {"intermediate_size": 128, "num_hidden_layers": 2}

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="the GPU itself is tested")


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Give what has Triton serve all tensors but fp64 from then on; it gives the kernels it found."""
    found: set[str] = set()
    find = ops._find_kernel

    def note(name: str, *, is_triton: bool) -> Any:  # noqa: ANN401
        found.add(name if is_triton else f"{name} of torch")
        return find(name, is_triton=is_triton)

    head = linear_logprob_gpu.linear_logprob

    def note_head(*operands: torch.Tensor) -> LinearLogprobs:
        found.add("linear_logprob")
        return head(*operands)

    def force() -> set[str]:
        monkeypatch.setattr(linear_logprob_gpu, "linear_logprob", note_head)
        monkeypatch.setattr(ops, "takes_triton", lambda x: x.dtype != torch.float64)
        monkeypatch.setattr(ops, "has_varlen_attention", lambda *_: True)
        monkeypatch.setattr(ops, "_find_kernel", note)
        return found

    return force


def load_nf4(folder: Path) -> Decoder:
    """Load a model in fp32 whose matrices alone are NF4: kernels take the head in the compute dtype."""
    decoder = load_model(folder, precision="nf4", compute_dtype="fp32")
    embed_VD, head_VD = (decoder.weights.embed_VD.float(), decoder.weights.head_VD.float())
    return Decoder(
        decoder.config,
        replace(decoder.weights, embed_VD=embed_VD, head_VD=head_VD),
        precision="nf4",
        compute_dtype=torch.float32,
        device=decoder.device,
    )


@pytest.mark.parametrize("has_adapter", [False, True])
@pytest.mark.parametrize("num_records", [8, 2])
def test_scores_are_those_of_the_cpu(
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    triton: Callable[[], set[str]],
    num_records: int,
    has_adapter: bool,
) -> None:
    folder = tiny_checkpoint("qwen3", **SHAPE)
    decoder = load_nf4(folder)
    if has_adapter:
        save_adapter(folder, tmp_path / "adapter", r=3, target_modules=["q_proj", "up_proj"])
        decoder = with_adapter(decoder, tmp_path / "adapter")
    entries = random_entries(160, LENGTHS[:num_records])
    expected = facts_of(decoder, entries)
    used = triton()
    for ours, theirs in zip(facts_of(decoder, entries), expected, strict=True):
        assert np.abs(ours.logprobs - theirs.logprobs).max() <= 2e-5
        assert np.array_equal(ours.ranks, theirs.ranks)
        assert np.abs(ours.entropies - theirs.entropies).max() <= 2e-5
        assert np.abs(ours.margins - theirs.margins).max() <= 2e-5
    few = {"nf4_linear"} if num_records == 2 else set()
    assert used == {"rmsnorm", "qk_norm_rope", "swiglu", "nf4_dequantize", "linear_logprob"} | few


@pytest.mark.parametrize(
    ("model_type", "overrides", "sampling"),
    [
        ("mistral", {"sliding_window": 20}, Sampling(8)),
        ("mistral", {"sliding_window": 20}, Sampling(8, temperature=1.0, top_p=0.9)),
        ("smollm3", {}, Sampling(8)),
    ],
)
def test_texts_are_those_of_the_cpu(
    tiny_checkpoint: TinyCheckpoint,
    triton: Callable[[], set[str]],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    overrides: dict[str, Any],
    sampling: Sampling,
) -> None:
    monkeypatch.setattr(Decoder, "ready_bytes", 1 << 60)  # as on a GPU: matrices stay NF4
    folder = tiny_checkpoint(model_type, **SHAPE, **overrides)
    write_tokenizer(folder, 160)
    decoder = load_nf4(folder)
    encoder = TextEncoder(folder)
    requests = random_requests([1, 30, 70], num_samples=2)
    expected = by_sample(
        list(Generator(decoder, encoder, max_slots=2).generate(requests, sampling))
    )
    used, rows, prompts = triton(), set(), set()
    advance, keep = Stepper.advance, KVCache._keep

    def note_rows(self: Stepper, num_rows: int) -> None:
        rows.add(num_rows)
        advance(self, num_rows)

    def note_prompts(self: KVCache, prompt: int, kv: Sequence[torch.Tensor]) -> int:
        prompts.add(prompt)
        return keep(self, prompt, kv)

    monkeypatch.setattr(Stepper, "advance", note_rows)
    monkeypatch.setattr(KVCache, "_keep", note_prompts)
    found = by_sample(list(Generator(decoder, encoder, max_slots=2).generate(requests, sampling)))
    assert found == expected
    assert {2} <= rows <= {1, 2}, "as few rows as texts"
    assert prompts == {0, 1, 2}, "kept apart from the slots"
    assert {"cached_attention", "sample", "nf4_linear"} <= used
    assert not any(name.endswith("of torch") for name in used)


def test_losses_and_gradients_are_those_of_the_cpu(
    tiny_checkpoint: TinyCheckpoint, triton: Callable[[], set[str]]
) -> None:
    """Of the path torch differentiates."""
    decoder = load_nf4(tiny_checkpoint("llama", **SHAPE))
    model = TrainableModel(decoder, LoraSpec(4, 8, 0.0, ("q_proj", "down_proj"), False), seed=0)
    batch = pack_reference(random_entries(160, LENGTHS), grid=64)

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        nll_R = model.reference_nll(batch, dropout_seed=None)
        nll_R.mean().backward()
        gradients = [leaf.grad for leaf in model.parameters.values() if leaf.grad is not None]
        for leaf in model.parameters.values():
            leaf.grad = None
        return nll_R.detach(), gradients

    (nll_R, gradients), used = step(), triton()
    found_R, found = step()
    assert (found_R - nll_R).abs().max() <= 2e-5
    for ours, theirs in zip(found, gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-8
    assert {"linear_cross_entropy", "nf4_dequantize"} <= used


TRAINING = {
    "add_rmsnorm",
    "add_rmsnorm.add_rmsnorm_backward",
    "linear_cross_entropy",
    "lora_backward",
    "nf4_dequantize",
    "qk_norm_rope",
    "qk_norm_rope.qk_norm_rope_backward",
    "sum_rows",
    "swiglu",
    "swiglu.swiglu_backward",
}


# The interpreter takes its time for the bits of masks: few matrices have them.
@pytest.mark.parametrize(
    ("model_type", "dropout", "target_modules"),
    [
        ("llama", 0.0, ALL),
        ("qwen3", 0.0, ALL),
        ("qwen3", 0.1, ("v_proj", "down_proj")),
        ("smollm3", 0.0, ("q_proj", "k_proj")),
    ],
)
def test_a_training_step_is_that_of_the_cpu(
    tiny_checkpoint: TinyCheckpoint,
    triton: Callable[[], set[str]],
    model_type: str,
    dropout: float,
    target_modules: tuple[str, ...],
) -> None:
    """Losses and gradients written out, then clipping and AdamW, of a batch with siblings."""
    decoder = load_nf4(tiny_checkpoint(model_type, **SHAPE))
    entries = random_entries(160, [(9, 5), (3, 12), (1, 1)])
    entries += [(entries[0][0], [3, 1, 4]), (entries[0][0], [9])]
    batch = pack_reference(entries, grid=1)

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor], float, dict[str, torch.Tensor]]:
        model = trainable(decoder, spec_of(target_modules, dropout=dropout))
        optimizer = AdamW("adamw", model.parameters, weight_decay=0.01)
        nll_R = model.forward_backward(
            batch,
            lambda nll_R: torch.full_like(nll_R, 1 / len(nll_R)),
            dropout_seed=2**62 + 3,
            policy=Policy(1),
        )
        gradients = {n: leaf.grad.clone() for n, leaf in model.parameters.items()}  # type: ignore[union-attr]
        norm = optimizer.clip_grad_norm(0.5)
        optimizer.step(1e-3)
        return nll_R, gradients, norm, model.parameters

    expected_R, expected, expected_norm, moved = step()
    used = triton()
    nll_R, gradients, norm, parameters = step()
    assert (nll_R - expected_R).abs().max() <= 2e-5
    for name, gradient in gradients.items():
        size = expected[name].abs().max()
        assert size > 0
        assert (gradient - expected[name]).abs().max() <= 1e-4 * size, name
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    assert norm > 0.5
    for name, parameter in parameters.items():
        assert (parameter - moved[name]).abs().max() <= 2e-5, name
    assert used == TRAINING | {"grad_norm", "flat_adamw"} | ({"dropout"} if dropout else set())
