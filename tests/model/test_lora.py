"""LoRA adapters: what PEFT computes from the same files, and refusal by name of all else."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fam_engine.errors import ModelRefusedError
from fam_engine.model.checkpoint import SOURCES, load_weights
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import (
    HARMLESS,
    Adapter,
    attach_adapter,
    find_config,
    load_adapter,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fam_engine.model.weights import Linear, Weights

    class TinyCheckpoint(Protocol):
        def __call__(self, model_type: str, **config_overrides: object) -> Path: ...


CPU = torch.device("cpu")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULES = [source for sources in SOURCES.values() for source in sources]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LM_HEAD_A = "base_model.model.lm_head.lora_A.weight"
DOWN_B = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"


def save_adapter(base: Path, folder: Path, **settings: object) -> transformers.PreTrainedModel:
    """Have PEFT make and save a random adapter; give its model with the adapter merged."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, lora)
        torch.manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zero at first
                parameter.data.normal_(std=0.1)
        wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


def load(base: Path, adapter: Path) -> Weights:
    config = ModelConfig.from_folder(base)
    weights = load_weights(base, config, precision="fp32", compute_dtype=torch.float32, device=CPU)
    return attach_adapter(weights, load_adapter(adapter, config, base=None), config, device=CPU)


def test_of_a_training_the_adapter_in_it_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / CONFIG).write_text("{}")
    with pytest.raises(ModelRefusedError, match=r"out/adapter_config\.json.*mean .*out/adapter\?"):
        find_config(tmp_path / "out")
    with pytest.raises(ModelRefusedError, match="E_ADAPTER_NOT_FOUND"):
        find_config(tmp_path / "nowhere")


def merged(linear: Linear) -> torch.Tensor:
    assert isinstance(linear.weight, torch.Tensor)
    weight = linear.weight.clone()
    for part in linear.lora.parts if linear.lora else ():
        weight[part.row_start : part.row_stop] += part.scaling * (part.lora_B @ part.lora_A)
    return weight


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ALL},
        {"r": 8, "lora_alpha": 3, "target_modules": ALL, "use_rslora": True},
        {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj", "down_proj"]},
        {"r": 2, "lora_alpha": 2, "target_modules": "all-linear"},
        {"r": 2, "lora_alpha": 2, "target_modules": ["layers.1.self_attn.k_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": r".*layers\.[02]\.\w+\.(q|v|up|down)_proj"},
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "o_proj"], "layers_to_transform": 0},
        {
            "r": 3,
            "lora_alpha": 5,
            "target_modules": ["k_proj", "gate_proj"],
            "layers_to_transform": [0, 2],
            "layers_pattern": "layers",
        },
        {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {
            "r": 3,
            "lora_alpha": 5,
            "target_modules": ["q_proj", "up_proj"],
            "exclude_modules": r".*\.1\..*",
        },
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "smollm3"])
def test_merged_weights_equal_peft(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    base = tiny_checkpoint(model_type)
    expected = save_adapter(base, tmp_path / "adapter", **settings).state_dict()
    weights = load(base, tmp_path / "adapter")
    for index, layer in enumerate(weights.layers):
        for name, sources in SOURCES.items():
            rows = [expected[f"model.layers.{index}.{source}.weight"] for source in sources]
            torch.testing.assert_close(
                merged(getattr(layer, name)), torch.cat(rows), rtol=1e-6, atol=1e-6
            )


def test_modules_without_adapter_hold_none(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base = tiny_checkpoint("llama")
    save_adapter(base, tmp_path / "a", r=2, lora_alpha=4, target_modules=["k_proj", "o_proj"])
    layer = load(base, tmp_path / "a").layers[0]
    assert layer.qkv.lora is not None
    (part,) = layer.qkv.lora.parts
    assert (part.row_start, part.row_stop) == (64, 96)
    assert (part.lora_A.shape, part.lora_B.shape) == ((2, 64), (32, 2))
    assert part.scaling == 2.0
    assert layer.o.lora is not None
    assert layer.gate_up.lora is None
    assert layer.down.lora is None


@pytest.fixture
def adapter(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> tuple[Path, ModelConfig]:
    """Give an adapter's folder and the model it is for."""
    base = tiny_checkpoint("llama")
    save_adapter(base, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=ALL)
    return tmp_path / "adapter", ModelConfig.from_folder(base)


def edit_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("r", 0),
        ("r", 10**9),
        ("r", 4.0),
        ("lora_alpha", 0),
        ("lora_alpha", math.nan),
        ("lora_alpha", True),
        ("use_rslora", 1),
        ("use_dora", True),
        ("use_qalora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layers_to_transform", ["1"]),
        ("layers_to_transform", True),
        ("layers_pattern", "h"),
        ("exclude_modules", {}),
        ("layer_replication", [[0, 2]]),
        ("loftq_config", {"loftq_bits": 4}),
        ("megatron_config", {}),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["x"]),
        ("target_modules", ""),
        ("target_modules", []),
        ("target_modules", ["q_proj", "lm_head"]),
        ("target_modules", ["proj"]),
        ("target_modules", [""]),
        ("target_modules", [1]),
        ("surprise", None),
    ],
)
def test_other_methods_are_refused_by_name(
    adapter: tuple[Path, ModelConfig], name: str, value: object
) -> None:
    folder, config = adapter
    edit_config(folder, **{name: value})
    match = "the number NaN" if value is math.nan else f"E_ADAPTER.*`{name}` is "
    with pytest.raises(ModelRefusedError, match=match):
        load_adapter(folder, config, base=None)


