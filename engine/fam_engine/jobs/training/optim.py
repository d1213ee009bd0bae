"""The optimizer: AdamW of torch, or of bitsandbytes with its moments in 8 bits, and its state as plain tensors.

In: parameters by name, with gradients. Out: the same parameters, moved. Moments are fp32 (or 8-bit blocks); they are
saved by the parameter's name and not by its place, so a checkpoint says what belongs to what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fam_engine.errors import CorruptStateError, DeviceError

OptimizerName = Literal["adamw", "adamw8bit"]
BETAS = (0.9, 0.999)
EPS = 1e-8

_SEPARATOR = "::"


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
    """AdamW over named parameters.

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
        self._parameters = dict(parameters)
        self._optimizer = _make(name, list(self._parameters.values()), weight_decay)

    def step(self, learning_rate: float) -> None:
        """Move the parameters along their gradients, and forget those."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> OptimizerState:
        """Give a copy of the state."""
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, int | float] = {}
        for name, parameter in self._parameters.items():
            for field, value in self._optimizer.state.get(parameter, {}).items():
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
            parameter = self._parameters.get(name)
            if parameter is None:
                raise CorruptStateError(
                    f"the optimizer's state names `{name}`, which is not trained here",
                    code="E_CHECKPOINT",
                    hint="remove the folder and start again",
                )
            if isinstance(value, torch.Tensor) and field != "step":
                # All but torch's count of steps lies where the parameter is.
                value = value.to(parameter.device)
            self._optimizer.state[parameter][field] = value


def clip_grad_norm(parameters: Mapping[str, torch.Tensor], max_norm: float) -> float:
    """Scale all gradients so that their common L2 norm is at most `max_norm`.

    Returns:
        The norm before.
    """
    leaves = list(parameters.values())
    return float(torch.nn.utils.clip_grad_norm_(leaves, max_norm))


def _make(
    name: OptimizerName, leaves: list[torch.Tensor], weight_decay: float
) -> torch.optim.Optimizer:
    # The rate is set before every step.
    settings: dict[str, Any] = {
        "lr": 0.0,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": weight_decay,
    }
    if name == "adamw":
        return torch.optim.AdamW(leaves, **settings)
    import bitsandbytes

    _try_8bit(bitsandbytes, leaves[0].device)
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(leaves, **settings)
    return optimizer


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
