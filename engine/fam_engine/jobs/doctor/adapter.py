"""Whether an adapter's folder would be accepted, here and by the programs adapters are made for.

In: a folder, and maybe the model it is for. Out: checks. A fault that other programs find is a warning, one that our
own commands find a failure. Nothing is decided here: `load_adapter` says what we refuse, `adapter_consumers` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.errors import FamEngineError
from fam_engine.jobs.doctor.checks import Check, refused_check
from fam_engine.jobs.sources import check_adapter
from fam_engine.model.adapter_consumers import CONSUMERS, Objection, objections, vllm_rank
from fam_engine.model.adapter_files import CONFIG_FILE, TENSORS_FILE
from fam_engine.model.config import ModelConfig
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.folders import resolve_model
from fam_engine.model.lora import CODE, load_adapter
from fam_engine.model.safetensors_files import TensorInfo, list_tensors, read_header

_SECTION: Final = "adapter"
_ACCEPTED: Final = {
    "peft": "accepts it, and so do transformers, TRL, LLaMA-Factory and axolotl",
    "vllm": "accepts it over a base in 16 bits, with --enable-lora --max-lora-rank {rank}",
    "llama.cpp": "accepts it, converted with --base",
}


def check_adapter_folder(
    adapter: Path, model: str | None
) -> tuple[list[Check], FamEngineError | None]:
    """Look at an adapter's folder.

    Args:
        adapter: The folder.
        model: The model it is for; None: whether it fits one is not looked at.

    Returns:
        What was found; the refusal a command would give, where it would.
    """
    checks: list[Check] = []
    try:
        check_adapter(adapter)
        config = read_json_object(plain_file(adapter, CONFIG_FILE, code=CODE), code=CODE)
        tensors = read_header(plain_file(adapter, TENSORS_FILE, code=CODE))
        checks.append(Check(_SECTION, "form", "ok", _form(config, tensors)))
        found = objections(config, list(tensors))
        checks += [_consumer_check(name, config, found) for name in CONSUMERS]
        checks.append(_own_check(adapter, model))
    except FamEngineError as error:
        checks.append(refused_check(_SECTION, error))
        return checks, error
    return checks, None


def _form(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in tensors.values()})
    rank, alpha = config.get("r"), config.get("lora_alpha")
    return f"rank {rank}, alpha {alpha}, {len(tensors)} tensors, {', '.join(dtypes)}"


def _consumer_check(name: str, config: Mapping[str, Any], found: list[Objection]) -> Check:
    own = [one for one in found if one.consumer == name]
    if not own:
        # Only what vLLM does not refuse has a rank that it can be started with.
        rank = vllm_rank(config) if name == "vllm" else None
        return Check(_SECTION, name, "ok", _ACCEPTED[name].format(rank=rank))
    remedies = dict.fromkeys(one.remedy for one in own)
    return Check(_SECTION, name, "warn", "; ".join(one.found for one in own), "; ".join(remedies))


def _own_check(adapter: Path, model: str | None) -> Check:
    if model is None:
        found = "not tried: whether it fits is a question of the model, see --model"
        return Check(_SECTION, "fam-engine", "ok", found)
    folder, _ = resolve_model(model, download=False)
    base = fingerprint(list_tensors(folder))
    loaded = load_adapter(adapter, ModelConfig.from_folder(folder), base=base)
    found = f"accepts it: {len(loaded.matrices)} matrices of this model are changed"
    return Check(_SECTION, "fam-engine", "ok", found)
