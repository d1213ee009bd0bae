"""NF4 weights: bitsandbytes' own format, held as plain tensors.

In: a weight matrix (whose bits then are those bitsandbytes gives), or the tensors of a pre-quantized checkpoint.
Out: `NF4Weight`, which `ops` dequantizes into scratch memory.

The format: the row-major flattened matrix is cut into blocks of 64 values (a block may straddle
rows), each value is a 4-bit index into the NF4 table times its block's absmax. The absmaxes are
quantized again ("double quantization"): minus their mean (`offset`), in blocks of 256, to 8-bit
indices into `code2` times `absmax2`. Merging q, k, v (or gate, up) would give one mean where a
checkpoint has three, so a merged matrix is a tuple of weights, each dequantized into its own rows.
Weights without double quantization are refused: one format means one dequantizer to keep exact on
every device.
"""

from __future__ import annotations

import logging
import math
import sys
from functools import cache
from types import ModuleType
from typing import Final, NoReturn

import torch

from fam_engine.data.plain_files import parse_json_object
from fam_engine.errors import ModelRefusedError
from fam_engine.model import ops
from fam_engine.model.fields import Json
from fam_engine.model.ops import NF4Weight

BLOCK_SIZE: Final = 64
NESTED_BLOCK_SIZE: Final = 256
CODE: Final = "E_MODEL_NF4"
# A checkpoint's quantized matrix `x.weight` has these tensors beside it, named `x.weight.absmax`
# and so on.
STATE_NAME: Final = "quant_state.bitsandbytes__nf4"
PART_NAMES: Final = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", STATE_NAME)


def quantize(weight: torch.Tensor) -> NF4Weight:
    """Quantize a matrix as bitsandbytes does on a CPU, on the device it is on.

    The absmaxes, a 64th of the values, are quantized by bitsandbytes itself, always on the CPU: so a matrix has the
    same bits wherever it is quantized. (Its code for CPUs looks them up in cells, and so has 0.15 % of the codes
    different from the nearest ones that its CUDA kernels find; and a mean depends on the order of its sum.)

    Args:
        weight: [N, K] in bf16, fp16 or fp32, contiguous, finite. Quantized from its stored values, not from a
            rounding of them.

    Returns:
        The weight, on the same device.
    """
    packed, absmax = ops.nf4_quantize(weight)
    absmax = absmax.cpu()
    offset = absmax.mean()
    codes, state = bitsandbytes_functional().quantize_blockwise(
        absmax - offset, blocksize=NESTED_BLOCK_SIZE
    )
    return NF4Weight(
        packed=packed,
        absmax=codes.to(weight.device),
        absmax2=state.absmax.to(weight.device),
        offset=offset.to(weight.device),
        code2=state.code.to(weight.device),
        shape=(weight.shape[0], weight.shape[1]),
    )


def from_checkpoint(name: str, parts: dict[str, torch.Tensor], shape: tuple[int, int]) -> NF4Weight:
    """Take over a matrix that a checkpoint holds quantized by bitsandbytes.

    Args:
        name: The tensor's name, for messages.
        parts: The tensors by the ends of their names: `weight` the packed indices, and those of
            `PART_NAMES`.
        shape: (N, K) the model's config asks for.

    Raises:
        ModelRefusedError: Another format than 64-blocks of NF4 with double quantization, sizes that
            do not fit, or values that are not finite.
    """
    offset = _read_offset(name, parts[STATE_NAME], shape)
    num_blocks = -(-math.prod(shape) // BLOCK_SIZE)

    def part(end: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        tensor = parts[end]
        if tensor.dtype != dtype or tensor.numel() != numel:
            found = f"`{end}` of {tensor.numel()} {tensor.dtype}"
            _refuse(name, f"has {found}; expected {numel} {dtype}")
        if dtype.is_floating_point and not bool(tensor.isfinite().all()):
            _refuse(name, f"has a value in `{end}` that is not finite")
        return tensor.view(-1)

    code = bitsandbytes_functional().get_4bit_type("nf4", device="cpu")
    if not torch.equal(part("quant_map", torch.float32, 16), code):
        _refuse(name, "has a `quant_map` that is not the NF4 table")
    return NF4Weight(
        packed=part("weight", torch.uint8, -(-math.prod(shape) // 2)),
        absmax=part("absmax", torch.uint8, num_blocks),
        absmax2=part("nested_absmax", torch.float32, -(-num_blocks // NESTED_BLOCK_SIZE)),
        offset=torch.tensor(offset, dtype=torch.float32),
        code2=part("nested_quant_map", torch.float32, 256),
        shape=shape,
    )


def _read_offset(name: str, state: torch.Tensor, shape: tuple[int, int]) -> float:
    """Check the JSON that bitsandbytes keeps as bytes in a tensor, and give the offset in it."""
    values = parse_json_object(bytes(state.view(-1).tolist()), code=CODE, where=name)
    expected: dict[str, Json] = {
        "quant_type": "nf4",
        "blocksize": BLOCK_SIZE,
        "nested_blocksize": NESTED_BLOCK_SIZE,
        "nested_dtype": "float32",
        "shape": list(shape),
    }
    for key, value in expected.items():
        if values.get(key) != value:
            _refuse(name, f"has the {key} {values.get(key)!r}; supported: {value!r}")
    offset: Json = values.get("nested_offset")
    is_number = isinstance(offset, int | float) and not isinstance(offset, bool)
    if not is_number or not abs(offset) <= torch.finfo(torch.float32).max:
        _refuse(name, f"has the nested_offset {offset!r}; expected a finite number")
    return float(offset)


def _refuse(name: str, problem: str) -> NoReturn:
    raise ModelRefusedError(f"the quantized matrix `{name}` {problem}", code=CODE)


@cache
def bitsandbytes_functional() -> ModuleType:
    """Import bitsandbytes late, and without its side effects.

    On CPUs with AVX512-BF16 its import asks the `kernels` package, if there is one, to download and
    run compiled code, and warns if it can't. We use none of that: nothing is loaded from the
    network, so `kernels` is hidden meanwhile.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = logger.level, "kernels" not in sys.modules
    logger.setLevel(logging.ERROR)
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes.functional as functional
    finally:
        logger.setLevel(level)
        if hidden:
            del sys.modules["kernels"]
    assert isinstance(functional, ModuleType)
    return functional
