"""The optimizer: AdamW, or that of bitsandbytes with its moments in 8 bits, and its state as plain tensors.

In: parameters by name, with gradients. Out: the same parameters, moved. An adapter is hundreds of small matrices: all
of them lie in one flat buffer, their gradients in another, so that norm and step are a kernel each (`flat_adamw`) and
the leaves are views. Moments are fp32 (or 8-bit blocks); they are saved by the parameter's name and not by its place,
as torch's own AdamW names them, so a checkpoint says what belongs to what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fam_engine.data.packing import on_grid
from fam_engine.errors import CorruptStateError, DeviceError
from fam_engine.model import ops

OptimizerName = Literal["adamw", "adamw8bit"]
BETAS = (0.9, 0.999)
EPS = 1e-8

_SEPARATOR = "::"
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Values between the starts of leaves: 64 bytes of fp32, more than kernels load at a time.
_ALIGNMENT = 16


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state.

    Attributes:
        tensors: `parameter::field` -> tensor on the CPU.
        numbers: `parameter::field` -> what is a plain number.
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, int | float]


class AdamW:
    """AdamW over named parameters, which it moves into a buffer of its own: the leaves become views of it.

    Args:
        name: `adamw`, or `adamw8bit` (bitsandbytes).
        parameters: PEFT tensor name -> leaf with requires_grad.
        weight_decay: Decoupled, of every parameter.

    Raises:
        DeviceError: `adamw8bit` where bitsandbytes cannot run it.
    """

    def __init__(
        self, name: OptimizerName, parameters: Mapping[str, torch.Tensor], *, weight_decay: float
    ) -> None:
        self._flat = FlatLeaves(parameters)
        self._clip = torch.ones(1, dtype=self._flat.values.dtype, device=self._flat.values.device)
        make = _FlatAdamW if name == "adamw" else _AdamW8bit
        self._optimizer: _FlatAdamW | _AdamW8bit = make(self._flat, weight_decay)

    def clip_grad_norm(self, max_norm: float) -> float:
        """Have the next step scale all gradients so that their common L2 norm is at most `max_norm`; 0: not scale them.

        Returns:
            The norm before.
        """
        self._flat.gather_gradients()
        found = ops.grad_norm(self._flat.gradients, max_norm=max_norm)
        if max_norm:
            self._clip = found[1:]
        return float(found[0])

    def step(self, learning_rate: float) -> None:
        """Move the parameters along their gradients, and forget those and how they were to be scaled."""
        self._flat.gather_gradients()
        self._optimizer.step(learning_rate, self._clip)
        self._clip = torch.ones_like(self._clip)
        self.zero_grad()

    def largest_value(self) -> float:
        """Give the largest magnitude of a parameter; NaN where one is none. Waits for the device."""
        return float(self._flat.values.abs().max())

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._flat.zero_gradients()

    def state(self) -> OptimizerState:
        """Give a copy of the state."""
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, int | float] = {}
        for name in self._flat.leaves:
            for field, value in self._optimizer.state(name).items():
                key = f"{name}{_SEPARATOR}{field}"
                if isinstance(value, torch.Tensor):
                    # Copied: 8-bit parameters share their code books, which safetensors refuses.
                    tensors[key] = value.detach().to("cpu", copy=True).contiguous()
                else:
                    numbers[key] = value
        return OptimizerState(tensors, numbers)

    def load_state(self, state: OptimizerState) -> None:
        """Take over a state.

        Raises:
            CorruptStateError: It belongs to other parameters.
        """
        for key, value in (*state.tensors.items(), *state.numbers.items()):
            name, _, field = key.rpartition(_SEPARATOR)
            if name not in self._flat.leaves:
                raise CorruptStateError(
                    f"the optimizer's state names `{name}`, which is not trained here",
                    code="E_CHECKPOINT",
                    hint="remove the folder and start again",
                )
            self._optimizer.load(name, field, value)


class FlatLeaves:
    """Leaves and their gradients, zero at first, as views of two buffers.

    Args:
        leaves: By name; their values move into the buffer.

    Attributes:
        leaves: The same leaves.
        places: Where each is in the buffers.
        values: [P], all values, end to end, with zeros between that no leaf has.
        gradients: [P], likewise.
    """

    def __init__(self, leaves: Mapping[str, torch.Tensor]) -> None:
        self.leaves = dict(leaves)
        self.places: dict[str, slice] = {}
        size = 0
        for name, leaf in self.leaves.items():
            self.places[name] = slice(size, size + leaf.numel())
            size += on_grid(leaf.numel(), _ALIGNMENT)
        self.values, self.gradients = next(iter(self.leaves.values())).new_zeros((2, size))
        for name, leaf in self.leaves.items():
            view = self.view(self.values, name)
            view.copy_(leaf.detach())
            leaf.data = view
        self.zero_gradients()

    def view(self, buffer: torch.Tensor, name: str) -> torch.Tensor:
        """Give a leaf's part of a buffer like these, in its shape."""
        return buffer[self.places[name]].view(self.leaves[name].shape)

    def gather_gradients(self) -> None:
        """Bring gradients into the buffer that were made elsewhere, or not at all, since it was last zero."""
        for name, leaf in self.leaves.items():
            view = self.view(self.gradients, name)
            if leaf.grad is None:
                view.zero_()
            elif leaf.grad.data_ptr() != view.data_ptr():
                view.copy_(leaf.grad)
            leaf.grad = view

    def zero_gradients(self) -> None:
        """Make all gradients zero; what is added to them from here on is added in the buffer."""
        self.gradients.zero_()
        for name, leaf in self.leaves.items():
            leaf.grad = self.view(self.gradients, name)


