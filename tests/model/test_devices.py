"""Where a model computes, and in which dtype."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from fam_engine.errors import DeviceError, UsageError
from fam_engine.model import devices
from fam_engine.model.devices import (
    check_capability,
    choose_compute_dtype,
    choose_device,
    has_native_bf16,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda")
    assert caught.value.code == "E_DEVICE"
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_auto_takes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


def test_a_gpu_before_ampere_is_refused() -> None:
    check_capability((8, 0))
    check_capability((12, 0))
    with pytest.raises(DeviceError, match=r"7\.5, expected 8\.0") as caught:
        check_capability((7, 5))
    assert caught.value.code == "E_DEVICE"


def test_bf16_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_has(**capabilities: bool) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
        return has_native_bf16(CPU)

    def gpu_has(major: int) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 5))
        return has_native_bf16(CUDA)

    assert cpu_has(avx512_bf16=True)
    assert cpu_has(avx512_bf16=False, amx_bf16=True)
    assert not cpu_has(avx2=True, avx512_bf16=False)
    assert gpu_has(8)
    assert not gpu_has(7)


def test_compute_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "has_native_bf16", lambda device, native=native: native)
        assert choose_compute_dtype("auto", precision="nf4", device=CPU) == expected
        assert choose_compute_dtype("auto", precision="fp32", device=CPU) == torch.float32
    assert choose_compute_dtype("bf16", precision="nf4", device=CPU) == torch.bfloat16
    assert choose_compute_dtype("fp32", precision="nf4", device=CPU) == torch.float32
    assert choose_compute_dtype("fp64", precision="fp32", device=CPU) == torch.float64
    with pytest.raises(UsageError, match="E_COMPUTE_DTYPE"):
        choose_compute_dtype("bf16", precision="fp32", device=CPU)
