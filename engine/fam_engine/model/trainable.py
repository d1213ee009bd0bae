"""A model with an adapter to train: gradients of batches, and losses of their tokens.

In: a `Decoder`, the form of the adapter, packed batches. Out: the negative log-likelihood of every
token to predict, and gradients to A and B and nothing else. `forward_backward` is what a training step
takes: gradients written out. `token_nll` and `base_token_nll` are its losses alone, for validation and for
what the base says. `reference_nll` is the plain computation, which torch can differentiate: the reference
the others are held to, and nothing a run asks for.

A training batch is a scoring batch: packed, prompts shared by siblings, response rows and end of
turn to predict. Sharing changes no gradient (without dropout; with it, siblings share their
prompt's masks). The result is deterministic on one machine and thread count.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.lora import Adapter, LoraSpec, attach_adapter, tensor_name
from fam_engine.model.memory import num_multiprocessors
from fam_engine.model.training.forward import TrainingForward
from fam_engine.model.training.functions import Dropout, linear_nll
from fam_engine.model.training.layer_inputs import HostMemoryError
from fam_engine.model.training.planned import PlannedTraining, Weigh
from fam_engine.model.training.recomputation import (
    BatchShape,
    Policy,
    TokenBytes,
    activation_bytes,
    choose_policy,
    token_bytes,
)
from fam_engine.model.weights import Weights

__all__ = ["HostMemoryError", "LoraSpec", "Policy", "TrainableModel"]


class TrainableModel:
    """A frozen model and the adapter that is trained on it.

    Args:
        decoder: The model, without an adapter.
        spec: The form of the adapter.
        seed: Of the adapter's first values.

    Attributes:
        spec: The form of the adapter.
        parameters: The leaves to train by the names PEFT's file has for them: layer after layer,
            q, k, v, o, gate, up, down, A before B; float32 (float64 with that compute dtype).
        device: Where they are.
    """

    def __init__(self, decoder: Decoder, spec: LoraSpec, *, seed: int) -> None:
        linears = decoder.weights.linears()
        assert all(linear.lora is None for linear in linears), "the base must have no adapter"
        self.spec = spec
        self.device = decoder.device
        wide = torch.promote_types(decoder.compute_dtype, torch.float32)
        self.parameters = {
            name: tensor.to(self.device, wide).requires_grad_()
            for name, tensor in _first_values(spec, decoder.config, seed).items()
        }
        self._decoder = decoder
        self._weights = self._attach(self.parameters)

    def reference_nll(self, batch: PackedBatch, *, dropout_seed: int | None) -> torch.Tensor:
        """Give the negative log-likelihood of every token to predict, by the plain computation.

        Args:
            batch: The batch.
            dropout_seed: What LoRA's dropout follows from, not negative: the same seed, the same
                masks. None: no dropout.

        Returns:
            float64[num_rows], nats, in the order of `batch.targets`, with gradient unless torch is
            told to make none.
        """
        dropout = self._dropout(dropout_seed)
        hidden_RD = self._reference.hidden_rows(self._weights, batch, dropout=dropout)
        targets_R = torch.from_numpy(batch.targets[: batch.num_rows])
        targets_R = targets_R.to(hidden_RD.device, torch.int64)
        return linear_nll(hidden_RD, self._weights.head_VD, targets_R)

    def token_nll(self, batch: PackedBatch) -> torch.Tensor:
        """Give the negative log-likelihood of every token to predict, without dropout and gradient.

        The bits are those of `forward_backward` without dropout.

        Args:
            batch: The batch; it takes less memory than the least a step can take of it.

        Returns:
            float64[num_rows], nats, in the order of `batch.targets`.
        """
        return self._planned.token_nll(batch, dropout=self._dropout(None))

    def base_token_nll(self, batch: PackedBatch) -> torch.Tensor:
        """Give the same of the model without its adapter."""
        return self._planned_base.token_nll(batch, dropout=self._dropout(None))

    def forward_backward(
        self, batch: PackedBatch, weigh: Weigh, *, dropout_seed: int | None, policy: Policy
    ) -> torch.Tensor:
        """Add the gradients of sum(weight * nll) to the parameters', without autograd.

        What `reference_nll`, weighed and differentiated, gives, but for rounding.

        Args:
            batch: The batch.
            weigh: Gives each token's weight [num_rows] from the losses; called once. No gradient
                flows through it.
            dropout_seed: As of `reference_nll`.
            policy: What layers keep for the backward pass, as
                `fam_engine.model.training.recomputation` chooses; it changes no bit of the result.

        Returns:
            float64[num_rows], nats, in the order of `batch.targets`, without gradient.

        Raises:
            torch.OutOfMemoryError: The device has not so much memory.
            HostMemoryError: The host has not.
        """
        return self._planned.forward_backward(
            batch, weigh, dropout=self._dropout(dropout_seed), policy=policy
        )

    def choose_policy(self, batch: PackedBatch, *, free: int, host_free: int) -> Policy:
        """Choose what layers keep of a batch; see `recomputation.choose_policy`."""
        return choose_policy(
            self._token_bytes,
            _shape(batch),
            num_layers=self._decoder.config.num_layers,
            free=free,
            host_free=host_free,
        )

    def activation_bytes(self, batch: PackedBatch, policy: Policy) -> int:
        """Estimate what the activations of a batch take on the device."""
        num_layers = self._decoder.config.num_layers
        return activation_bytes(self._token_bytes, _shape(batch), policy, num_layers=num_layers)

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        decoder = self._decoder
        return token_bytes(
            decoder.config,
            self.spec,
            dtype=decoder.compute_dtype,
            device=self.device,
            num_multiprocessors=num_multiprocessors(self.device),
        )

    @cached_property
    def _reference(self) -> TrainingForward:
        decoder = self._decoder
        return TrainingForward(
            decoder.config, decoder.scratch, dtype=decoder.compute_dtype, device=self.device
        )

    @cached_property
    def _planned(self) -> PlannedTraining:
        return self._planned_with(self._weights)

    @cached_property
    def _planned_base(self) -> PlannedTraining:
        return self._planned_with(self._decoder.weights)

    def _planned_with(self, weights: Weights) -> PlannedTraining:
        decoder = self._decoder
        return PlannedTraining(
            decoder.config,
            weights,
            decoder.scratch,
            dtype=decoder.compute_dtype,
            device=self.device,
        )

    def _dropout(self, seed: int | None) -> Dropout:
        rate = 0.0 if seed is None else self.spec.dropout
        # Filled on the device: nothing to copy there.
        return Dropout(rate, torch.full((1,), seed or 0, dtype=torch.int64, device=self.device))

    def _attach(self, tensors: dict[str, torch.Tensor]) -> Weights:
        """Give the model's weights with A and B from these tensors (not copies of them)."""
        matrices = {
            module: (tensors[tensor_name(module, "A")], tensors[tensor_name(module, "B")])
            for module in self.spec.modules(self._decoder.config)
        }
        adapter = Adapter(rank=self.spec.rank, scaling=self.spec.scaling, matrices=matrices)
        decoder = self._decoder
        return attach_adapter(decoder.weights, adapter, decoder.config, device=self.device)


def _shape(batch: PackedBatch) -> BatchShape:
    return BatchShape(len(batch.input_ids), batch.num_positions)


def _first_values(spec: LoraSpec, config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Give an A as PEFT initialises it and a B of zeros for every matrix, float32, by name.

    PEFT calls kaiming_uniform_(a=sqrt(5)), which is uniform within 1 / sqrt(K). The values are drawn
    on the CPU, so that they are the same for every device.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for module, (num_rows, num_columns) in spec.modules(config).items():
        bound = 1 / math.sqrt(num_columns)
        lora_A = torch.empty((spec.rank, num_columns)).uniform_(-bound, bound, generator=generator)
        values[tensor_name(module, "A")] = lora_A
        values[tensor_name(module, "B")] = torch.zeros((num_rows, spec.rank))
    return values
