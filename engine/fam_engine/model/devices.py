"""Where a model computes, and in which dtype its matrices are multiplied.

In: what was asked for. Out: a device and a dtype. What the machine cannot do is refused, never replaced: `cuda` without
a GPU is an error; only `auto` chooses, bf16 where the device multiplies it natively and fp32 elsewhere.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from fam_engine.config import Device, Precision
from fam_engine.errors import DeviceError, UsageError

# With fp64, which is for references in tests and no setting.
ComputeDtype = Literal["auto", "bf16", "fp32", "fp64"]
# Of Ampere, the first with bf16 and with the copies that kernels are made of.
_LEAST_CAPABILITY: Final = (8, 0)
_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def choose_device(device: Device) -> torch.device:
    """Give the device: `auto` is the GPU if there is one.

    Raises:
        DeviceError: `cuda` where torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        message = "no NVIDIA GPU that torch can use; `cuda` was asked for"
        raise DeviceError(message, code="E_DEVICE", hint="use --device cpu, or check nvidia-smi")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and has_gpu) else "cpu")


def check_capability(capability: tuple[int, int]) -> None:
    """Refuse a GPU that the kernels do not know.

    Args:
        capability: As torch gives it of a GPU.

    Raises:
        DeviceError: It is older than Ampere.
    """
    if capability < _LEAST_CAPABILITY:
        found = ".".join(map(str, capability))
        message = f"the GPU has compute capability {found}, expected 8.0 or more (Ampere or newer)"
        raise DeviceError(message, code="E_DEVICE", hint="use --device cpu")


def choose_compute_dtype(
    compute_dtype: ComputeDtype, *, precision: Precision, device: torch.device
) -> torch.dtype:
    """Give the dtype matrices are multiplied in.

    Raises:
        UsageError: bf16 with precision fp32, which would round what was asked to be exact.
    """
    if precision == "fp32":
        if compute_dtype == "bf16":
            message = "compute dtype bf16 would round the weights of precision fp32"
            hint = "use --precision bf16, or --compute-dtype fp32"
            raise UsageError(message, code="E_COMPUTE_DTYPE", hint=hint)
        return torch.float64 if compute_dtype == "fp64" else torch.float32
    if compute_dtype != "auto":
        return _DTYPES[compute_dtype]
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def card_compute_dtype(compute_dtype: ComputeDtype, *, precision: Precision) -> torch.dtype:
    """Give the same for a GPU that need not be here: all that are sold now multiply bf16."""
    if compute_dtype == "auto" and precision != "fp32":
        return torch.bfloat16
    return choose_compute_dtype(compute_dtype, precision=precision, device=torch.device("cuda"))


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware (Ampere and later; AVX512-BF16, AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch tells of AVX512-BF16 only
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
