"""config.json: every field used, known harmless, or refused by name."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fam_engine.errors import ModelRefusedError
from fam_engine.model.config import HARMLESS, ModelConfig
from fam_engine.model.rope_config import RopeConfig

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, dict[str, Any]] = {
    model_type: {
        "model_type": model_type,
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for model_type in ("llama", "mistral", "qwen2", "qwen3", "smollm3")
}


def make(kind: str = "llama", /, **changes: object) -> ModelConfig:
    return ModelConfig.from_dict(BASE[kind] | changes)


def refused(named: str, kind: str = "llama", /, **changes: object) -> str:
    """Expect a refusal whose message starts with the field; give the message."""
    with pytest.raises(ModelRefusedError) as caught:
        make(kind, **changes)
    assert caught.value.code == "E_MODEL_CONFIG"
    assert caught.value.message.startswith(f"`{named}` is ")
    return caught.value.message


def test_published_configurations_are_accepted(shared: Path) -> None:
    files = sorted((shared / "configs").glob("*.json"))
    assert len(files) >= 17
    for file in files:
        config = ModelConfig.from_dict(json.loads(file.read_text()), where=file.name)
        assert (config.quantization is not None) == (".bnb-4bit" in file.name)


def test_published_configurations_in_detail(shared: Path) -> None:
    def read(name: str) -> ModelConfig:
        return ModelConfig.from_dict(json.loads((shared / f"configs/{name}.json").read_text()))

    llama = read("llama-3.2-1b-instruct")
    assert llama == read("llama-3.2-1b-instruct.v5-style")
    assert llama == read("llama-3.2-1b-instruct.unsloth-style")
    assert llama.rope.type == "llama3"
    assert llama.rope.original_max_position_embeddings == 8192
    assert llama.eos_token_ids == (128001, 128008, 128009)
    assert read("mistral-7b-v0.1").sliding_windows == (4096,) * 32
    assert read("mistral-7b-instruct-v0.2").sliding_windows == (None,) * 32
    assert read("qwen2.5-7b-instruct").sliding_windows == (None,) * 28
    yarn = read("qwen2.5-7b-instruct.yarn").rope
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert read("qwen2.5-0.5b-instruct").attention_bias
    assert not read("qwen2.5-0.5b-instruct").attention_output_bias
    assert read("qwen3-0.6b").qk_norm
    assert read("qwen3-0.6b").head_dim == 128


@pytest.mark.parametrize("model_type", BASE)
def test_agrees_with_transformers_on_defaults(model_type: str) -> None:
    ours = make(model_type)
    theirs = transformers.AutoConfig.for_model(**BASE[model_type])
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 8)
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    window = theirs.sliding_window if model_type == "mistral" else None
    assert ours.sliding_windows == (window,) * 4
    marks = getattr(theirs, "no_rope_layers", [1] * 4)
    assert ours.uses_rope == tuple(mark == 1 for mark in marks)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 16},  # from layer 28 on: in none
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ],
)
def test_qwen_windows_agree_with_transformers(model_type: str, fields: dict[str, Any]) -> None:
    theirs = transformers.AutoConfig.for_model(**(BASE[model_type] | fields))
    expected = tuple(
        theirs.sliding_window if kind == "sliding_attention" else None
        for kind in theirs.layer_types
    )
    assert make(model_type, **fields).sliding_windows == expected
    assert ModelConfig.from_dict(json.loads(theirs.to_json_string())).sliding_windows == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 0},
        {"no_rope_layers": [0, 1, 1, 0, 1]},  # those beyond the layers are not looked at
        {"no_rope_layers": [0, 0, 0, 0]},
        {"no_rope_layer_interval": 1},
        {"no_rope_layer_interval": 3},
        {"no_rope_layer_interval": 5},
        {"use_sliding_window": False, "sliding_window": 16},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 16, "no_rope_layers": [0, 1, 0, 1]},
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ],
)
def test_smollm3_layers_agree_with_transformers(fields: dict[str, Any]) -> None:
    theirs = transformers.AutoConfig.for_model(**(BASE["smollm3"] | fields))
    ours = make("smollm3", **fields)
    assert ours.uses_rope == tuple(mark == 1 for mark in theirs.no_rope_layers[:4])
    assert ours.sliding_windows == tuple(
        theirs.sliding_window if kind == "sliding_attention" else None
        for kind in theirs.layer_types
    )
    assert ModelConfig.from_dict(json.loads(theirs.to_json_string())) == ours


def test_the_published_smollm3_is_accepted() -> None:
    """With the fields of HuggingFaceTB/SmolLM3-3B."""
    config = make(
        "smollm3",
        architectures=["SmolLM3ForCausalLM"],
        attention_bias=False,
        layer_types=["full_attention"] * 36,
        max_window_layers=28,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9,
        num_hidden_layers=36,
        pretraining_tp=2,
        rope_scaling=None,
        rope_theta=5000000.0,
        sliding_window=None,
        use_sliding_window=False,
    )
    assert config.uses_rope == (True, True, True, False) * 9
    assert config.sliding_windows == (None,) * 36
    assert config.rope == RopeConfig(theta=5e6)
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"factor": 8.0},
        {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.25},
        {"factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0},
        {"factor": 4.0, "mscale": 0.7},  # alone: without effect
        {"factor": None, "original_max_position_embeddings": 32},
    ],
)
def test_yarn_attention_factor_agrees_with_transformers(fields: dict[str, Any]) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0} | fields
    ours = make(rope_parameters=rope | {"rope_theta": 5e5}).rope
    theirs = transformers.LlamaConfig(**BASE["llama"], rope_parameters=rope | {"rope_theta": 5e5})
    _, expected = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert ours.attention_factor == expected
    assert (
        ours.original_max_position_embeddings
        == (theirs.rope_parameters["original_max_position_embeddings"])
    )


def test_rope_in_old_and_new_style_agree() -> None:
    scaling = {"factor": 2.0, "type": "linear"}
    old = make(rope_theta=500.0, rope_scaling=scaling)
    new = make(rope_parameters={"rope_theta": 500, "rope_type": "linear", "factor": 2})
    both = make(rope_theta=500, rope_scaling=scaling, rope_parameters=scaling)
    assert old.rope == RopeConfig(type="linear", theta=500.0, factor=2.0)
    assert old == new == both


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "proportional", 3, None])
def test_other_rope_types_are_refused(kind: object) -> None:
    message = refused("rope_scaling.rope_type", rope_scaling={"rope_type": kind, "factor": 2.0})
    assert "default, linear, llama3, yarn" in message
    if isinstance(kind, str):
        refused("rope_scaling.type", rope_scaling={"type": kind, "factor": 2.0})


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("rope_scaling.type", {"rope_scaling": LLAMA3 | {"type": "linear"}}),
        ("rope_scaling.factor", {"rope_scaling": LLAMA3 | {"factor": 0.5}}),
        ("rope_scaling.factor", {"rope_scaling": LLAMA3 | {"factor": True}}),
        ("rope_scaling.factor", {"rope_scaling": LLAMA3 | {"factor": math.nan}}),
        ("rope_scaling.high_freq_factor", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}),
        ("rope_scaling.surprise", {"rope_scaling": LLAMA3 | {"surprise": 1}}),
        (
            "rope_scaling.partial_rotary_factor",
            {"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}},
        ),
        (
            "rope_scaling.beta_fast",
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}},
        ),
        (
            "rope_scaling.rope_theta",
            {"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"rope_theta": 2e4}},
        ),
        ("rope_parameters", {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}),
        ("rope_parameters", {"rope_parameters": [1]}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("rope_theta", {"rope_theta": 0}),
    ],
)
def test_bad_rope_is_refused(named: str, fields: dict[str, Any]) -> None:
    refused(named, **fields)


@pytest.mark.parametrize(
    ("named", "value"),
    [
        ("model_type", "gemma"),
        ("model_type", ["llama"]),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", ["MistralForCausalLM"]),
        ("hidden_act", "gelu"),
        ("pretraining_tp", 2),
        ("pretraining_tp", True),
        ("vocab_size", 2**20 + 1),
        ("vocab_size", 10**400),
        ("vocab_size", "100"),
        ("vocab_size", 100.0),
        ("vocab_size", True),
        ("vocab_size", None),
        ("num_hidden_layers", 513),
        ("num_hidden_layers", 0),
        ("hidden_size", 65537),
        ("hidden_size", 30),
        ("hidden_size", -32),
        ("head_dim", 7),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 8),
        ("rms_norm_eps", math.inf),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 10**400),
        ("max_position_embeddings", 2**25),
        ("tie_word_embeddings", 1),
        ("attention_bias", "yes"),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"] * 2),
        ("eos_token_id", 100),
        ("eos_token_id", [2, -1]),
        ("bos_token_id", "1"),
        ("auto_map", {"AutoModelForCausalLM": "modeling_x.X"}),
        ("quantization_config", "nf4"),
        ("is_encoder_decoder", True),
        ("attention_multiplier", 0.5),
        ("logits_soft_cap", None),
    ],
)
def test_bad_fields_are_refused_by_name(named: str, value: object) -> None:
    refused(named, **{named: value})


@pytest.mark.parametrize(
    ("model_type", "named", "value"),
    [
        ("mistral", "attention_bias", True),
        ("mistral", "mlp_bias", True),
        ("mistral", "layer_types", ["full_attention"] * 4),
        ("mistral", "sliding_window", 0),
        ("qwen2", "attention_bias", False),
        ("qwen2", "mlp_bias", True),
        ("qwen3", "layer_types", ["sliding_attention"] * 4),
        ("qwen3", "layer_types", ["full_attention"] * 3),
        ("qwen3", "use_sliding_window", "no"),
        ("qwen3", "no_rope_layers", [1, 1, 1, 0]),
        ("qwen3", "pretraining_tp", 2),
        ("smollm3", "no_rope_layers", [1, 1, 0]),
        ("smollm3", "no_rope_layers", [1, 1, 1, 2]),
        ("smollm3", "no_rope_layers", [True, True, True, False]),
        ("smollm3", "no_rope_layers", 4),
        ("smollm3", "no_rope_layer_interval", 0),
        ("smollm3", "no_rope_layer_interval", None),
        ("smollm3", "num_key_value_heads", 3),
    ],
)
def test_fields_other_types_lack_are_refused(model_type: str, named: str, value: object) -> None:
    refused(named, model_type, **{named: value})


def test_windows_that_are_switched_off_are_refused_in_layer_types() -> None:
    """In transformers they reach the mask, and so one attention path and not the other."""
    named = ["full_attention", "sliding_attention"] * 2
    for model_type in ("qwen2", "qwen3", "smollm3"):
        refused("layer_types", model_type, layer_types=named, sliding_window=16)
    refused("layer_types", "smollm3", layer_types=named, use_sliding_window=True)


def test_missing_fields_are_named() -> None:
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "model_type"):
        values = {key: value for key, value in BASE["llama"].items() if key != name}
        with pytest.raises(ModelRefusedError, match=f"`{name}` is missing"):
            ModelConfig.from_dict(values)
    assert make(num_key_value_heads=None).num_key_value_heads == 4


def test_biases_and_norms() -> None:
    llama = make(attention_bias=True, mlp_bias=True)
    assert (llama.attention_bias, llama.attention_output_bias, llama.mlp_bias) == (True,) * 3
    qwen2 = make("qwen2")
    assert (qwen2.attention_bias, qwen2.attention_output_bias) == (True, False)
    qwen3 = make("qwen3", attention_bias=True)
    assert (qwen3.attention_bias, qwen3.attention_output_bias, qwen3.qk_norm) == (True,) * 3
    smollm3 = make("smollm3", attention_bias=True, mlp_bias=True)
    assert (smollm3.attention_bias, smollm3.attention_output_bias, smollm3.mlp_bias) == (True,) * 3


def test_auto_map_beside_a_known_architecture_is_harmless() -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"}
    make(auto_map=auto_map, architectures=["LlamaForCausalLM"])


def test_harmless_fields_change_nothing() -> None:
    assert make(**dict.fromkeys(HARMLESS, "anything")) == make()


QUANTIZED = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


@pytest.mark.parametrize(
    ("named", "value"),
    [
        ("quant_method", "gptq"),
        ("load_in_4bit", False),
        ("load_in_8bit", True),
        ("bnb_4bit_quant_type", "fp4"),
        ("bnb_4bit_quant_storage", "bfloat16"),
        ("bnb_4bit_use_double_quant", False),
        ("surprise", 1),
    ],
)
def test_other_quantizations_are_refused(named: str, value: object) -> None:
    assert make(quantization_config=QUANTIZED).quantization == "bnb-nf4"
    refused(f"quantization_config.{named}", quantization_config=QUANTIZED | {named: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"vocab_size": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 200_000,
        '{"a": ' * 100_000,
        "1" * 10_000,
        '"\\ud800"',
        "\xff",
    ],
    ids=range(10),
)
def test_files_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelRefusedError, match="expected a JSON object"):
        ModelConfig.from_folder(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match=r"config\.json: no such file \(a model's folder"):
        ModelConfig.from_folder(tmp_path)
