"""Which programs will refuse a LoRA adapter or compute something else with it, told from its two files.

In: the fields of adapter_config.json and the names of the tensors. Out: `Objection`s, each with a remedy. None of the
programs is imported: vLLM and llama.cpp are rarely installed where adapters are made. The rules are those of released
sources, read and tried by us:

- PEFT 0.21.2: `config.py`, `utils/save_and_load.py`. What loads adapters through PEFT (transformers, TRL,
  LLaMA-Factory, axolotl) objects to the same.
- vLLM 0.33.0: `lora/peft_helper.py`, `lora/lora_model.py`, `lora/utils.py`, `config/lora.py`.
- llama.cpp, July 2026: `convert_lora_to_gguf.py`, `src/llama-adapter.h`.

What a program does not read it does not refuse, and that is the worse half: llama.cpp takes an rsLoRA adapter and
applies it sqrt(r) times too weak. An adapter without objections may still have other scores there than it was trained
with, as its base has other weights: `jobs.verifying` measures that.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fam_engine.config import LINEARS
from fam_engine.model.lora import KNOWN_FIELDS

Consumer = Literal["peft", "vllm", "llama.cpp"]
CONSUMERS: Final[tuple[Consumer, ...]] = ("peft", "vllm", "llama.cpp")
# The values of vLLM's --max-lora-rank, which is 16 unless given.
VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Initialisations that leave the base model's weights as they are once training is over.
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_VLLM_REFUSES: Final = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
_LLAMA_CPP_LEAVES: Final = ("alpha_pattern", "layer_replication", "use_bdlora", "use_qalora")
# With one of these there are tensors beside A and B.
_BRINGS_TENSORS: Final = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
_EMBEDDINGS: Final = ("embed_tokens", "lm_head")
_PREFIX: Final = "base_model.model."
_LORA_TENSOR: Final = re.compile(r"(.+)\.lora_(?:[AB]\.weight|embedding_[AB])")
# Copies of the base's own weights, which all of them pass over.
_BASE_TENSORS: Final = tuple(f"{name}.base_layer.weight" for name in _EMBEDDINGS)
_MERGE: Final = "merge it into its base, and serve the merged checkpoint"


@dataclass(frozen=True)
class Objection:
    """What one program has against an adapter.

    Attributes:
        consumer: The program.
        found: What it does about what, such as "refuses `use_dora`".
        remedy: What to do, as an imperative.
    """

    consumer: Consumer
    found: str
    remedy: str


def objections(config: Mapping[str, Any], tensors: Sequence[str]) -> list[Objection]:
    """Say which programs object to an adapter.

    Args:
        config: The fields of its adapter_config.json.
        tensors: Names in its adapter_model.safetensors; none: not known yet.
    """
    rules = {"peft": _peft, "vllm": _vllm, "llama.cpp": _llama_cpp}
    return [
        Objection(consumer, found, remedy)
        for consumer in CONSUMERS
        for found, remedy in rules[consumer](config, tensors)
    ]


def vllm_rank(config: Mapping[str, Any]) -> int:
    """Give the --max-lora-rank vLLM has to be started with for an adapter it does not refuse."""
    rank = max(_ranks(config))
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


# What is found, and the remedy.
_Finding = tuple[str, str]


def _peft(config: Mapping[str, Any], tensors: Sequence[str]) -> Iterator[_Finding]:
    if config.get("peft_type") != "LORA":
        yield "does not take it for LoRA, `peft_type` says", 'set `peft_type` to "LORA"'
    if unknown := sorted(config.keys() - KNOWN_FIELDS):
        yield (
            f"leaves `{unknown[0]}` aside, a field PEFT 0.21.2 does not have",
            "remove it from adapter_config.json",
        )
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and not _can_be_found(base):
        yield (
            f"finds no base model `{base}` when it is given the adapter alone",
            "load the base yourself and give it to PeftModel.from_pretrained, or write its hub id "
            "as `base_model_name_or_path`",
        )
    strangers = [name for name in tensors if not name.startswith(_PREFIX)]
    if not any(config.get(name) for name in _BRINGS_TENSORS):
        strangers += _strangers(tensors)
    if strangers:
        yield f"leaves `{strangers[0]}` aside, no name of its own", "save it with save_pretrained"
    if stray := _outside_targets(config, tensors):
        yield (
            f"leaves `{stray}` aside, which `target_modules` does not name",
            "write every module that has tensors into `target_modules`",
        )


def _vllm(config: Mapping[str, Any], tensors: Sequence[str]) -> Iterator[_Finding]:
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in config:
            yield f"refuses it without `{name}`", "write it into adapter_config.json"
    for name in _VLLM_REFUSES:
        if config.get(name):
            yield f"refuses `{name}`", _MERGE
    if config.get("bias", "none") != "none":
        yield "refuses `bias`", _MERGE
    if changes := _changed_base(config):
        yield f"refuses `init_lora_weights` {changes}", _CONVERT
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or any(one not in ("classifier", "score") for one in saved):
        yield f"refuses `modules_to_save` {saved}", _MERGE
    yield from _vllm_ranks(config)
    yield from _vllm_tensors(tensors)


def _vllm_ranks(config: Mapping[str, Any]) -> Iterator[_Finding]:
    for rank in _ranks(config):
        if type(rank) is not int or rank < 1:
            yield f"refuses rank {rank!r}", "write the rank the tensors have"
        elif rank > VLLM_RANKS[-1]:
            yield f"refuses rank {rank}: --max-lora-rank goes to {VLLM_RANKS[-1]}", _MERGE


def _vllm_tensors(tensors: Sequence[str]) -> Iterator[_Finding]:
    if strangers := _strangers(tensors):
        yield f"refuses the tensor `{strangers[0]}`, neither A nor B", _MERGE
    for module in _modules(tensors):
        if module.rpartition(".")[2] not in (*LINEARS, *_EMBEDDINGS):
            yield f"refuses the module `{module}` where its own model has none", _MERGE
            return


def _llama_cpp(config: Mapping[str, Any], tensors: Sequence[str]) -> Iterator[_Finding]:
    if config.get("use_rslora"):
        yield from _llama_cpp_rslora(config)
    for name in _LLAMA_CPP_LEAVES:
        if config.get(name):
            yield f"does not read `{name}` and computes without it", _MERGE
    if changes := _changed_base(config):
        yield f"does not read `init_lora_weights` {changes} and adds to another base", _CONVERT
    if strangers := _strangers(tensors):
        yield f"refuses the tensor `{strangers[0]}`, neither A nor B", _MERGE


def _llama_cpp_rslora(config: Mapping[str, Any]) -> Iterator[_Finding]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, int) and isinstance(alpha, int | float) and rank > 1:
        root = math.sqrt(rank)
        yield (
            f"does not read `use_rslora` and applies it {root:.3g} times too weak",
            f"convert a copy with `use_rslora` false and `lora_alpha` {alpha * root:g}",
        )


_CONVERT: Final = (
    "save it as plain LoRA with save_pretrained(path_initial_model_for_weight_conversion=...)"
)


def _changed_base(config: Mapping[str, Any]) -> str | None:
    """Name the initialisation, if it changed the base model's weights."""
    start = config.get("init_lora_weights", True)
    return start if isinstance(start, str) and start.lower() not in _PLAIN_STARTS else None


def _ranks(config: Mapping[str, Any]) -> list[Any]:
    """Give the ranks a configuration names, whatever they are."""
    pattern = config.get("rank_pattern")
    own = [config["r"]] if "r" in config else []
    return own + (list(pattern.values()) if isinstance(pattern, dict) else [])


def _can_be_found(base: str) -> bool:
    """Whether a name is a folder that is there, or looks like an id of the hub."""
    looks_like_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None
    return looks_like_id or os.path.isdir(base)


def _strangers(tensors: Sequence[str]) -> list[str]:
    """Name the tensors that belong to no A or B."""
    return [
        name
        for name in tensors
        if not _LORA_TENSOR.fullmatch(name) and not name.endswith(_BASE_TENSORS)
    ]


def _modules(tensors: Sequence[str]) -> list[str]:
    found = (_LORA_TENSOR.fullmatch(name.removeprefix(_PREFIX)) for name in tensors)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _outside_targets(config: Mapping[str, Any], tensors: Sequence[str]) -> str | None:
    """Name a module that has tensors and is no target; a pattern or `all-linear` is taken on trust."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return None
    ends = tuple(f".{target}" for target in targets)
    return next((one for one in _modules(tensors) if not f".{one}".endswith(ends)), None)
