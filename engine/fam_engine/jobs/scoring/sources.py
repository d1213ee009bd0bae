"""What a scoring job is made from: where its input is, what its scores depend on, its model.

In: a `ScoreConfig`. Out: the resolved files and folders, the key that progress belongs to, the orders of pass 1, the
loaded model.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fam_engine.config import HOW_IT_RUNS, BaseModelSettings, ScoreConfig
from fam_engine.data.reading import hash_file
from fam_engine.data.templates import TEMPLATE_DATE
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.data_files import DataFile, find_files
from fam_engine.jobs.scoring.ingest import IngestPlan
from fam_engine.model.config import ModelConfig
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


def run_key(config: ScoreConfig, sources: Sources, encoder: TextEncoder) -> dict[str, Any]:
    """Give all that scores depend on; progress belongs to exactly this."""
    return {**input_key(sources, encoder, config.device), **_settings_key(config)}


def worker_key(config: ScoreConfig, sources: Sources) -> dict[str, Any]:
    """Give what a worker must have in common with the job: the run's key, but of its texts only names and sizes.

    A worker computes token ids that are in the spool already. Hashing the input once more in every one of a
    hundred processes would take longer than reading it once did.
    """
    return {
        "files": [[file.name, file.path.stat().st_size] for file in sources.files],
        **_model_key(sources, config.device),
        **_settings_key(config),
    }


def input_key(sources: Sources, encoder: TextEncoder, device: str) -> dict[str, Any]:
    """Give what results depend on beside settings: input files, model, template, numerics."""
    template = encoder.template
    text = template.source + (template.for_tools or "") if template else ""
    return {
        "data": [hash_file(file.path) for file in sources.files],
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "template_date": TEMPLATE_DATE,
        **_model_key(sources, device),
    }


def _model_key(sources: Sources, device: str) -> dict[str, Any]:
    return {
        "model": hash_model(sources.model),
        "adapter": hash_model(sources.adapter) if sources.adapter else None,
        "threads": torch.get_num_threads(),
        "machine": _device_name(device),
        "versions": {"fam-engine": __version__, "torch": torch.__version__},
    }


def _settings_key(config: ScoreConfig) -> dict[str, Any]:
    exclude = {"model", "data", "out", "adapter", "max_tokens_per_batch", "download"}
    return config.model_dump(mode="json", exclude=exclude | HOW_IT_RUNS)


def _device_name(device: str) -> str:
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.machine()


def ingest_plan(config: ScoreConfig, model: ModelConfig) -> IngestPlan:
    """Give pass 1 its orders."""
    longest = model.max_position_embeddings
    return IngestPlan(
        max_length=min(longest, config.max_length or longest),
        on_long=config.on_long,
        ifd=config.ifd,
        in_context=config.in_context,
        columns=config.map,
        limit=config.limit,
    )


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


def tokens_per_batch(config: ScoreConfig, decoder: Decoder) -> int:
    """Give the token budget of a batch: the one asked for, or what fits."""
    return config.max_tokens_per_batch or default_tokens_per_batch(
        decoder.config, decoder.device, decoder.compute_dtype
    )
