"""Triton's interpreter, given tensors of the simulated GPU: a launch finds their memory; others are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.kernels.bf16 import mend_interpreter
from tests.simulated import graphs
from tests.simulated.tensors import CudaTensor


def install() -> None:
    """Let kernels be launched so from now on."""
    mend_interpreter()
    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__)


def _launch(execute: Any) -> Any:  # noqa: ANN401
    """Give a launch that takes tensors of the GPU, and no others."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = {**dict(enumerate(args)), **kwargs}
        pointers = {name: x for name, x in given.items() if _tensor(x) is not None}

        def do(*memory: torch.Tensor) -> None:
            of = {
                name: _with_tensor(x, there)
                for (name, x), there in zip(pointers.items(), memory, strict=True)
            }
            execute(
                self,
                *(of.get(number, x) for number, x in enumerate(args)),
                **{name: of.get(name, x) for name, x in kwargs.items()},
            )

        graph = graphs.capturing()
        memory = tuple(_memory(name, x) for name, x in pointers.items())
        if graph is None:
            do(*memory)
        else:
            graph.run(do, memory, {})

    return launch


def _tensor(argument: Any) -> torch.Tensor | None:  # noqa: ANN401
    """Give the tensor whose address a kernel is given."""
    tensor = argument.base if isinstance(argument, TensorDescriptor) else argument
    return tensor if isinstance(tensor, torch.Tensor) else None


def _with_tensor(argument: Any, tensor: torch.Tensor) -> Any:  # noqa: ANN401
    """Give the argument with another tensor."""
    if isinstance(argument, TensorDescriptor):
        return dataclasses.replace(argument, base=tensor)
    return tensor


def _memory(name: int | str, argument: Any) -> torch.Tensor:  # noqa: ANN401
    tensor = _tensor(argument)
    if not isinstance(tensor, CudaTensor):
        raise ValueError(f"pointer argument {name} cannot be accessed from Triton (cpu tensor?)")
    return tensor.memory
