"""A trained adapter as PEFT's two files.

In: its form and its tensors. Out: adapter_config.json and adapter_model.safetensors, which `peft`,
transformers, vLLM and our own `lora.load_adapter` read. The configuration holds PEFT's own fields
and no others (PEFT warns of any it does not know), and of those only what plain LoRA needs: what is
left out has PEFT's default, in every version of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from fam_engine.data.files import write_text_whole, write_whole
from fam_engine.model import fingerprint
from fam_engine.model.safetensors_writing import save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from fam_engine.model.lora import LoraSpec

CONFIG_FILE: Final = "adapter_config.json"
TENSORS_FILE: Final = "adapter_model.safetensors"


def save_adapter(
    folder: Path,
    spec: LoraSpec,
    parameters: dict[str, torch.Tensor],
    *,
    base_model_name_or_path: str,
    base_fingerprint: str | None,
) -> None:
    """Write an adapter.

    Args:
        folder: Where; must be there.
        spec: Its form.
        parameters: Its tensors by PEFT's names, see `TrainableModel.parameters`. Saved as float32,
            float32 ones bit by bit.
        base_model_name_or_path: The model it was trained on, for whoever loads it.
        base_fingerprint: That of its checkpoint, by which it is known again; None: not known.

    Raises:
        OSError: The disk would not take it.
    """
    tensors = {
        name: tensor.detach().to("cpu").float().contiguous() for name, tensor in parameters.items()
    }
    metadata = {} if base_fingerprint is None else {fingerprint.KEY: base_fingerprint}
    write_whole(folder / TENSORS_FILE, lambda path: save_tensors(path, tensors, metadata))
    config = json.dumps(peft_config(spec, base_model_name_or_path), indent=2, sort_keys=True)
    write_text_whole(folder / CONFIG_FILE, config + "\n")


def peft_config(spec: LoraSpec, base_model_name_or_path: str | None) -> dict[str, object]:
    """Give the fields of adapter_config.json."""
    # PEFT's type of lora_alpha is int; an integral one is written as such.
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name_or_path,
        "revision": None,
        "r": spec.rank,
        "lora_alpha": alpha,
        "lora_dropout": spec.dropout,
        "target_modules": sorted(set(spec.target_modules)),
        "use_rslora": spec.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
