"""How Triton kernels are launched, as data: block sizes come from tables, never from tuning at run time.

A kernel's file gives a `Launch` for shapes, dtype and GPU, launches with it, and lists as `Variant`s what it launches
for the models it is made for. The same variants are compiled without a GPU for every capability
(tests/kernels/offline.py), so what is measured there is what runs.

Rules for all kernels here. Values are brought to float32 when loaded. `enable_fp_fusion` is said, not left to Triton,
whose default changed between versions. Sizes known with the model (D, N, K, V) are constexpr; counts of a batch (T, R)
are not specialized. Sums across programs go through partial results and a second kernel, in a fixed order; no atomics.

The kernels of a decoding step are small and many: on capabilities 9.0 and 10.0 each is brought onto the GPU while the
one before it still runs ("programmatic dependent launch" in the CUDA C++ programming guide), and waits there until that
one has ended (`await_previous`): on an H100 it then begins within 1 to 1.5 us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Final

import torch
import triton
import triton.language as tl

# Compute capabilities compiled for: A100; 3090; 4090; H100, H200; B200; 5090.
CAPABILITIES: Final = (80, 86, 89, 90, 100, 120)
# Bytes of shared memory a block may have there (CUDA C programming guide, table of technical specifications).
SHARED_LIMIT: Final = {
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
}
# Triton's interpreter, on CPU tensors: it has no inline assembly.
INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
_COMPILED = tl.constexpr(not INTERPRETED)
# How Triton names a pointer to each dtype.
POINTER: Final = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """What a kernel is compiled with.

    Attributes:
        constants: Its constexpr arguments by name.
        num_warps: Warps a program.
        num_stages: Stages of the software pipeline.
        enable_fp_fusion: Whether a product and a sum may become one rounding.
        is_early: Whether the kernel may be brought onto the GPU before the one before it has ended, as it calls
            `await_previous` before it touches what others write or read.
    """

    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    enable_fp_fusion: bool = True
    is_early: bool = False

    @cached_property
    def options(self) -> dict[str, Any]:
        """Return what the compiler takes beside the arguments."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.enable_fp_fusion,
        }

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the keywords of a launch: `kernel[grid](*arguments, **launch.keywords)`."""
        return self._early if self.is_early and _can_be_early() else self._plain

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return {**self.constants, **self.options}

    @cached_property
    def _early(self) -> dict[str, Any]:
        return {**self._plain, "launch_pdl": True}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is shipped for one capability.

    Attributes:
        name: Kernel and what sets its shape, such as "nf4_dequantize bf16 4096x4096".
        kernel: What `triton.jit` gives.
        arguments: Types of the arguments that are not constexpr, by name: "*bf16", "i32", "fp32", or a tuple of such.
            Pointers are taken to be multiples of 16 bytes, as torch's are.
        launch: What it is launched with.
        divisible: Integer arguments that are always multiples of 16, which `triton.jit` then specializes.
        uses_matrix_units: Whether the GPU's matrix instructions must appear in it.
        values: Values a program makes, for counting instructions a value; None: not counted.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str | tuple[str, ...]]
    launch: Launch
    divisible: frozenset[str] = field(default_factory=frozenset)
    uses_matrix_units: bool = False
    values: int | None = None


@triton.jit
def await_previous():  # type: ignore[no-untyped-def]  # noqa: ANN201 - compiled
    """Wait until the kernel before this one has ended, then let the one after it be brought onto the GPU.

    In this order: whoever is here knows that all before the kernel before this one has ended as well. Before, nothing
    is read or written but what no kernel on the GPU ever writes, such as tables.
    """
    if _COMPILED and tl.target_info.cuda_capability_geq(9, 0):
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def _can_be_early() -> bool:
    """Whether the GPU, if there is one, takes launches before the kernel before has ended, in CUDA graphs too."""
    if INTERPRETED or not torch.cuda.is_available():
        return False
    # Graphs take them from the driver of CUDA 12.3 on; torch for CUDA 13 has a newer one, for 12 perhaps an older.
    is_new = int((torch.version.cuda or "0").partition(".")[0]) >= 13
    # On 12.0 capturing one has been reported to fail (sglang, pull request 18596); nobody here has tried.
    return is_new and (9, 0) <= torch.cuda.get_device_capability() < (12, 0)


@cache
def capability_of(device: torch.device) -> int:
    """Give the capability a device is launched for: its own, or the nearest older one known here.

    The interpreter is taken to be the oldest.

    Raises:
        ValueError: The GPU is older than all of them.
    """
    if device.type != "cuda":
        return CAPABILITIES[0]
    major, minor = torch.cuda.get_device_capability(device)
    known = [capability for capability in CAPABILITIES if capability <= 10 * major + minor]
    if not known:
        raise ValueError(f"the GPU has compute capability {major}.{minor}, the kernels need 8.0")
    return known[-1]


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up; `triton.cdiv` takes the host 5 us."""
    return -(-a // b)


def starts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Give where each begins when they lie one behind the other; of none, where the first one would."""
    return tuple(sum(sizes[:place]) for place in range(len(sizes) or 1))
