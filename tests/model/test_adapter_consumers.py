"""The rules about other programs: against PEFT itself, and against what vLLM 0.33's own code was seen to do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from fam_engine.config import TrainConfig
from fam_engine.jobs.training.job import lora_spec
from fam_engine.model.adapter_consumers import VLLM_RANKS, objections, vllm_rank
from fam_engine.model.adapter_files import peft_config
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec, load_adapter
from tests.model.conftest import TinyCheckpoint
from tests.model.test_adapter_files import SPECS, saved
from tests.model.test_parity import load_double

PLAIN = peft_config(LoraSpec(16, 32.0, 0.0, ("q_proj", "down_proj"), False), "org/base")
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = [f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"]

# Change of the configuration -> whether vLLM 0.33.0 refuses the adapter, as run with its own code
# (PEFTHelper, LoRAConfig of --max-lora-rank 512, LoRAModel.from_local_checkpoint).
VLLM: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"use_rslora": True}, False),
    ({"lora_alpha": 2.5}, False),
    ({"rank_pattern": {"q_proj": 32}, "alpha_pattern": {"q_proj": 5}}, False),
    ({"init_lora_weights": False}, False),
    *(({"init_lora_weights": name}, False) for name in ("gaussian", "Orthogonal", "eva", "mica")),
    ({"modules_to_save": ["score"]}, False),
    ({"target_modules": "all-linear"}, False),
    *(({name: True}, True) for name in ("use_dora", "lora_bias", "use_qalora")),
    ({"bias": "all"}, True),
    *(({"init_lora_weights": name}, True) for name in ("pissa", "PiSSA_niter_4", "olora", "loftq")),
    ({"alora_invocation_tokens": [1]}, True),
    ({"layer_replication": [[0, 1]]}, True),
    ({"use_bdlora": {"nblocks": 2}}, True),
    ({"modules_to_save": ["lm_head"]}, True),
    ({"rank_pattern": {"q_proj": 600}}, True),
    *(({"r": rank}, True) for rank in (0, 513, "16")),
]
# A tensor beside the others -> whether vLLM 0.33.0 refuses the adapter, likewise.
VLLM_TENSORS = [
    (f"{MODULE}.lora_magnitude_vector", True),
    (f"{MODULE}.lora_B.bias", True),
    (f"{MODULE}.lora_A.default.weight", True),
    ("base_model.model.lm_head.weight", True),
    ("base_model.model.model.layers.0.mlp.router.lora_A.weight", True),
    ("base_model.model.model.embed_tokens.lora_embedding_A", False),
    ("base_model.model.model.embed_tokens.base_layer.weight", False),
    ("model.layers.0.self_attn.q_proj.lora_A.weight", False),
]


def objecting(config: dict[str, Any], tensors: list[str]) -> set[str]:
    return {one.consumer for one in objections(config, tensors)}


@pytest.mark.parametrize(("change", "is_refused"), VLLM)
def test_vllm_is_said_to_do_what_it_does(change: dict[str, Any], is_refused: bool) -> None:
    assert ("vllm" in objecting(PLAIN | change, TENSORS)) is is_refused


@pytest.mark.parametrize(("name", "is_refused"), VLLM_TENSORS)
def test_vllm_takes_the_tensors_it_takes(name: str, is_refused: bool) -> None:
    assert ("vllm" in objecting(PLAIN, [*TENSORS, name])) is is_refused


@pytest.mark.parametrize("missing", ["r", "lora_alpha", "target_modules"])
def test_vllm_needs_three_fields(missing: str) -> None:
    assert "vllm" in objecting({k: v for k, v in PLAIN.items() if k != missing}, TENSORS)


def test_vllm_itself_agrees(tmp_path: Path) -> None:
    """Where vLLM is installed; it is no dependency of ours."""
    helper = pytest.importorskip("vllm.lora.peft_helper", reason="needs the package `vllm`")
    from vllm.config.lora import LoRAConfig

    def is_taken(config: dict[str, Any]) -> bool:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        try:
            found = helper.PEFTHelper.from_local_dir(str(tmp_path), 4096)
            found.validate_legal(LoRAConfig(max_lora_rank=VLLM_RANKS[-1]))
        except (ValueError, TypeError):
            return False
        return True

    assert [is_taken(PLAIN | change) for change, _ in VLLM] == [not no for _, no in VLLM]


def test_nobody_objects_to_what_train_makes_unless_asked() -> None:
    config = TrainConfig(model="m", data=("d",), out=Path("o"))
    made = peft_config(lora_spec(config), "org/base")
    assert objections(made, TENSORS) == []
    assert vllm_rank(made) == made["r"] == 16  # the value vLLM starts with
    assert (made["bias"], made["use_rslora"], type(made["lora_alpha"])) == ("none", False, int)
    assert made.keys().isdisjoint({"modules_to_save", "use_dora", "rank_pattern"})


def test_a_rank_between_two_of_vllms_needs_the_next() -> None:
    assert [vllm_rank(PLAIN | {"r": rank}) for rank in (1, 2, 17, 512)] == [1, 8, 32, 512]
    assert vllm_rank(PLAIN | {"rank_pattern": {"q_proj": 65}}) == 128


def test_llama_cpp_would_scale_rslora_otherwise_and_the_remedy_puts_it_right() -> None:
    config = PLAIN | {"use_rslora": True}
    (found,) = objections(config, TENSORS)
    assert found.consumer == "llama.cpp"
    assert "4 times too weak" in found.found
    assert found.remedy.endswith("`use_rslora` false and `lora_alpha` 128")
    # llama.cpp's factor is alpha / rank, whatever the configuration says.
    right = LoraSpec(16, 32.0, 0.0, ("q_proj",), True).scaling
    assert right == pytest.approx(128 / 16)


@pytest.mark.parametrize(
    ("config", "tensors", "consumers"),
    [
        ({"alpha_pattern": {"q_proj": 5}}, TENSORS, {"llama.cpp"}),
        ({"init_lora_weights": "pissa"}, TENSORS, {"vllm", "llama.cpp"}),
        ({"use_dora": True}, [*TENSORS, f"{MODULE}.lora_magnitude_vector"], {"vllm", "llama.cpp"}),
        ({"peft_type": "IA3"}, TENSORS, {"peft"}),
        ({"base_model_name_or_path": "/no/such/folder"}, TENSORS, {"peft"}),
        ({"base_model_name_or_path": "."}, TENSORS, set()),
        ({"modules_to_save": 5, "rank_pattern": [], "target_modules": 3}, TENSORS, {"vllm"}),
    ],
)
def test_who_objects(config: dict[str, Any], tensors: list[str], consumers: set[str]) -> None:
    assert objecting(PLAIN | config, tensors) == consumers


# -- PEFT itself ---------------------------------------------------------------------------------


def peft_weights(base: Path, folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Load an adapter with PEFT; give the deltas it has, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(load_double(base), folder)
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    own = [
        str(one.message) for one in caught if "is_gradient_checkpointing" not in str(one.message)
    ]
    return deltas, own


@pytest.fixture
def adapter(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> tuple[Path, Path]:
    base, folder = tiny_checkpoint("qwen2"), tmp_path / "adapter"
    saved(base, folder, SPECS[1], compute_dtype="bf16")
    return base, folder


def test_peft_leaves_an_unknown_field_aside_with_a_warning(adapter: tuple[Path, Path]) -> None:
    base, folder = adapter
    assert peft_weights(base, folder)[1] == []
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    assert objecting(config, []) == {"llama.cpp"}  # SPECS[1] is rsLoRA
    config["our_note"] = 1
    path.write_text(json.dumps(config))
    assert any("our_note" in told for told in peft_weights(base, folder)[1])
    assert any("our_note" in one.found for one in objections(config, []))


def test_peft_leaves_tensors_outside_its_targets_aside(adapter: tuple[Path, Path]) -> None:
    """vLLM goes by the tensors: what one leaves out, the other adds."""
    base, folder = adapter
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    names = list(load_file(folder / "adapter_model.safetensors"))
    assert "peft" not in objecting(config, names)
    everything, _ = peft_weights(base, folder)
    config["target_modules"] = ["down_proj"]
    path.write_text(json.dumps(config))
    left, _ = peft_weights(base, folder)
    assert {name.rpartition(".")[2] for name in everything} == {"down_proj", "k_proj"}
    assert {name.rpartition(".")[2] for name in left} == {"down_proj"}
    (found,) = (one for one in objections(config, names) if one.consumer == "peft")
    assert "k_proj" in found.found


def test_peft_leaves_names_without_its_prefix_aside(adapter: tuple[Path, Path]) -> None:
    base, folder = adapter
    path = folder / "adapter_model.safetensors"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name.removeprefix("base_model.model."): t for name, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    deltas, _ = peft_weights(base, folder)
    assert all(not delta.any() for delta in deltas.values())
    assert "peft" in objecting(config, list(tensors))
    assert "vllm" not in objecting(config, list(tensors))


def test_every_field_of_peft_is_known() -> None:
    from fam_engine.model.lora import KNOWN_FIELDS

    assert peft.LoraConfig().to_dict().keys() <= KNOWN_FIELDS


def test_a_copy_for_llama_cpp_is_the_same_adapter_to_us(adapter: tuple[Path, Path]) -> None:
    base, folder = adapter
    config = ModelConfig.from_folder(base)
    before = load_adapter(folder, config, base=None)
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    (found,) = objections(fields, [])
    alpha = float(found.remedy.rpartition(" ")[2])
    path.write_text(json.dumps(fields | {"use_rslora": False, "lora_alpha": alpha}))
    after = load_adapter(folder, config, base=None)
    assert after.scaling == pytest.approx(before.scaling, rel=1e-5)
