"""Adapters from strangers: modules to import, addresses to follow, tensors that do not belong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile.case import Artefact, Case, harmless, refused
from tests.hostile.weights import pickled

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
INTO, OUT_OF = f"{DOWN}.lora_A.weight", f"{DOWN}.lora_B.weight"


def write(folder: Path, changes: dict[str, Any]) -> None:
    """Write a LoRA on one matrix of the tiny model (64 x 128); its B is zero, so it changes no score."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["layers.0.mlp.down_proj"],
    }
    (folder / CONFIG).write_text(json.dumps(config | changes))
    save_file({INTO: torch.ones(2, 128), OUT_OF: torch.zeros(64, 2)}, folder / TENSORS)


def given(**changes: object) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        write(case.inside / "adapter", changes)
        case.command += ["--adapter", "adapter"]

    return make


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        given()(case)
        path = case.inside / "adapter" / TENSORS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return make


def with_module(**fields: object) -> Callable[[Case], None]:
    """Name a module that leaves a canary when it is imported."""

    def make(case: Case) -> None:
        given(**fields)(case)
        for folder in (case.inside, case.inside / "adapter"):
            (folder / "evil.py").write_text(case.payload)

    return make


def pickle_only(case: Case) -> None:
    given()(case)
    (case.inside / "adapter" / TENSORS).unlink()
    (case.inside / "adapter" / "adapter_model.bin").write_bytes(pickled(case))


def linked(case: Case) -> None:
    given()(case)
    shutil.move(case.inside / "adapter" / TENSORS, case.outside / TENSORS)
    (case.inside / "adapter" / TENSORS).symlink_to(case.outside / TENSORS)


def in_the_base(case: Case) -> None:
    """transformers attaches an adapter it finds in a model's own folder."""
    write(case.model, {})
    tensors = {INTO: torch.ones(2, 128), OUT_OF: torch.ones(64, 2)}
    save_file(tensors, case.model / TENSORS)


EVIL = {"base_model_class": "evil", "parent_library": "evil"}
CODE = "E_ADAPTER"
ARTEFACTS: list[Artefact] = [
    harmless("adapter that names a module to import", with_module(auto_mapping=EVIL)),
    harmless("adapter that names a parallel engine", with_module(megatron_core="evil")),
    harmless(
        "adapter whose base is an address", given(base_model_name_or_path="http://127.0.0.1:9/x")
    ),
    harmless("adapter in the base's own folder", in_the_base),
    harmless("adapter for modules by a slow pattern", given(target_modules=r"(\w+\.?)+$x")),
    harmless("adapter that leaves modules out by one", given(exclude_modules=r"(\w+\.?)+$x")),
    refused(
        "adapter that asks to trust code",
        with_module(tokenizer_kwargs={"trust_remote_code": True}),
        CODE,
    ),
    refused(
        "adapter with a parallel engine's settings",
        with_module(megatron_config={"a": "evil"}),
        CODE,
    ),
    refused("adapter of rank 10^9", given(r=10**9), CODE),
    refused("adapter whose scaling is NaN", given(lora_alpha=float("nan")), CODE),
    refused("adapter of another method", given(peft_type="LOHA"), CODE),
    refused("adapter that changes the base first", given(init_lora_weights="pissa"), CODE),
    refused("adapter with a NaN", changed(lambda t: t[OUT_OF][0, 0].fill_(torch.nan)), CODE),
    refused(
        "adapter for a wider model", changed(lambda t: t.update({INTO: torch.zeros(2, 256)})), CODE
    ),
    refused(
        "adapter none of whose names match",
        changed(lambda t: t.update({"x.lora_A": t.pop(INTO)})),
        CODE,
    ),
    refused(
        "adapter with a tensor nobody asked for",
        changed(lambda t: t.update(x=torch.zeros(1))),
        CODE,
    ),
    refused("pickled adapter", pickle_only, "E_MODEL_PICKLE"),
    refused("adapter that links outside", linked, CODE),
]
