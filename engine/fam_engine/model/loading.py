"""From a model's folder to a model ready to score, or to what is wrong with it.

In: a folder or `embedded` (`folders`), the choice of precision, dtype and device (`devices`). Out: a `Decoder`, on its
device. What it needs of a GPU is compared with what is free there before minutes of reading.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from fam_engine.config import Device, Precision
from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.errors import DeviceError, UsageError
from fam_engine.model.checkpoint import check_tensors, load_weights
from fam_engine.model.config import CODE, ModelConfig, read_token_ids
from fam_engine.model.decoder import Decoder
from fam_engine.model.devices import (
    ComputeDtype,
    check_capability,
    choose_compute_dtype,
    choose_device,
)
from fam_engine.model.exactness import check_exact
from fam_engine.model.fields import Fields
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.folders import resolve_model
from fam_engine.model.lora import Adapter, attach_adapter, load_adapter
from fam_engine.model.memory import free_bytes, weight_bytes

# Processes that have loaded a model: threads of torch and of the tokenizer do not survive a fork.
_loaded_in: set[int] = set()


def lacks_threads() -> bool:
    """Whether this process was forked from one that had loaded a model: what it computes may hang for ever."""
    return bool(_loaded_in - {os.getpid()})


def load_model(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    precision: Precision = "nf4",
    compute_dtype: ComputeDtype = "auto",
    device: Device = "auto",
    exact: bool = False,
) -> Decoder:
    """Load a model from a folder.

    Args:
        model: A folder with config.json and safetensors, or `embedded`.
        adapter: A folder with a PEFT LoRA adapter.
        precision: How the matrices are held; see `checkpoint`.
        compute_dtype: What they are multiplied in. fp64 is for references in tests.
        device: Where.
        exact: Whether a record's bits must not depend on its neighbours; on a CPU they never do.

    Returns:
        The decoder, its weights on the device.

    Raises:
        ModelRefusedError: The model or adapter is not there, unsafe, incomplete or not understood.
        DeviceError: The device is not there, a GPU has less memory free than the weights take, or it cannot
            be exact.
        UsageError: A choice there is not, or precision fp32 multiplied in bf16.
    """
    folder, _ = resolve_model(model, download=False)
    place, dtype = _choose(precision, compute_dtype, device)
    config = _with_generation_ends(ModelConfig.from_folder(folder), folder)
    _check_memory(config, precision, dtype, place)
    _loaded_in.add(os.getpid())
    weights = load_weights(folder, config, precision=precision, compute_dtype=dtype, device=place)
    if adapter is not None:
        loaded = load_adapter(Path(adapter), config, base=weights.fingerprint)
        weights = attach_adapter(weights, loaded, config, device=place)
    decoder = Decoder(
        config, weights, compute_dtype=dtype, device=place, precision=precision, exact=exact
    )
    if exact and place.type == "cuda":
        check_exact(decoder)
    return decoder


def check_model(
    folder: Path,
    *,
    adapter: Path | None,
    precision: Precision,
    compute_dtype: ComputeDtype,
    device: Device,
) -> None:
    """Refuse what `load_model` would refuse, but for values of weights, in a moment: before a job begins.

    Args:
        folder: The model's folder.
        adapter: As of `load_model`, like those that follow.
        precision: How the matrices are held.
        compute_dtype: What they are multiplied in.
        device: Where.

    Raises:
        FamEngineError: As `load_model`.
    """
    _choose(precision, compute_dtype, device)
    config = _with_generation_ends(ModelConfig.from_folder(folder), folder)
    tensors = check_tensors(folder, config, precision=precision)
    if adapter is not None:
        load_adapter(adapter, config, base=fingerprint(tensors))


def _choose(
    precision: Precision, compute_dtype: ComputeDtype, device: Device
) -> tuple[torch.device, torch.dtype]:
    """Give the device and the compute dtype."""
    check_choices(precision, compute_dtype, device)
    place = choose_device(device)
    if place.type == "cuda":
        check_capability(torch.cuda.get_device_capability(place))
    return place, choose_compute_dtype(compute_dtype, precision=precision, device=place)


def check_choices(precision: str, compute_dtype: str, device: str) -> None:
    """Refuse choices that there are not, wherever they would be made.

    Raises:
        UsageError: There is one.
    """
    _check_choice("precision", precision, get_args(Precision))
    _check_choice("compute_dtype", compute_dtype, get_args(ComputeDtype))
    _check_choice("device", device, get_args(Device))


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        message = f"{name} is {value!r}, expected one of {', '.join(known)}"
        raise UsageError(message, code="E_CONFIG_VALUE")


def _check_memory(
    config: ModelConfig, precision: Precision, compute_dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse what does not fit a GPU before minutes of reading it; a CPU may have more than is free."""
    if device.type != "cuda":
        return
    needed, free = weight_bytes(config, precision, compute_dtype), free_bytes(device)
    if needed <= free:
        return
    message = f"the weights take about {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB of the GPU are free"
    nf4 = "use --precision nf4, or " if precision != "nf4" else ""
    hint = f"{nf4}free memory of the GPU, or take a smaller model or --device cpu"
    raise DeviceError(message, code="E_MEMORY_PLAN", hint=hint)


def _with_generation_ends(config: ModelConfig, folder: Path) -> ModelConfig:
    """Add the end tokens that generation_config.json names: chat models often have more there."""
    name = "generation_config.json"
    if not (folder / name).exists():
        return config
    path = plain_file(folder, name, code=CODE)
    fields = Fields(read_json_object(path, code=CODE), where=str(path), code=CODE)
    ids = read_token_ids(fields, "eos_token_id", config.vocab_size)
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *ids))))


def with_adapter(decoder: Decoder, adapter: str | Path | None) -> Decoder:
    """Give the same model with another adapter, or with none; the base tensors are shared.

    Args:
        decoder: The model, with an adapter or without.
        adapter: A folder with a PEFT LoRA adapter, or None.

    Raises:
        ModelRefusedError: The adapter is not there, unsafe, incomplete or not understood.
    """
    config = decoder.config
    # An adapter that changes no matrix takes the place of the one that is there.
    nothing = Adapter(rank=1, scaling=1.0, matrices={})
    base = decoder.weights.fingerprint
    loaded = nothing if adapter is None else load_adapter(Path(adapter), config, base=base)
    return decoder.with_weights(
        attach_adapter(decoder.weights, loaded, config, device=decoder.device)
    )