class _FlatAdamW:
    """The step of `fam_engine.kernels.flat_adamw`, and its state by leaf."""

    def __init__(self, flat: FlatLeaves, weight_decay: float) -> None:
        self._flat = flat
        self._weight_decay = weight_decay
        self._moments = {field: torch.zeros_like(flat.values) for field in _MOMENTS}
        self._num_steps = 0

    def step(self, learning_rate: float, clip: torch.Tensor) -> None:
        """Move the parameters along their gradients times `clip`."""
        self._num_steps += 1
        flat = self._flat
        scalars = ops.step_scalars(
            self._num_steps, learning_rate, betas=BETAS, weight_decay=self._weight_decay
        )
        ops.flat_adamw(
            flat.values,
            flat.gradients,
            *self._moments.values(),
            scalars=scalars.to(flat.values.device, flat.values.dtype),
            clip=clip,
            betas=BETAS,
            eps=EPS,
        )

    def state(self, name: str) -> dict[str, Any]:
        """Give a leaf's moments and the count of steps; nothing before the first."""
        if not self._num_steps:
            return {}
        moments = {field: self._flat.view(x, name) for field, x in self._moments.items()}
        return {"step": torch.tensor(float(self._num_steps)), **moments}

    def load(self, name: str, field: str, value: Any) -> None:  # noqa: ANN401 - tensor or number
        """Take over one of these."""
        if field == "step":
            self._num_steps = int(value)
        else:
            self._flat.view(self._moments[field], name).copy_(value)


class _AdamW8bit:
    """AdamW of bitsandbytes over the leaves, and its state."""

    def __init__(self, flat: FlatLeaves, weight_decay: float) -> None:
        import bitsandbytes

        _try_8bit(bitsandbytes, flat.values.device)
        self._flat = flat
        # The rate is set before every step.
        settings: dict[str, Any] = {"lr": 0.0, "betas": BETAS, "eps": EPS}
        self._optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            list(flat.leaves.values()), weight_decay=weight_decay, **settings
        )

    def step(self, learning_rate: float, clip: torch.Tensor) -> None:
        """Move the parameters along their gradients times `clip`."""
        self._flat.gradients.mul_(clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def state(self, name: str) -> dict[str, Any]:
        """Give a leaf's state; nothing before the first step."""
        found: dict[str, Any] = self._optimizer.state.get(self._flat.leaves[name], {})
        return found

    def load(self, name: str, field: str, value: Any) -> None:  # noqa: ANN401 - tensor or number
        """Take over one of these."""
        leaf = self._flat.leaves[name]
        self._optimizer.state[leaf][field] = (
            value.to(leaf.device) if isinstance(value, torch.Tensor) else value
        )


def _try_8bit(bitsandbytes: Any, device: torch.device) -> None:  # noqa: ANN401 - untyped module
    """Run one step on a throw-away parameter: bitsandbytes says only then what it cannot do."""
    probe = torch.zeros(64, 64, device=device, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    try:
        bitsandbytes.optim.AdamW8bit([probe]).step()
    except (RuntimeError, AttributeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DeviceError(
            f"bitsandbytes cannot run `adamw8bit` on {device.type}: {reason}",
            code="E_OPTIMIZER",
            hint="use --optimizer adamw",
        ) from None
