"""Adapters we write: PEFT loads them without a warning and computes the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fam_engine.config import Precision
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.config import ModelConfig
from fam_engine.model.devices import ComputeDtype
from fam_engine.model.loading import load_model
from fam_engine.model.lora import LoraSpec, load_adapter
from tests.model.conftest import TinyCheckpoint
from tests.model.packing_reference import pack_reference
from tests.model.plain import facts_of, random_entries
from tests.model.test_parity import load_double, logprobs_of
from tests.model.training.reference import ALL, trainable

SPECS = [
    LoraSpec(4, 16.0, 0.05, ALL, False),
    LoraSpec(3, 2.5, 0.0, ("down_proj", "k_proj"), True),
]


def saved(
    base: Path,
    folder: Path,
    spec: LoraSpec,
    *,
    precision: Precision = "nf4",
    compute_dtype: ComputeDtype = "fp32",
) -> dict[str, torch.Tensor]:
    """Save a random adapter for a model; give its parameters."""
    folder.mkdir()
    decoder = load_model(base, precision=precision, compute_dtype=compute_dtype)
    model = trainable(decoder, spec)
    save_adapter(
        folder,
        spec,
        model.parameters,
        base_model_name_or_path=str(base),
        base_fingerprint=decoder.weights.fingerprint,
    )
    return model.parameters


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_peft_computes_the_same(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, model_type: str, spec: LoraSpec
) -> None:
    base, folder = tiny_checkpoint(model_type), tmp_path / "adapter"
    saved(base, folder, spec)
    decoder = load_model(base, adapter=folder, precision="fp32", compute_dtype="fp64")
    with warnings.catch_warnings():
        # PEFT itself uses what transformers calls deprecated; all else is an error.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        theirs = peft.PeftModel.from_pretrained(load_double(base), folder).double()
    entries = random_entries(decoder.config.vocab_size, [(9, 40), (1, 3)])
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        assert abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 1e-9
        assert abs(facts.logprobs - logprobs_of(load_double(base), entry)).max() > 1e-2


def test_transformers_loads_the_folder_as_a_model(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    base = tiny_checkpoint("llama")
    saved(base, tmp_path / "adapter", SPECS[0], precision="fp32")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32
    ).eval()  # transformers 5.0 leaves dropout on
    assert "lora_A" in "".join(name for name, _ in model.named_parameters())
    (entry,) = random_entries(160, [(9, 40)])
    decoder = load_model(base, adapter=tmp_path / "adapter", precision="fp32", compute_dtype="fp32")
    (facts,) = facts_of(decoder, [entry])
    assert abs(facts.logprobs - logprobs_of(model, entry)).max() <= 5e-5


def test_values_are_kept_bit_by_bit(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base, folder = tiny_checkpoint("qwen2"), tmp_path / "adapter"
    parameters = saved(base, folder, SPECS[1], compute_dtype="bf16")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.keys() == parameters.keys()
    assert all(torch.equal(tensors[name], parameters[name]) for name in tensors)
    adapter = load_adapter(folder, ModelConfig.from_folder(base), base=None)
    assert (adapter.rank, adapter.scaling) == (SPECS[1].rank, SPECS[1].scaling)
    lora_A, lora_B = adapter.matrices["model.layers.1.mlp.down_proj"]
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    assert torch.equal(lora_A, parameters[name.format("A")])
    assert torch.equal(lora_B, parameters[name.format("B")])


def test_the_configuration_holds_only_fields_of_peft(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    base, folder = tiny_checkpoint("qwen2"), tmp_path / "adapter"
    saved(base, folder, SPECS[0], compute_dtype="bf16")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    values = json.loads((folder / "adapter_config.json").read_text())
    assert values.keys() <= peft.LoraConfig().to_dict().keys()
    assert (values["r"], values["lora_alpha"], values["lora_dropout"]) == (4, 16, 0.05)
    assert type(values["lora_alpha"]) is int
    assert values["target_modules"] == sorted(ALL)
    assert values["base_model_name_or_path"] == str(base)


def test_our_training_goes_on_from_what_was_saved(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    """What the trained model says is what the saved adapter gives on the same base."""
    base, folder = tiny_checkpoint("qwen3"), tmp_path / "adapter"
    folder.mkdir()
    model = trainable(load_model(base, precision="nf4", compute_dtype="fp32"), SPECS[0])
    save_adapter(
        folder, SPECS[0], model.parameters, base_model_name_or_path="x", base_fingerprint=None
    )
    entries = random_entries(160, [(9, 40), (4, 7)])
    nll_R = model.reference_nll(pack_reference(entries), dropout_seed=None).detach().numpy()
    decoder = load_model(base, adapter=folder, precision="nf4", compute_dtype="fp32")
    first, second = facts_of(decoder, entries)
    assert abs(first.logprobs + nll_R[:40]).max() <= 5e-5
    assert abs(second.logprobs + nll_R[40:]).max() <= 5e-5
