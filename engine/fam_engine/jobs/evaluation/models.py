"""What is compared: the base model, and adapters of it.

In: the folders a user gave. Out: an `EvaluatedModel` each, with a short name that tells it from the others and a key
that says which weights it means, so that what was computed for it is found again whatever else is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fam_engine.errors import UsageError
from fam_engine.jobs.data_files import names_apart
from fam_engine.model.config import ModelConfig
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.folders import hash_model
from fam_engine.model.lora import load_adapter
from fam_engine.model.safetensors_files import list_tensors

BASE: Final = "base"
# What `train` calls the folder of every adapter; the one above it says which.
_GENERIC: Final = "adapter"


@dataclass(frozen=True)
class EvaluatedModel:
    """The base model, or the base model with an adapter.

    Attributes:
        name: What tables call it.
        adapter: The adapter's folder; None: the base model.
        key: SHA-256 of the adapter's files, or `base`.
    """

    name: str
    adapter: Path | None
    key: str


def find_models(
    adapters: Sequence[Path], model: Path, *, with_base: bool
) -> tuple[EvaluatedModel, ...]:
    """Resolve what is to be compared, the base model first, and check that all of it loads.

    Args:
        adapters: Adapter folders.
        model: Folder of the base model.
        with_base: Whether the base model takes part.

    Raises:
        ModelRefusedError: An adapter is not there or does not fit the model.
        UsageError: Nothing to evaluate, or an adapter given twice.
    """
    if not adapters and not with_base:
        raise UsageError(
            "nothing to evaluate: --no-base and no adapter",
            code="E_USAGE",
            hint="add --adapter DIR",
        )
    found = [EvaluatedModel(BASE, None, BASE)] if with_base else []
    config, base = ModelConfig.from_folder(model), fingerprint(list_tensors(model))
    for name, folder in zip(name_adapters(adapters), adapters, strict=True):
        # Better refused now than after an hour with the others.
        load_adapter(folder, config, base=base)
        found.append(EvaluatedModel(name, folder, hash_model(folder)))
    return tuple(found)


def name_adapters(folders: Sequence[Path]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart.

    Raises:
        UsageError: A folder given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError("is given twice", code="E_ADAPTER_TWICE", where=str(path))
    parts = [
        path.parts[:-1] if path.name == _GENERIC and len(path.parts) > 2 else path.parts
        for path in paths
    ]
    names = names_apart(parts, taken=(BASE,))
    return names if len(set(names)) == len(paths) else [str(path) for path in paths]