def test_harmless_fields_change_nothing(adapter: tuple[Path, ModelConfig]) -> None:
    folder, config = adapter

    def facts(loaded: Adapter) -> tuple[int, float, int]:
        return loaded.rank, loaded.scaling, len(loaded.matrices)

    before = facts(load_adapter(folder, config, base=None))
    edit_config(folder, **dict.fromkeys(HARMLESS, "os.system"))
    assert facts(load_adapter(folder, config, base=None)) == before == (4, 2.0, 21)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(DOWN_B), f"`{DOWN_B}` is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "`extra` is not one"),
        (
            # What makes PEFT load nothing, with a warning: every name has another prefix.
            lambda t: [
                t.update({name.replace("base_model.", ""): t.pop(name)}) for name in list(t)
            ],
            "is not one that adapter_config.json asks for",
        ),
        (lambda t: t.update({DOWN_B: t[DOWN_B].T.contiguous()}), rf"`{DOWN_B}` is .*\[4, 64\]"),
        (lambda t: t.update({DOWN_B: t[DOWN_B].double()}), rf"`{DOWN_B}` is torch.float64"),
        (lambda t: t[DOWN_B][1, 1].fill_(torch.nan), rf"`{DOWN_B}` has values .*not finite"),
    ],
)
def test_bad_tensors_are_refused(
    adapter: tuple[Path, ModelConfig],
    change: Callable[[dict[str, torch.Tensor]], object],
    match: str,
) -> None:
    folder, config = adapter
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(ModelRefusedError, match=match):
        load_adapter(folder, config, base=None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(DOWN_B), f"`{DOWN_B}` is missing"),
        (lambda t: t.update({LM_HEAD_A: t[DOWN_B].clone()}), f"`{LM_HEAD_A}` is not one"),
        (lambda t: t.clear(), "is missing|no tensor of a matrix of this model"),
    ],
)
@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": r".*\.2\..*_proj"},
        {"layers_to_transform": [2]},
        {"exclude_modules": [f"layers.{i}.{m}" for i in (0, 1) for m in MODULES]},
        {"exclude_modules": r".*\.[01]\..*"},
    ],
)
def test_however_modules_are_chosen_the_tensors_are_whole(
    adapter: tuple[Path, ModelConfig],
    choice: dict[str, object],
    change: Callable[[dict[str, torch.Tensor]], object],
    match: str,
) -> None:
    folder, config = adapter
    edit_config(folder, **choice)
    tensors = {k: v for k, v in load_file(folder / TENSORS).items() if ".layers.2." in k}
    save_file(tensors, folder / TENSORS)
    assert len(load_adapter(folder, config, base=None).matrices) == 7
    change(tensors)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(ModelRefusedError, match=match):
        load_adapter(folder, config, base=None)


@pytest.mark.parametrize("choice", [{"layers_to_transform": 1}, {"exclude_modules": ["q_proj"]}])
def test_tensors_outside_a_list_are_refused(
    adapter: tuple[Path, ModelConfig], choice: dict[str, object]
) -> None:
    folder, config = adapter
    edit_config(folder, **choice)
    with pytest.raises(ModelRefusedError, match="is not one that"):
        load_adapter(folder, config, base=None)


def test_adapter_of_another_model_is_refused(
    adapter: tuple[Path, ModelConfig], tiny_checkpoint: TinyCheckpoint
) -> None:
    folder, _ = adapter
    wider = ModelConfig.from_folder(tiny_checkpoint("llama", hidden_size=128))
    with pytest.raises(ModelRefusedError, match="expected"):
        load_adapter(folder, wider, base=None)
    deeper = ModelConfig.from_folder(tiny_checkpoint("llama", num_hidden_layers=4))
    with pytest.raises(ModelRefusedError, match=r"layers\.3\..* is missing"):
        load_adapter(folder, deeper, base=None)


def test_pickled_adapter_is_refused(adapter: tuple[Path, ModelConfig]) -> None:
    folder, config = adapter
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelRefusedError, match=r"E_MODEL_PICKLE.*adapter_model\.bin"):
        load_adapter(folder, config, base=None)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_missing_files_are_refused(adapter: tuple[Path, ModelConfig], name: str) -> None:
    folder, config = adapter
    (folder / name).unlink()
    with pytest.raises(ModelRefusedError, match="no such file") as error:
        load_adapter(folder, config, base=None)
    if name == CONFIG:
        assert error.value.hint == f"an adapter's folder has {CONFIG} and {TENSORS}"
