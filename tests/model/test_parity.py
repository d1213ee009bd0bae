"""The decoder against transformers: other people's code for the same models, bitsandbytes included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fam_engine.model.config import ModelConfig
from fam_engine.model.loading import load_model
from fam_engine.model.nf4 import bitsandbytes_functional
from fam_engine.model.rope import inverse_frequencies
from tests.conftest import SHARED
from tests.model.conftest import TinyCheckpoint, randomise_vectors
from tests.model.packing_reference import Entry
from tests.model.plain import facts_of, random_entries

CONFIGS = sorted(path.name for path in (SHARED / "configs").glob("*.json"))
LENGTHS = [(1, 3), (9, 40), (64, 33), (30, 1)]

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, "
)


def logprobs_of(model: torch.nn.Module, entry: Entry) -> npt.NDArray[np.float64]:
    """Give the targets' log-probs from transformers' logits, in float64."""
    context, targets = entry
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*context, *targets[:-1]]])).logits[0]
    logprobs = logits_TV[len(context) - 1 :].double().log_softmax(-1)
    return logprobs[torch.arange(len(targets)), torch.tensor(targets)].numpy()


def load_double(folder: Path) -> torch.nn.Module:
    """Load with transformers in float64, norms included: its own compute in fp32 whatever it gets."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm_in_float64(module)
    return model


def _norm_in_float64(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        return module.weight * (x * scale)

    return forward


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 11}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("smollm3", {}),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "num_hidden_layers": 4, "mlp_bias": True}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 11, "attention_bias": True}),
    ],
)
def test_float64_equals_transformers(
    tiny_checkpoint: TinyCheckpoint, model_type: str, overrides: dict[str, Any]
) -> None:
    folder = tiny_checkpoint(model_type, **overrides)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp64")
    theirs = load_double(folder)
    entries = random_entries(decoder.config.vocab_size, LENGTHS)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        assert np.abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 5e-7


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """Make a published configuration small, its ratios kept where they matter."""
    heads, keys = values["num_attention_heads"], values.get("num_key_value_heads")
    kept = 4 if keys in (None, heads) else max(2, 2 * heads // keys)
    small = values | {
        "hidden_size": 16 * kept,
        "intermediate_size": 16 * kept * values["intermediate_size"] // values["hidden_size"],
        "num_hidden_layers": 2,
        "num_attention_heads": kept,
        "vocab_size": 300,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if keys is not None:
        small["num_key_value_heads"] = kept * keys // heads
    if values.get("head_dim") is not None:
        small["head_dim"] = 16 * values["head_dim"] * heads // values["hidden_size"]
    if values.get("max_window_layers") is not None:
        small["max_window_layers"] = 2
    if values.get("sliding_window") is not None:
        small["sliding_window"] = 20  # short enough to be felt
    small.pop("quantization_config", None)  # quantized checkpoints have their own tests
    return small


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configurations(shared: Path, tmp_path: Path, name: str) -> None:
    values = shrunk(json.loads((shared / "configs" / name).read_text(encoding="utf-8")))
    torch.manual_seed(0)
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(values), encoding="utf-8")
    theirs_config = transformers.AutoConfig.from_pretrained(source)
    theirs = transformers.AutoModelForCausalLM.from_config(theirs_config, dtype=torch.float32)
    randomise_vectors(theirs)
    theirs.save_pretrained(tmp_path / "saved")
    # Weights as transformers writes them, beside the configuration as it was published.
    (tmp_path / "saved" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    decoder = load_model(tmp_path / "saved", precision="fp32", compute_dtype="fp32")
    theirs = load_double(tmp_path / "saved")
    entries = random_entries(300, LENGTHS)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        assert np.abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 5e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_rotary_frequencies_are_transformers_bits(shared: Path, name: str) -> None:
    values = json.loads((shared / "configs" / name).read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(values)
    values.pop("quantization_config", None)
    theirs = transformers.AutoConfig.for_model(**values)
    if config.rope.type == "default":
        powers = config.rope.theta ** (
            torch.arange(0, config.head_dim, 2).float() / config.head_dim
        )
        expected, factor = 1.0 / powers, 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[config.rope.type](theirs, torch.device("cpu"))
    assert torch.equal(inverse_frequencies(config.rope, config.head_dim), expected)
    assert config.rope.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize(("intermediate_size", "hidden_size"), [(172, 64), (352, 128)])
def test_nf4_equals_transformers_with_bitsandbytes(
    tiny_checkpoint: TinyCheckpoint, intermediate_size: int, hidden_size: int
) -> None:
    folder = tiny_checkpoint(
        "llama",
        intermediate_size=intermediate_size,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        head_dim=hidden_size // 4,
    )
    decoder = load_model(folder, precision="nf4", compute_dtype="fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    ).eval()
    with torch.no_grad():
        # We keep embeddings and head in bf16 at precision nf4.
        for table in (theirs.model.embed_tokens.weight, theirs.lm_head.weight):
            table.copy_(table.bfloat16())
    for parent in list(theirs.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ != "Linear4bit":
                continue
            # Else an eval-mode forward repacks the weight in place, lossily.
            module.support_avx512bf16_for_cpu = False
            if module.in_features % 64 and module.in_features % 16 == 0:
                setattr(parent, name, _dequantized(module))
    entries = random_entries(decoder.config.vocab_size, LENGTHS)
    for entry, facts in zip(entries, facts_of(decoder, entries), strict=True):
        assert np.abs(facts.logprobs - logprobs_of(theirs, entry)).max() <= 1e-4


def _dequantized(module: torch.nn.Module) -> torch.nn.Linear:
    """Give the layer with its matrix dequantized as one row: test_nf4 tells why."""
    state = module.weight.quant_state
    shape, state.shape = state.shape, torch.Size((state.shape.numel(),))
    matrix = bitsandbytes_functional().dequantize_4bit(module.weight.data, state).view(shape)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    linear.weight = torch.nn.Parameter(matrix, requires_grad=False)
    return linear


def test_a_real_model_tells_its_story(shared: Path) -> None:
    """Greedy, 200 tokens from BOS, each the best by our head alone: the rank of a token is 1."""
    folder = shared / "models" / "stories260K"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids: list[int] = theirs.generate(
        torch.tensor([[1]]), max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    text = transformers.AutoTokenizer.from_pretrained(folder).decode(ids, skip_special_tokens=True)
    assert text.startswith(STORY)
    decoder = load_model(folder, precision="fp32", compute_dtype="fp32")
    (facts,) = facts_of(decoder, [(ids[:1], ids[1:])])
    assert (facts.ranks == 1).all()
    assert (facts.margins > 0).all()
    assert (
        np.abs(facts.logprobs - logprobs_of(load_double(folder), (ids[:1], ids[1:]))).max() < 5e-5
    )
