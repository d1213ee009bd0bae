"""Which checkpoint an adapter was trained over: a hash of its tensors that is read in a moment.

In: a checkpoint's tensors. Out: a line that adapters carry among the metadata of their tensors, where PEFT, vLLM and
others leave it alone. An adapter for another model of the same shape fits and gives plausible, wrong answers; its
`base_model_name_or_path` is a name on somebody's disk and says nothing.

The beginning of every tensor tells checkpoints apart as well as all of it would: training moves all of a matrix.
Checkpoints whose tensors have other names, dtypes or shapes (the same model quantized, or cast) cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fam_engine.errors import ModelRefusedError
from fam_engine.model.safetensors_files import TensorInfo, read_metadata, read_start

if TYPE_CHECKING:
    from pathlib import Path

KEY: Final = "base_model_fingerprint"
_BYTES: Final = 4096


def fingerprint(tensors: Mapping[str, TensorInfo]) -> str:
    """Give the hash of the names, dtypes and shapes of a checkpoint's tensors, and that of how each begins.

    Raises:
        ModelRefusedError: A file cannot be read.
    """
    layout, values = hashlib.sha256(), hashlib.sha256()
    for name in sorted(tensors):
        info = tensors[name]
        layout.update(f"{name} {info.dtype} {info.shape}\n".encode())
        values.update(read_start(info, _BYTES))
    return f"{layout.hexdigest()} {values.hexdigest()}"


def check_base(adapter: Path, base: str) -> None:
    """Make sure that an adapter was not trained over other values than a checkpoint has.

    Args:
        adapter: Its file of tensors.
        base: Fingerprint of the checkpoint.

    Raises:
        ModelRefusedError: It was, as far as it says over what.
    """
    layout, _, values = read_metadata(adapter).get(KEY, "").partition(" ")
    own_layout, _, own_values = base.partition(" ")
    if layout == own_layout and values != own_values:
        raise ModelRefusedError(
            "it was trained over another model of the same shape",
            code="E_ADAPTER_BASE",
            where=str(adapter),
            hint="give the model it was trained on",
        )
