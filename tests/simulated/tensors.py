"""Tensors of a simulated NVIDIA GPU: torch is told that they lie there, their numbers lie on the CPU.

In: calls of torch's operations, caught below autograd. Out: the same results as the CPU's, in tensors whose device is
`cuda:0`. What a GPU refuses is refused: operands of two devices, attention outside of what its kernel takes. What makes
the host wait for a GPU is known as such, so that code which must not wait can be held to it. Operations that exist on
GPUs only (products whose sums leave in fp32, flash attention) are done by their plain references.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.simulated import flash, graphs, stream

aten: Final = torch.ops.aten
DEVICE: Final = torch.device("cuda:0")


class CudaTensor(torch.Tensor):
    """A tensor of the simulated GPU.

    Attributes:
        memory: Its numbers, on the CPU.
    """

    memory: torch.Tensor

    def __new__(cls, memory: torch.Tensor) -> CudaTensor:
        """Give a tensor of the GPU with this memory."""
        with torch.inference_mode(mode=False):  # else no view of it is possible outside of it
            self: CudaTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                memory.size(),
                strides=memory.stride(),
                storage_offset=memory.storage_offset(),
                dtype=memory.dtype,
                device=DEVICE,
            )
        self.memory = memory
        return self

    def __init__(self, memory: torch.Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"CudaTensor({self.memory!r})"

    def tolist(self) -> Any:  # noqa: ANN401
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN206
        return _run(func, args, kwargs or {})


class OnCuda(TorchDispatchMode):
    """While it is entered, what is made for the GPU lies there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
        return _run(func, args, kwargs or {})


def _mm_fp32(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, *, out: torch.Tensor
) -> torch.Tensor:
    assert out.dtype == out_dtype == torch.float32
    return torch.mm(a.float(), b.float(), out=out)


# What exists on GPUs only.
_GPUS_OWN: Final = {
    aten._flash_attention_forward.default: flash.forward,
    aten._flash_attention_backward.default: flash.backward,
    aten.mm.dtype_out: _mm_fp32,
}
# What hands a number to the host, or asks it how much memory the result takes.
_ASKS_HOST: Final = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
_INDEXING: Final = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
_COPIES: Final = {aten._to_copy.default, aten.copy_.default}


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run one operation where its operands or its `device` say."""
    is_pinned = bool(kwargs.get("pin_memory"))
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": False}
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_gpu = [x for x in operands if isinstance(x, CudaTensor)]
    device = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)), None)
    if func in _COPIES and (on_gpu or (device is not None and device.type == "cuda")):
        return _copy(func, args, kwargs)
    if not on_gpu and (device is None or device.type != "cuda"):
        result = func(*args, **kwargs)
        return stream.pin(result) if is_pinned else result
    if func not in _GPUS_OWN and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        with OnCuda():
            return func.decompose(*args, **kwargs)
    _check_devices(func, operands)
    if func in _ASKS_HOST or (func in _INDEXING and _has_mask(args[1])):
        stream.host_waits(str(func))
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return _on_gpu(_GPUS_OWN.get(func, func), args, kwargs)


def _on_gpu(do: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run on the memory of the operands; give results in tensors of the GPU, those that were given as they are."""
    if not getattr(do, "is_view", False):
        if stream.other_stream() is not None:
            raise NotImplementedError(f"{do} on another stream than the one that computes")
        stream.num_operations += 1
    known: dict[int, CudaTensor] = {}

    def memory(x: CudaTensor) -> torch.Tensor:
        known[id(x.memory)] = x
        return x.memory

    args, kwargs = tree_map_only(CudaTensor, memory, (args, kwargs))
    graph = graphs.capturing()
    result = do(*args, **kwargs) if graph is None else graph.run(do, args, kwargs)
    return tree_map_only(
        torch.Tensor, lambda x: known[id(x)] if id(x) in known else CudaTensor(x), result
    )


def _check_devices(func: object, operands: list[torch.Tensor]) -> None:
    """Refuse operands of two devices; a number of the CPU's is none."""
    others = [x for x in operands if not isinstance(x, CudaTensor)]
    if func in _INDEXING and others:
        stream.host_waits("indices on the CPU")
    elif any(x.dim() for x in others):
        raise RuntimeError(f"{func}: expected all tensors to be on cuda:0, found one on the CPU")


def _has_mask(indices: list[torch.Tensor | None]) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Copy within the GPU, to it or from it."""
    if func is aten._to_copy.default:
        source, target_device = args[0], kwargs.get("device") or args[0].device
        non_blocking = bool(kwargs.get("non_blocking"))
        like = {"dtype": kwargs.get("dtype") or source.dtype}
        if kwargs.get("memory_format", torch.preserve_format) is not torch.preserve_format:
            like["memory_format"] = kwargs["memory_format"]
        if target_device.type == "cpu" and non_blocking:
            target = stream.pin(torch.empty_like(source.memory, **like))
        elif target_device.type == "cpu":
            target = torch.empty_like(source.memory, **like)
        else:
            memory = source.memory if isinstance(source, CudaTensor) else source
            target = _on_gpu(torch.empty_like, (memory,), like)
    else:
        target, source = args[:2]
        non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    _transfer(source, target, non_blocking=non_blocking)
    return target


def _transfer(source: torch.Tensor, target: torch.Tensor, *, non_blocking: bool) -> None:
    is_to, is_from = isinstance(target, CudaTensor), isinstance(source, CudaTensor)
    if is_to and is_from:
        _on_gpu(aten.copy_.default, (target, source), {})
        return
    if graphs.capturing() is not None:
        raise RuntimeError("operation not permitted when stream is capturing: a copy of the host's")
    host = source if is_to else target
    other = stream.other_stream()
    if other is not None:
        assert non_blocking
        assert stream.is_pinned(host)
        other.copy(
            source.memory if isinstance(source, CudaTensor) else source,
            target.memory if isinstance(target, CudaTensor) else target,
        )
    elif not (non_blocking and stream.is_pinned(host)):
        if not non_blocking:
            stream.host_waits("a copy")
        (target.memory if is_to else target).copy_(source.memory if is_from else source)
    elif is_to:
        stream.copy_in(source, target.memory)
    else:
        stream.copy_out(source.memory, target)
