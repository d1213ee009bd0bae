"""The types a model's weights are held in: what the checkpoint reader hands to the decoder.

In: tensors. Out: `Weights`, one `LayerWeights` a layer, one `Linear` a (merged) matrix.

q, k, v are one `Linear` merged on the output rows, and so are gate and up: one wide product costs
less than three narrow ones. Matrices are stored as the precision says (NF4, bf16, fp32) and are
brought to the compute dtype when used; vectors (norm weights, biases) are stored in the compute
dtype, where their size costs nothing.

Shapes: V vocabulary, D hidden size, N rows (output features), K columns (input features), R rank of
an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from fam_engine.model.ops import NF4Weight


@dataclass(frozen=True, kw_only=True)
class LoraPart:
    """The adapter of one source matrix, which fills rows of its (merged) `Linear`.

    Attributes:
        row_start: First row of the source in the `Linear`.
        row_stop: One past its last row.
        lora_A: float32[R, K].
        lora_B: float32[row_stop - row_start, R].
        scaling: Factor of B @ A: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA.
    """

    row_start: int
    row_stop: int
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float


@dataclass(frozen=True, kw_only=True)
class LoraDelta:
    """What an adapter adds to a `Linear`: scaling * B @ A on the rows of each part, by row."""

    parts: tuple[LoraPart, ...]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One matrix with its bias and adapter.

    Attributes:
        weight: [N, K] in bf16, fp32 or fp64; or NF4 parts that fill consecutive rows.
        bias: [N] in the compute dtype, or None.
        lora: The adapter, or None.
    """

    weight: torch.Tensor | tuple[NF4Weight, ...]
    bias: torch.Tensor | None = None
    lora: LoraDelta | None = None

    @property
    def out_features(self) -> int:
        """Return N, the number of rows."""
        if isinstance(self.weight, tuple):
            return sum(part.shape[0] for part in self.weight)
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Return K, the number of columns."""
        return self.weight[0].shape[1] if isinstance(self.weight, tuple) else self.weight.shape[1]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held, in a fixed order (for counting bytes)."""
        if isinstance(self.weight, tuple):
            for part in self.weight:
                yield from (part.packed, part.absmax, part.absmax2, part.offset, part.code2)
        else:
            yield self.weight
        if self.bias is not None:
            yield self.bias
        for adapter in self.lora.parts if self.lora else ():
            yield from (adapter.lora_A, adapter.lora_B)


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer. qkv stacks q, k, v on the rows; gate_up stacks gate, up.

    Attributes:
        input_norm_D: Weight of the norm before attention.
        post_norm_D: Weight of the norm before the MLP.
        qkv: [(num_heads + 2 * num_kv_heads) * head_dim, D].
        o: [D, num_heads * head_dim].
        gate_up: [2 * intermediate_size, D].
        down: [D, intermediate_size].
        q_norm: [head_dim] or None.
        k_norm: [head_dim] or None.
    """

    input_norm_D: torch.Tensor
    post_norm_D: torch.Tensor
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None

    def linears(self) -> dict[str, Linear]:
        """Give its matrices by name, in the order of the pass."""
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}

    def with_linears(self, change: Callable[[str, Linear], Linear]) -> LayerWeights:
        """Give the layer with what `change` makes of the name and the value of each matrix."""
        return replace(
            self,
            qkv=change("qkv", self.qkv),
            o=change("o", self.o),
            gate_up=change("gate_up", self.gate_up),
            down=change("down", self.down),
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held, in a fixed order."""
        yield from (self.input_norm_D, self.post_norm_D)
        for linear in self.linears().values():
            yield from linear.tensors()
        yield from (norm for norm in (self.q_norm, self.k_norm) if norm is not None)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A whole model.

    Attributes:
        embed_VD: The embedding table.
        head_VD: The output head; the same tensor object as `embed_VD` when tied.
        final_norm_D: Weight of the norm after the last layer.
        layers: The layers, first to last.
        fingerprint: That of the checkpoint they are from; None: from none.
    """

    embed_VD: torch.Tensor
    head_VD: torch.Tensor
    final_norm_D: torch.Tensor
    layers: tuple[LayerWeights, ...]
    fingerprint: str | None = None

    @property
    def memory_bytes(self) -> int:
        """Return the bytes all tensors take; a tied head counts once."""
        unique = {id(tensor): tensor for tensor in self.tensors()}
        return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())

    def linears(self) -> Iterator[Linear]:
        """Yield the matrices of all layers, layer after layer."""
        for layer in self.layers:
            yield from layer.linears().values()

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held, in a fixed order; a tied head comes twice."""
        yield from (self.embed_VD, self.head_VD, self.final_norm_D)
        for layer in self.layers:
            yield from layer.tensors()
