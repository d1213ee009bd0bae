"""Losses of one micro-batch, and their gradients, by walking the layers forward and back, without autograd.

In: a batch, what each token's loss weighs. Out: the tokens' losses, and gradients added to the
adapter's leaves if they are asked for. It computes what `TrainingForward`, `linear_nll` and torch's
backward pass compute (`tests/model/training/test_planned.py` holds both together in float64), with
less work: LoRA inside the matrix products, layers that fit in memory not computed twice, no product
that no gradient asks for.

The last layers keep everything, those before only their input, maybe in the host's memory: what the last ones keep is
given back before the first ones compute again, so that both never need memory at once. Without gradients nothing is
kept: a micro-batch then takes less than the least a step can take.

Letters: T tokens, R rows that predict, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model import ops, products
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import check_ids
from fam_engine.model.rope import RopeTables
from fam_engine.model.training.augmented import take_leaves
from fam_engine.model.training.batch import TrainingBatch, send_batch
from fam_engine.model.training.forward import attention_dtype
from fam_engine.model.training.functions import Dropout
from fam_engine.model.training.heads import LayerBatch, normed_into
from fam_engine.model.training.layer import Keep, TrainingLayer
from fam_engine.model.training.layer_inputs import HostMemory, LayerInputs
from fam_engine.model.training.recomputation import Policy
from fam_engine.model.weights import Weights

# Losses of tokens, float64[R], nats -> what each weighs in the loss, [R].
Weigh = Callable[[torch.Tensor], torch.Tensor]


class PlannedTraining:
    """Computes losses and gradients of batches of one model.

    Args:
        config: Its shape.
        weights: Its weights with the adapter's leaves; adapters in any of the matrices, or in none for losses alone.
        scratch: Where one of its matrices at a time is made ready.
        dtype: The compute dtype.
        device: Where.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        scratch: products.Scratch,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self._attention_dtype = attention_dtype(dtype, device)
        self._layers = [
            TrainingLayer(
                config, layer, index=index, dtype=dtype, attention_dtype=self._attention_dtype
            )
            for index, layer in enumerate(weights.layers)
        ]
        linears = [linear for layer in self._layers for linear in layer.linears]
        self._copies = [pair for linear in linears for pair in linear.copies()]
        self._scratch = scratch
        self._scratch_values = max(linear.scratch_values for linear in linears)
        wide = torch.promote_types(dtype, torch.float32)
        self._host = HostMemory(device)
        self._rope = RopeTables(config, dtype=wide, device=device)

    @torch.no_grad()
    def token_nll(self, batch: PackedBatch, *, dropout: Dropout) -> torch.Tensor:
        """Give what `forward_backward` gives, bit for bit, without gradients and with memory for no more than a layer.

        Args:
            batch: The batch.
            dropout: As there.
        """
        given, x_TD, calls, scratch = self._begin(batch, dropout)
        for layer, call in zip(self._layers, calls, strict=True):
            x_TD, _ = layer.forward(x_TD, call, scratch, keep=Keep.INPUT)
        normed_RD, _ = self._final_norm(x_TD)
        return self._losses(normed_RD, given, with_gradient=False)[0]

    @torch.no_grad()
    def forward_backward(
        self, batch: PackedBatch, weigh: Weigh, *, dropout: Dropout, policy: Policy
    ) -> torch.Tensor:
        """Add the gradients of sum(weight * nll) to those of the leaves.

        Args:
            batch: The batch.
            weigh: Called once with the tokens' losses; what it gives are constants to the gradient.
            dropout: What to leave out of LoRA's inputs.
            policy: What layers keep; see `recomputation.choose_policy`.

        Returns:
            float64[num_rows], nats, in the order of `batch.targets`.

        Raises:
            torch.OutOfMemoryError: The device has not so much memory.
            HostMemoryError: The host has not.
        """
        given, x_TD, calls, scratch = self._begin(batch, dropout)
        num_layers, kept = len(calls), []
        on_host = policy.num_on_host(num_layers)
        with contextlib.closing(LayerInputs(self._host, on_host, x_TD)) as inputs:
            for index, (layer, call) in enumerate(zip(self._layers, calls, strict=True)):
                keep = Keep.WHOLE if index >= num_layers - policy.num_whole else Keep.INPUT
                inputs.put(index, x_TD)
                x_TD, of_layer = layer.forward(x_TD, call, scratch, keep=keep)
                kept.append(of_layer)
            nll_R, gradient = self._head(x_TD, given, weigh)
            del x_TD, of_layer
            for index in reversed(range(num_layers)):
                assert gradient is not None
                layer, call, x_TD = self._layers[index], calls[index], inputs.take(index)
                gradient = layer.backward(gradient, x_TD, kept.pop(), call, scratch)
                del x_TD
        return nll_R

    def _begin(
        self, batch: PackedBatch, dropout: Dropout
    ) -> tuple[TrainingBatch, torch.Tensor, list[LayerBatch], torch.Tensor]:
        """Give the batch on the device, the first layer's input [T, D], the call of every layer, scratch memory."""
        check_ids(batch, self._config)
        given = send_batch(
            batch,
            self._device,
            head_dim=self._config.head_dim,
            attention_dtype=self._attention_dtype,
        )
        if self._copies:
            take_leaves(self._copies)
        x_TD = self._weights.embed_VD[given.input_ids].to(self._dtype)
        calls = self._calls(given, batch.num_positions, dropout)
        return given, x_TD, calls, self._scratch.reserve(self._scratch_values)

    def _calls(
        self, given: TrainingBatch, num_positions: int, dropout: Dropout
    ) -> list[LayerBatch]:
        """Give the call of every layer: the last has queries for the rows that predict only."""
        of_layers = self._rope.look_up(given.position_ids, num_positions=num_positions)
        tables = [[of_tokens] for of_tokens in of_layers]
        (cos_Td, sin_Td), rows_R = of_layers[-1], given.chosen.rows_R
        tables[-1] = [(cos_Td[rows_R], sin_Td[rows_R]), of_layers[-1]]
        last = self._config.num_layers - 1
        return [
            LayerBatch(
                attention=given.attention(window, index == last),
                tables=tables[index],
                chosen=given.chosen if index == last else None,
                dropout=dropout.of(index),
            )
            for index, window in enumerate(self._config.sliding_windows)
        ]

    def _head(
        self, x_RD: torch.Tensor, given: TrainingBatch, weigh: Weigh
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Give the tokens' losses, and the gradient of the last layer's output [R, D]."""
        normed_RD, rstd_R = self._final_norm(x_RD)
        nll_R, gradient_RD = self._losses(normed_RD, given, with_gradient=True)
        assert gradient_RD is not None
        gradient_RD.mul_(weigh(nll_R).to(gradient_RD.dtype)[:, None])
        dx_RD = torch.zeros_like(x_RD)
        norm_D = self._weights.final_norm_D
        ops.add_rmsnorm_backward(gradient_RD, x_RD, norm_D, rstd_R, grad_residual=dx_RD)
        return nll_R, dx_RD

    def _final_norm(self, x_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the normed rows, and 1 / rms of each."""
        normed_RD = torch.empty_like(x_RD)
        norm_D, eps = self._weights.final_norm_D, self._config.rms_norm_eps
        return normed_RD, normed_into(x_RD, norm_D, eps=eps, out=normed_RD)

    def _losses(
        self, normed_RD: torch.Tensor, given: TrainingBatch, *, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        targets_R = given.targets.to(torch.int64)
        return ops.linear_cross_entropy(
            normed_RD, self._weights.head_VD, targets_R, with_gradient=with_gradient
        )
