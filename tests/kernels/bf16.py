"""Triton's interpreter, right in bf16.

As it comes, it keeps a bf16 value as its 16 bits and computes with those as with integers: sums and products are
silently wrong, and so is the rounding of fp32 where it carries. Here conversions are torch's, products of matrices are
those of the numbers, choosing is choosing bits, and other arithmetic in bf16, which no kernel of ours has, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_other_float = interpreter._convert_float


def mend_interpreter() -> None:
    """Let the interpreter be so in this process."""
    interpreter._convert_float = _convert_float
    builder = interpreter.InterpreterBuilder
    builder.create_dot = _of_numbers(builder.create_dot)
    for name in ("unary_op", "binary_op", "ternary_op"):
        setattr(builder, name, _refusing(getattr(builder, name)))


def _convert_float(
    values: npt.NDArray[Any],
    source: tl.dtype,
    target: tl.dtype,
    rounding_mode: Any,  # noqa: ANN401 - an enum of Triton's extension
) -> npt.NDArray[Any]:
    if (source, target) == (tl.bfloat16, tl.float32):
        return _numbers(values)
    if (source, target) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
        return rounded.view(torch.uint16).numpy()
    return _convert_other_float(values, source, target, rounding_mode)


def _numbers(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _of_numbers(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """Give `create_dot` whose operands in bf16 are numbers."""

    def numbers(x: Any) -> Any:  # noqa: ANN401 - of Triton's
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(_numbers(x.data), tl.float32)

    return lambda self, a, b, *rest: create_dot(self, numbers(a), numbers(b), *rest)


def _refusing(operate: Callable[..., Any]) -> Callable[..., Any]:
    """Give an operation that has no operands in bf16."""

    def refusing(self: Any, *operands: Any) -> Any:  # noqa: ANN401 - of Triton's
        *values, operation = operands
        if operation is not np.where and any(x.dtype.scalar == tl.bfloat16 for x in values):
            raise TypeError(f"arithmetic in bf16: {operation}")
        return operate(self, *operands)

    return refusing
