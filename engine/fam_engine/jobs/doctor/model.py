"""Which paths a computation would take, and whether a model's folder would be accepted.

In: a device; a folder. Out: checks. Nothing is decided here: the same functions are asked that decide for a command.
No weight is read; a fault in their values is only found by loading them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from fam_engine.config import Device
from fam_engine.data.other_readers import REMEDY, read_otherwise
from fam_engine.data.tokenizer_loading import load_tokenizer
from fam_engine.errors import FamEngineError
from fam_engine.jobs.doctor.checks import Check, refused_check
from fam_engine.model import ops
from fam_engine.model.checkpoint import check_tensors
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import choose_compute_dtype, choose_device
from fam_engine.model.folders import resolve_model
from fam_engine.model.memory import free_bytes, weight_bytes

_PRECISION: Final = "nf4"


def check_paths(device: Device) -> Iterator[Check]:
    """Say which kernels serve a scoring with default settings."""
    place = choose_device(device)
    dtype = choose_compute_dtype("auto", precision=_PRECISION, device=place)
    name = str(dtype).removeprefix("torch.")
    yield Check("paths", "compute", "ok", f"{name} on {place}")
    probe = torch.empty((64, 64), dtype=dtype, device=place)
    for about, found in (_paths_of_a_gpu if place.type == "cuda" else _paths_of_a_cpu)(probe):
        yield Check("paths", about, "ok", found)


def _paths_of_a_cpu(probe: torch.Tensor) -> Iterator[tuple[str, str]]:
    own = ops.has_fused_logprob(probe, probe)
    yield "log-probs", "our AVX512-BF16 kernel" if own else "torch, in tiles of the vocabulary"
    yield "attention", "torch's scaled_dot_product_attention, a record at a time"
    yield "nf4", "a matrix at a time made dense by torch, then multiplied by torch"


def _paths_of_a_gpu(probe: torch.Tensor) -> Iterator[tuple[str, str]]:
    yield "log-probs", "our Triton kernels"
    one_call = ops.has_varlen_attention(probe.device, probe.dtype, head_dim=64)
    in_calls = "torch's scaled_dot_product_attention, a record at a time"
    yield "attention", "torch's flash attention, a batch in one call" if one_call else in_calls
    rows = "up to 64 rows multiplied as they are by our Triton kernel"
    yield (
        "nf4",
        f"a matrix at a time made dense by our Triton kernel, then multiplied by torch; {rows}",
    )


def check_model(model: str, device: Device) -> tuple[list[Check], FamEngineError | None]:
    """Look at a model's folder.

    Returns:
        What was found; the refusal a command would give, where it would.
    """
    checks = []
    try:
        for check in _model_checks(model, device):
            checks.append(check)
    except FamEngineError as error:
        checks.append(refused_check("model", error))
        return checks, error
    return checks, None


def _model_checks(model: str, device: Device) -> Iterator[Check]:
    folder, _ = resolve_model(model, download=False)
    config = ModelConfig.from_folder(folder)
    quantized = ", quantized to NF4 already" if config.quantization else ""
    shape = (
        f"{config.num_layers} layers of width {config.hidden_size}, "
        f"a vocabulary of {config.vocab_size:,}, contexts of {config.max_position_embeddings:,} tokens"
    )
    yield Check("model", "config", "ok", f"{shape}{quantized}")
    place = choose_device(device)
    dtype = choose_compute_dtype("auto", precision=_PRECISION, device=place)
    check_tensors(folder, config, precision=_PRECISION)
    yield Check("model", "tensors", "ok", "names, shapes and dtypes are those the config asks for")
    yield _memory(config, place, dtype)
    yield from _tokenizer(folder)


def _tokenizer(folder: Path) -> Iterator[Check]:
    tokenizer = load_tokenizer(folder)
    engine = tokenizer.engine
    if engine.startswith("native"):
        yield Check("model", "tokenizer", "ok", engine)
    else:
        found = "a part of tokenizer.json is not known to our own: the slower library `tokenizers` serves"
        yield Check("model", "tokenizer", "warn", found, "nothing; ids are the same")
    if otherwise := read_otherwise(tokenizer, folder):
        yield Check("model", "other readers", "warn", otherwise, REMEDY)


def _memory(config: ModelConfig, place: torch.device, dtype: torch.dtype) -> Check:
    needed, free = weight_bytes(config, _PRECISION, dtype), free_bytes(place)
    found = (
        f"about {needed / 2**30:.2f} GiB of weights at precision nf4, {free / 2**30:.1f} GiB free"
    )
    if needed > free:
        return Check("model", "memory", "warn", found, "free memory, or take a smaller model")
    return Check("model", "memory", "ok", found)
