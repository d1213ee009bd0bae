"""Merged checkpoints: exact sums, read by transformers and by us, whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fam_engine.errors import ModelRefusedError, StorageError, UsageError
from fam_engine.model import merging
from fam_engine.model.loading import load_model
from fam_engine.model.lora import LoraSpec
from fam_engine.model.merging import MergeBase, plan_merge
from fam_engine.model.nf4 import quantize
from fam_engine.model.safetensors_writing import Kinds, Make, write_tensors
from tests.model.conftest import TinyCheckpoint
from tests.model.plain import dequantize, facts_of, random_entries
from tests.model.test_adapter_files import saved
from tests.model.test_parity import load_double, logprobs_of

SPEC = LoraSpec(3, 6.0, 0.0, ("q_proj", "v_proj", "up_proj", "down_proj"), False)
TARGET, OTHER = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def delta_of(parameters: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    lora_A, lora_B = (
        parameters[f"base_model.model.{module}.lora_{letter}.weight"].detach().double()
        for letter in "AB"
    )
    return SPEC.scaling * lora_B @ lora_A


@pytest.mark.parametrize("base", ["original", "dequantized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, dtype: torch.dtype, base: MergeBase
) -> None:
    model = tiny_checkpoint("llama", dtype=dtype)
    parameters = saved(model, tmp_path / "a", SPEC)
    plan_merge(model, tmp_path / "a", base=base).write(tmp_path / "out")
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(after[name].dtype == dtype for name in after)
    for module in (TARGET, OTHER):
        stored = before[f"{module}.weight"]
        exact = stored.double() if base == "original" else dequantize(quantize(stored)).double()
        if module == TARGET:
            exact = exact + delta_of(parameters, TARGET)
        # Half a unit in the last place, and what the sum in fp32 is off by.
        error = (after[f"{module}.weight"].double() - exact).abs()
        assert bool((error <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all())
    same = [name for name in before if torch.equal(before[name], after[name])]
    linears = {name for name in before if name.endswith("_proj.weight")}
    targets = {name for name in linears if name.split(".")[4] in SPEC.target_modules}
    assert set(same) == before.keys() - (targets if base == "original" else linears)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_original_says_what_the_adapter_on_unquantized_weights_says(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, model_type: str
) -> None:
    model, out = tiny_checkpoint(model_type), tmp_path / "out"
    saved(model, tmp_path / "a", SPEC, precision="fp32")
    plan_merge(model, tmp_path / "a", base="original").write(out)
    adapted = load_model(model, adapter=tmp_path / "a", precision="fp32", compute_dtype="fp64")
    merged = load_model(out, precision="fp32", compute_dtype="fp64")
    theirs = load_double(out)
    entries = random_entries(160, [(9, 40), (3, 8)])
    pairs = zip(entries, facts_of(adapted, entries), facts_of(merged, entries), strict=True)
    for entry, expected, facts in pairs:
        assert abs(facts.logprobs - expected.logprobs).max() <= 1e-5
        assert abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 5e-7


def test_dequantized_says_what_was_trained(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model, out = tiny_checkpoint("qwen2", tie_word_embeddings=True), tmp_path / "out"
    saved(model, tmp_path / "a", SPEC)
    plan_merge(model, tmp_path / "a", base="dequantized").write(out)
    trained = load_model(model, adapter=tmp_path / "a", precision="nf4", compute_dtype="fp64")
    merged = load_model(out, precision="fp32", compute_dtype="fp64")
    # At precision nf4 tables are bf16 whatever is stored; all else must be equal.
    merged.weights.embed_VD.copy_(merged.weights.embed_VD.bfloat16())
    entries = random_entries(160, [(9, 40), (3, 8)])
    for expected, facts in zip(facts_of(trained, entries), facts_of(merged, entries), strict=True):
        assert abs(facts.logprobs - expected.logprobs).max() <= 1e-5


def shards_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_shards_and_their_index(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model, out = tiny_checkpoint("llama", max_shard_size="100KB"), tmp_path / "out"
    saved(model, tmp_path / "a", SPEC)
    plan_merge(model, tmp_path / "a", base="original").write(out)
    assert shards_of(out) == shards_of(model)
    assert len(shards_of(out)) > 2
    name = "model.safetensors.index.json"
    ours, theirs = (json.loads((folder / name).read_text()) for folder in (out, model))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    load_model(out, precision="nf4")
    transformers.AutoModelForCausalLM.from_pretrained(out)


def quantized(model: Path, folder: Path) -> Path:
    """Have bitsandbytes quantize a checkpoint."""
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, quantization_config=settings, dtype=torch.bfloat16
    )
    loaded.save_pretrained(folder)
    return folder


def test_a_model_stored_in_nf4(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    plain = tiny_checkpoint("llama", intermediate_size=128)
    model, out = quantized(plain, tmp_path / "nf4"), tmp_path / "out"
    parameters = saved(model, tmp_path / "a", SPEC)
    with pytest.raises(ModelRefusedError, match=r"E_MERGE.*--base dequantized"):
        plan_merge(model, tmp_path / "a", base="original").write(out)
    plan_merge(model, tmp_path / "a", base="dequantized").write(out)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    after = tensors_of(out)
    assert after.keys() == tensors_of(plain).keys()
    part = load_model(model, precision="nf4").weights.layers[1].gate_up.weight[1]  # type: ignore[index]
    exact = dequantize(part).double() + delta_of(parameters, TARGET)
    assert after[f"{TARGET}.weight"].dtype == torch.bfloat16
    error = (after[f"{TARGET}.weight"].double() - exact).abs()
    assert bool((error <= 2**-8 * exact.abs() + 1e-6).all())
    merged = load_model(out, precision="bf16", compute_dtype="fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    (entry,) = random_entries(160, [(9, 40)])
    (facts,) = facts_of(merged, [entry])
    assert abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 5e-5


def test_files_beside_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer's come along; adapters and code do not."""
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    saved(model, tmp_path / "a", SPEC)
    (model / "adapter_config.json").write_text("{}")
    (model / "modeling.py").write_text("1 / 0")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    plan_merge(model, tmp_path / "a", base="original").write(tmp_path / "new" / "out")
    expected = {path.name for path in tiny_model.iterdir()}
    expected |= {"chat_template.jinja", "additional_chat_templates"}
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == expected
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "new" / "out")
    assert tokenizer.decode(tokenizer("a b", add_special_tokens=False).input_ids) == "a b"


