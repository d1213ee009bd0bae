"""Triton's interpreter, given tensors of the simulated GPU: a launch finds their memory; others are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.kernels.bf16 import mend_interpreter
from tests.kernels.hastened import hasten_interpreter
from tests.simulated import graphs
from tests.simulated.tensors import CudaTensor


def install() -> None:
    """Let kernels be launched so from now on."""
    mend_interpreter()
    hasten_interpreter()
    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__)


def _launch(execute: Any) -> Any:  # noqa: ANN401
    """Give a launch that takes tensors of the GPU, and no others."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = {**dict(enumerate(args)), **kwargs}
        memory = tuple(_memory(name, x) for name, one in given.items() for x in _tensors(one))

        def do(*memory: torch.Tensor) -> None:
            left = iter(memory)
            of = {name: _with_tensors(one, left) for name, one in given.items()}
            execute(
                self,
                *(of[number] for number in range(len(args))),
                **{name: of[name] for name in kwargs},
            )

        graph = graphs.capturing()
        if graph is None:
            do(*memory)
        else:
            graph.run(do, memory, {})

    return launch


def _tensors(argument: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Give the tensors whose addresses a kernel is given."""
    if isinstance(argument, tuple):
        return [tensor for one in argument for tensor in _tensors(one)]
    tensor = argument.base if isinstance(argument, TensorDescriptor) else argument
    return [tensor] if isinstance(tensor, torch.Tensor) else []


def _with_tensors(argument: Any, left: Iterator[torch.Tensor]) -> Any:  # noqa: ANN401
    """Give the argument with other tensors."""
    if isinstance(argument, tuple):
        return tuple(_with_tensors(one, left) for one in argument)
    if isinstance(argument, TensorDescriptor):
        return dataclasses.replace(argument, base=next(left))
    return next(left) if isinstance(argument, torch.Tensor) else argument


def _memory(name: int | str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, CudaTensor):
        raise ValueError(f"pointer argument {name} cannot be accessed from Triton (cpu tensor?)")
    return tensor.memory
