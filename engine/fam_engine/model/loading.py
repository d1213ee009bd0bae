"""From a name to a model ready to score: finds the folder, chooses device and dtype, loads.

In: a folder, `embedded`, or (only with `download`) a Hugging Face id. Out: a `Decoder`.

Offline by default: a name that is no folder is refused, never looked up, so a run cannot depend on
what a server says today. With `download` the id is resolved to a commit, which the caller records.
What the machine cannot do is refused, never replaced: `cuda` without a GPU is an error; only `auto`
chooses, bf16 where the device multiplies it natively and fp32 elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from fam_engine.config import nearest
from fam_engine.data.plain_files import may_open, plain_file, read_json_object
from fam_engine.errors import DeviceError, ModelRefusedError, StorageError, UsageError
from fam_engine.model.checkpoint import Precision, check_tensors, load_weights
from fam_engine.model.config import ModelConfig
from fam_engine.model.decoder import Decoder
from fam_engine.model.exactness import check_exact
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.lora import Adapter, attach_adapter, load_adapter
from fam_engine.model.memory import free_bytes, weight_bytes

ComputeDtype = Literal["auto", "bf16", "fp32", "fp64"]
Device = Literal["auto", "cpu", "cuda"]
EMBEDDED: Final = "embedded"
EMBEDDED_FOLDER: Final = Path(__file__).parents[1] / "embedded" / "model"
# Everything a model's folder may give us to read; the rest is neither fetched nor hashed.
SUFFIXES: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")
_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
# Processes that have loaded a model: threads of torch and of the tokenizer do not survive a fork.
_loaded_in: set[int] = set()
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


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
    _check_choice("precision", precision, get_args(Precision))
    _check_choice("compute_dtype", compute_dtype, get_args(ComputeDtype))
    _check_choice("device", device, get_args(Device))
    place = choose_device(device)
    return place, choose_compute_dtype(compute_dtype, precision=precision, device=place)


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
    code, name = "E_MODEL_CONFIG", "generation_config.json"
    if not (folder / name).exists():
        return config
    path = plain_file(folder, name, code=code)
    value = read_json_object(path, code=code).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or not 0 <= token < config.vocab_size for token in ids):
        message = f"`eos_token_id` is {value!r}; supported: ids from 0 to {config.vocab_size - 1}"
        raise ModelRefusedError(message, code=code, where=str(path))
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


def resolve_model(model: str | Path, *, download: bool) -> tuple[Path, str | None]:
    """Find a model's folder.

    Args:
        model: A folder, `embedded`, or with `download` the id of a repository on the hub.
        download: Whether an id that is no folder may be fetched.

    Returns:
        The folder, and the commit it was fetched at if it was.

    Raises:
        ModelRefusedError: Neither a folder nor, with `download`, to be had from the hub.
    """
    if not isinstance(model, str | os.PathLike):  # as of other programs
        message = (
            f"a value of type {type(model).__name__} was given, expected a folder or `{EMBEDDED}`"
        )
        raise ModelRefusedError(message, code="E_MODEL_NOT_FOUND")
    if str(model) == EMBEDDED:
        return EMBEDDED_FOLDER, None
    folder = Path(model)
    if folder.is_dir():
        return folder, None
    is_hub_id = _HUB_ID.fullmatch(str(model)) is not None
    if download and is_hub_id:
        return _download(str(model))
    message = f"`{model}` is not a folder{nearest(str(model), [EMBEDDED])}"
    hint = "add --download to fetch it from the hub" if is_hub_id else "check the path"
    raise ModelRefusedError(message, code="E_MODEL_NOT_FOUND", hint=hint)


def _download(hub_id: str) -> tuple[Path, str]:
    """Fetch the files we read of a repository, at the commit its main branch has now."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        message = f"`{hub_id}` could not be downloaded: {error}"
        hint = "check the id, the network, and whether the model asks for a login"
        raise ModelRefusedError(message, code="E_MODEL_DOWNLOAD", hint=hint) from error
    return folder, folder.name  # .../snapshots/<commit>


def hash_model(folder: Path) -> str:
    """Give one SHA-256 over the names and bytes of all files of a model or adapter we may read.

    Args:
        folder: Its folder.

    Raises:
        ModelRefusedError: No such folder.
        StorageError: A file that cannot be read.
    """
    if not folder.is_dir():
        raise ModelRefusedError(f"`{folder}` is not a folder", code="E_MODEL_NOT_FOUND")
    try:
        paths = sorted(folder.iterdir())
        files = [path for path in paths if path.suffix in SUFFIXES and may_open(path)]
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
            digests = list(pool.map(_hash_file, files))
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise StorageError(message, code="E_MODEL_READ", where=str(error.filename)) from error
    total = hashlib.sha256()
    for path, digest in zip(files, digests, strict=True):
        total.update(f"{path.name}\n{digest}\n".encode())
    return total.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