def test_the_model_s_own_folder_is_safe(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model = tiny_checkpoint("llama")
    saved(model, tmp_path / "a", SPEC)
    before = tensors_of(model)
    with pytest.raises(UsageError, match=r"E_MERGE.*has files in it"):
        plan_merge(model, tmp_path / "a", base="original").write(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())
    (tmp_path / "empty").mkdir()
    plan_merge(model, tmp_path / "a", base="original").write(tmp_path / "empty")
    assert shards_of(tmp_path / "empty") == ["model.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), KeyboardInterrupt()])
def test_whole_or_not_there(
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    model = tiny_checkpoint("llama", max_shard_size="100KB")
    saved(model, tmp_path / "a", SPEC)
    calls: list[Path] = []

    def failing(path: Path, kinds: Kinds, make: Make) -> int:
        calls.append(path)
        if len(calls) == 3:
            raise error
        return write_tensors(path, kinds, make)

    monkeypatch.setattr(merging, "write_tensors", failing)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        plan_merge(model, tmp_path / "a", base="original").write(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == there


def test_sums_beyond_float16_are_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model = tiny_checkpoint("llama", dtype=torch.float16)
    spec = LoraSpec(3, 1e8, 0.0, ("up_proj",), False)
    saved(model, tmp_path / "a", spec)
    with pytest.raises(ModelRefusedError, match=r"E_MERGE.*up_proj\.weight. has values that are"):
        plan_merge(model, tmp_path / "a", base="original").write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
