"""A decoder in plain float64: the truth of the decoder's tests, and small helpers around it.

One record at a time, dense attention with a mask, no packing, no shared prompts, one obvious line an
operation. It reads the same `Weights`, dequantized by bitsandbytes itself.

Letters: T tokens, D hidden size, V vocabulary, N x K a matrix, H query heads, d head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fam_engine.measure.results import TokenFacts
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.logprobs import token_facts
from fam_engine.model.nf4 import bitsandbytes_functional
from fam_engine.model.ops import NF4Weight
from fam_engine.model.rope import inverse_frequencies
from fam_engine.model.weights import LayerWeights, Linear, Weights
from tests.model.packing_reference import Entry, pack_reference


def facts_of(decoder: Decoder, entries: Sequence[Entry], *, grid: int = 64) -> list[TokenFacts]:
    """Score entries as one batch; give the facts of each."""
    batch = pack_reference(entries, grid=grid)
    whole = token_facts(
        decoder.hidden_rows(batch),
        decoder.weights.head_VD,
        batch.targets,
        num_rows=batch.num_rows,
    )
    bounds = batch.entry_rows.tolist()
    return [whole.slice(a, b) for a, b in itertools.pairwise(bounds)]


def random_entries(
    vocab_size: int, lengths: Sequence[tuple[int, int]], *, seed: int = 0
) -> list[Entry]:
    """Make entries of the given (context, target) lengths."""
    random = np.random.default_rng(seed)
    return [
        (random.integers(0, vocab_size, a).tolist(), random.integers(0, vocab_size, b).tolist())
        for a, b in lengths
    ]


def plain_logprobs(config: ModelConfig, weights: Weights, entry: Entry) -> npt.NDArray[np.float64]:
    """Give the log-probs of an entry's targets, float64."""
    context, targets = entry
    logits_TV = plain_logits(config, weights, [*context, *targets[:-1]])[len(context) - 1 :]
    logprobs_TV = logits_TV.log_softmax(-1)
    return logprobs_TV[torch.arange(len(targets)), torch.tensor(targets)].numpy()


def plain_logits(config: ModelConfig, weights: Weights, ids: Sequence[int]) -> torch.Tensor:
    """Give float64 logits [T, V]."""
    x_TD = weights.embed_VD[torch.tensor(ids)].double()
    for index, layer in enumerate(weights.layers):
        normed = _norm(x_TD, layer.input_norm_D, config)
        x_TD = x_TD + _apply(layer.o, _attention(config, layer, index, normed))
        gate, up = _apply(layer.gate_up, _norm(x_TD, layer.post_norm_D, config)).chunk(2, dim=-1)
        x_TD = x_TD + _apply(layer.down, torch.nn.functional.silu(gate) * up)
    return _norm(x_TD, weights.final_norm_D, config) @ weights.head_VD.double().T


def _norm(x: torch.Tensor, weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight.double()


def _attention(
    config: ModelConfig, layer: LayerWeights, index: int, x_TD: torch.Tensor
) -> torch.Tensor:
    heads, keys, width = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    q, k, v = _apply(layer.qkv, x_TD).unflatten(1, (-1, width)).split((heads, keys, keys), dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = _norm(q, layer.q_norm, config), _norm(k, layer.k_norm, config)
    if config.uses_rope[index]:
        q, k = _turn(config, q), _turn(config, k)
    k, v = (x.repeat_interleave(heads // keys, dim=1) for x in (k, v))
    scores_HTT = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
    distance = torch.arange(len(x_TD))[:, None] - torch.arange(len(x_TD))
    visible = (distance >= 0) & (distance < (config.sliding_windows[index] or len(x_TD)))
    weights_HTT = scores_HTT.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights_HTT, v).flatten(1)


def _turn(config: ModelConfig, x_THd: torch.Tensor) -> torch.Tensor:
    """Turn by position; angles in fp32 as published models have them (see model.rope)."""
    angles = torch.arange(len(x_THd)).float()[:, None] * inverse_frequencies(
        config.rope, config.head_dim
    )
    cos = (angles.cos() * config.rope.attention_factor).double()[:, None]
    sin = (angles.sin() * config.rope.attention_factor).double()[:, None]
    a, b = x_THd.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _apply(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    bias = 0 if linear.bias is None else linear.bias.double()
    return x @ dense(linear).T + bias


def dense(linear: Linear) -> torch.Tensor:
    """Give the matrix with its adapter in float64, a stored or dequantized value each."""
    if isinstance(linear.weight, tuple):
        matrix = torch.cat([dequantize(part) for part in linear.weight]).double()
    else:
        matrix = linear.weight.double()
    for part in linear.lora.parts if linear.lora else ():
        matrix = matrix.clone()
        delta = part.scaling * (part.lora_B.double() @ part.lora_A.double())
        matrix[part.row_start : part.row_stop] += delta
    return matrix


def dequantize(weight: NF4Weight) -> torch.Tensor:
    """Let bitsandbytes dequantize to fp32, as one row: test_nf4 tells why."""
    functional = bitsandbytes_functional()
    nested = functional.QuantState(
        absmax=weight.absmax2, code=weight.code2, blocksize=256, dtype=torch.float32
    )
    state = functional.QuantState(
        absmax=weight.absmax,
        shape=torch.Size((weight.shape[0] * weight.shape[1],)),
        code=functional.get_4bit_type("nf4", device="cpu"),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.float32,
        offset=weight.offset,
        state2=nested,
    )
    result: torch.Tensor = functional.dequantize_4bit(weight.packed[:, None], state)
    return result.view(weight.shape)
