"""What a job is made from: where its input is, what of it results depend on, its model.

In: settings. Out: the resolved files and folders, the part of a run's key that follows from them, the loaded model and
its token budget.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fam_engine.config import BaseModelSettings, ScoreConfig
from fam_engine.data.reading import hash_file
from fam_engine.data.templates import TEMPLATE_DATE
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.data_files import DataFile, find_files
from fam_engine.model.decoder import Decoder
from fam_engine.model.folders import hash_model, resolve_model
from fam_engine.model.loading import check_model, load_model
from fam_engine.model.lora import find_config
from fam_engine.model.memory import default_tokens_per_batch
from fam_engine.version import __version__


@dataclass(frozen=True)
class Sources:
    """Where a job's input is: data files, the model's folder, the adapter's."""

    files: tuple[DataFile, ...]
    model: Path
    revision: str | None
    adapter: Path | None


def find_sources(config: BaseModelSettings, data: Sequence[str], adapter: Path | None) -> Sources:
    """Resolve the names a user gave.

    Args:
        config: Which model.
        data: Names of data files.
        adapter: The one adapter the whole job computes with, if any.

    Raises:
        InputError: A data file is missing or of an unknown kind.
        ModelRefusedError: The model or the adapter is not there, or not one that can be loaded.
        DeviceError: The device is not there.
        UsageError: A precision and a compute dtype that exclude each other.
    """
    model, revision = resolve_model(config.model, download=config.download)
    check_model(
        model,
        adapter=adapter,
        precision=config.precision,
        compute_dtype=config.compute_dtype,
        device=config.device,
    )
    return Sources(find_files(data), model, revision, adapter)


def check_adapter(adapter: Path | None) -> None:
    """Make sure that an adapter, where there is one, is a folder of one.

    Raises:
        ModelRefusedError: It is not.
    """
    if adapter is not None:
        find_config(adapter)


def input_key(sources: Sources, encoder: TextEncoder, device: str) -> dict[str, Any]:
    """Give what results depend on beside settings: input files, model, template, numerics."""
    template = encoder.template
    text = template.source + (template.for_tools or "") if template else ""
    return {
        "data": [hash_file(file.path) for file in sources.files],
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "template_date": TEMPLATE_DATE,
        **model_key(sources, device),
    }


def model_key(sources: Sources, device: str) -> dict[str, Any]:
    """Give what results depend on of the model and of what computes."""
    return {
        "model": hash_model(sources.model),
        "adapter": hash_model(sources.adapter) if sources.adapter else None,
        "threads": torch.get_num_threads(),
        "machine": _device_name(device),
        "versions": {"fam-engine": __version__, "torch": torch.__version__},
    }


def _device_name(device: str) -> str:
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.machine()


def open_model(config: BaseModelSettings, sources: Sources) -> Decoder:
    """Load the model of a job."""
    is_exact = isinstance(config, ScoreConfig) and config.exact
    return load_model(
        sources.model,
        adapter=sources.adapter,
        precision=config.precision,
        compute_dtype=config.compute_dtype,
        device=config.device,
        exact=is_exact,
    )


def tokens_per_batch(asked: int | None, decoder: Decoder) -> int:
    """Give the token budget of a batch: the one asked for, or what fits beside the loaded weights."""
    return asked or default_tokens_per_batch(decoder.config, decoder.device, decoder.compute_dtype)
