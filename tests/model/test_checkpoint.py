"""Checkpoints: what is read is what is stored; whatever is not as it must be is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fam_engine.errors import ModelRefusedError
from fam_engine.model import safetensors_files
from fam_engine.model.checkpoint import expected_shapes, load_weights
from fam_engine.model.config import ModelConfig
from fam_engine.model.nf4 import bitsandbytes_functional, quantize
from fam_engine.model.ops import NF4Weight
from fam_engine.model.safetensors_files import list_tensors
from tests.model.peak_bytes import PeakBytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fam_engine.model.weights import Weights

    class TinyCheckpoint(Protocol):
        def __call__(self, model_type: str, **config_overrides: object) -> Path: ...


CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, torch.Tensor]


def load(folder: Path, **kwargs: object) -> Weights:
    options = {"precision": "fp32", "compute_dtype": torch.float32, "device": CPU} | kwargs
    return load_weights(folder, ModelConfig.from_folder(folder), **options)


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refused(folder: Path, match: str, **kwargs: object) -> None:
    with pytest.raises(ModelRefusedError, match=match):
        load(folder, **kwargs)


def same(left: Weights, right: Weights) -> bool:
    pairs = list(zip(left.tensors(), right.tensors(), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 24}),  # heads wider than hidden / heads
    ("qwen3", {"attention_bias": True}),
    ("smollm3", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
]


@pytest.mark.parametrize(("model_type", "overrides"), ARCHITECTURES)
def test_every_tensor_is_where_it_belongs(
    tiny_checkpoint: TinyCheckpoint, model_type: str, overrides: dict[str, Any]
) -> None:
    folder = tiny_checkpoint(model_type, **overrides)
    stored, weights = load_file(folder / WEIGHTS), load(folder)
    assert set(stored) == set(expected_shapes(ModelConfig.from_folder(folder)))

    def take(name: str) -> torch.Tensor:
        return stored.pop(name)

    assert torch.equal(weights.embed_VD, take("model.embed_tokens.weight"))
    assert torch.equal(weights.final_norm_D, take("model.norm.weight"))
    if overrides.get("tie_word_embeddings"):
        assert weights.head_VD is weights.embed_VD
    else:
        assert torch.equal(weights.head_VD, take("lm_head.weight"))
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        assert torch.equal(layer.input_norm_D, take(f"{prefix}input_layernorm.weight"))
        assert torch.equal(layer.post_norm_D, take(f"{prefix}post_attention_layernorm.weight"))
        for norm, name in ((layer.q_norm, "q_norm"), (layer.k_norm, "k_norm")):
            if norm is not None:
                assert torch.equal(norm, take(f"{prefix}self_attn.{name}.weight"))
        for linear, names in (
            (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            (layer.o, ["self_attn.o_proj"]),
            (layer.gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
            (layer.down, ["mlp.down_proj"]),
        ):
            assert torch.equal(
                linear.weight, torch.cat([take(f"{prefix}{n}.weight") for n in names])
            )
            if linear.bias is not None:
                assert torch.equal(
                    linear.bias, torch.cat([take(f"{prefix}{n}.bias") for n in names])
                )
    assert not stored


def test_nf4_keeps_each_source_and_bf16_tables(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("qwen2")
    stored = load_file(folder / WEIGHTS)
    weights = load(folder, precision="nf4")
    assert weights.embed_VD.dtype == weights.head_VD.dtype == torch.bfloat16
    assert torch.equal(weights.head_VD, stored["lm_head.weight"].bfloat16())
    assert torch.equal(weights.final_norm_D, stored["model.norm.weight"])
    qkv = weights.layers[2].qkv
    assert isinstance(qkv.weight, tuple)
    assert [part.shape for part in qkv.weight] == [(64, 64), (32, 64), (32, 64)]
    for letter, part in zip("qkv", qkv.weight, strict=True):
        expected = quantize(stored[f"model.layers.2.self_attn.{letter}_proj.weight"])
        assert_same_nf4(part, expected)
    assert (qkv.out_features, qkv.in_features) == (128, 64)


def assert_same_nf4(left: NF4Weight, right: NF4Weight) -> None:
    for field in dataclasses.fields(NF4Weight):
        a, b = getattr(left, field.name), getattr(right, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_precision_bf16_rounds_matrices_and_vectors_follow_compute(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    folder = tiny_checkpoint("qwen2")
    stored = load_file(folder / WEIGHTS)
    weights = load(folder, precision="bf16", compute_dtype=torch.float64)
    down = weights.layers[1].down.weight
    assert isinstance(down, torch.Tensor)
    assert torch.equal(down, stored[DOWN].bfloat16())
    assert weights.embed_VD.dtype == torch.bfloat16
    assert torch.equal(weights.final_norm_D, stored["model.norm.weight"].double())
    assert weights.layers[0].qkv.bias is not None
    assert weights.layers[0].qkv.bias.dtype == torch.float64


def test_fp16_checkpoints_are_read(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama", dtype=torch.float16)
    weights = load(folder)
    assert torch.equal(
        weights.embed_VD, load_file(folder / WEIGHTS)["model.embed_tokens.weight"].float()
    )


def test_memory_counts_a_tied_head_once(tiny_checkpoint: TinyCheckpoint) -> None:
    tied = load(tiny_checkpoint("llama", tie_word_embeddings=True))
    untied = load(tiny_checkpoint("llama"))
    assert untied.memory_bytes - tied.memory_bytes == 160 * 64 * 4
    assert tied.memory_bytes == sum(t.numel() * 4 for t in tied.tensors()) - 160 * 64 * 4


@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_shards_give_what_one_file_gives(tiny_checkpoint: TinyCheckpoint, precision: str) -> None:
    one = tiny_checkpoint("llama")
    # 30 KB: the matrices of a layer lie in different shards.
    many = tiny_checkpoint("llama", max_shard_size="30KB")
    assert len(list(many.glob("*.safetensors"))) > 5
    assert same(load(one, precision=precision), load(many, precision=precision))


def test_links_into_a_hub_cache_are_followed(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    source = tiny_checkpoint("llama")
    blobs = tmp_path / "models--x" / "blobs"
    snapshot = tmp_path / "models--x" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", WEIGHTS)):
        (source / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    load(snapshot)


# What must not be there, or must not be as it is.


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(DOWN), rf"`{DOWN}` is missing"),
        (lambda t: t.pop("lm_head.weight"), "`lm_head.weight` is missing"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "`model.extra` is not one"),
        (
            lambda t: t.update({"model.layers.3.input_layernorm.weight": torch.zeros(64)}),
            r"`model.layers.3.input_layernorm.weight` is not one",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(96)}),
            r"`model.layers.0.mlp.up_proj.bias` is not one",
        ),
        (lambda t: t.update({DOWN: t[DOWN].T.contiguous()}), rf"`{DOWN}` is .*\[96, 64\]"),
        (lambda t: t.update({DOWN: t[DOWN].double()}), rf"`{DOWN}` is torch.float64"),
        (lambda t: t.update({DOWN: t[DOWN].to(torch.uint8)}), rf"`{DOWN}` is torch.uint8"),
        (lambda t: t[DOWN].view(-1)[77].fill_(torch.nan), rf"`{DOWN}` .*not finite"),
        (lambda t: t[DOWN].view(-1)[0].fill_(-torch.inf), rf"`{DOWN}` .*not finite"),
        (lambda t: t["model.norm.weight"][3].fill_(torch.inf), "`model.norm.weight` .*finite"),
        (
            lambda t: t["model.embed_tokens.weight"][9, 9].fill_(torch.nan),
            "`model.embed_tokens.weight` .*finite",
        ),
    ],
)
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_bad_tensors_are_refused(
    tiny_checkpoint: TinyCheckpoint, precision: str, change: Callable[[Tensors], object], match: str
) -> None:
    folder = tiny_checkpoint("llama")
    edit(folder, change)
    refused(folder, match, precision=precision)


def test_values_beyond_bf16_are_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    edit(folder, lambda t: t["lm_head.weight"][0, 0].fill_(3.4e38))
    load(folder)
    refused(folder, "`lm_head.weight` has values that are not finite", precision="nf4")


def test_stored_frequencies_are_harmless(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda t: t.update({name: torch.zeros(8)}))
    load(folder)


def test_tied_head_must_equal_the_embedding(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama", tie_word_embeddings=True)
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    weights = load(folder)
    assert weights.head_VD is weights.embed_VD
    edit(folder, lambda t: t["lm_head.weight"][5, 5].add_(1e-3))
    refused(folder, "`lm_head.weight` differs from `model.embed_tokens.weight`")


# Checkpoints that bitsandbytes quantized.


def quantize_checkpoint(folder: Path) -> None:
    """Turn a checkpoint into what transformers saves of a 4-bit model."""
    functional = bitsandbytes_functional()

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            packed, state = functional.quantize_4bit(
                tensors[name], blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            tensors[name] = packed
            tensors |= {f"{name}.{end}": part for end, part in state.as_dict(packed=True).items()}

    edit(folder, change)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_prequantized_gives_what_quantizing_gives(tiny_checkpoint: TinyCheckpoint) -> None:
    plain, quantized = tiny_checkpoint("qwen2"), tiny_checkpoint("qwen2")
    quantize_checkpoint(quantized)
    assert same(load(plain, precision="nf4"), load(quantized, precision="nf4"))


@pytest.mark.parametrize("model_type", ["llama", "smollm3"])
def test_what_transformers_saves_in_4_bits_is_read(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, model_type: str
) -> None:
    bitsandbytes_functional()  # quietly, before transformers does it
    plain = tiny_checkpoint(model_type)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=settings, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "saved")
    assert same(load(plain, precision="nf4"), load(tmp_path / "saved", precision="nf4"))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_prequantized_is_refused_at_other_precisions(
    tiny_checkpoint: TinyCheckpoint, precision: str
) -> None:
    folder = tiny_checkpoint("llama")
    quantize_checkpoint(folder)
    refused(folder, "E_MODEL_PRECISION", precision=precision)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(f"{DOWN}.nested_absmax"), f"`{DOWN}.nested_absmax` is missing"),
        (lambda t: t.update({f"{DOWN}.more": torch.zeros(1)}), f"`{DOWN}.more` is not one"),
        (lambda t: t.update({DOWN: torch.zeros(64, 96)}), f"`{DOWN}` .*all or none"),
        (
            lambda t: t.update({f"{DOWN}.absmax": torch.zeros(96)}),
            f"`{DOWN}` has `absmax` of 96 torch.float32",
        ),
    ],
)
def test_bad_prequantized_tensors_are_refused(
    tiny_checkpoint: TinyCheckpoint, change: Callable[[Tensors], object], match: str
) -> None:
    folder = tiny_checkpoint("llama")
    quantize_checkpoint(folder)
    edit(folder, change)
    refused(folder, match, precision="nf4")


# Files.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_a_remedy(tiny_checkpoint: TinyCheckpoint, name: str) -> None:
    folder = tiny_checkpoint("llama")
    (folder / WEIGHTS).rename(folder / name)
    refused(folder, rf"E_MODEL_PICKLE.*{name}.*convert it to safetensors")


def test_no_weights_are_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    (folder / WEIGHTS).unlink()
    refused(folder, r"neither `model\.safetensors` nor")


def write_index(folder: Path, places: object) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..",
        "",
        "a\x00.safetensors",
        "caf\u00e9.safetensors",
        "shard.bin",
        "absent.safetensors",
    ],
)
def test_index_names_only_plain_files(tiny_checkpoint: TinyCheckpoint, file: str) -> None:
    folder = tiny_checkpoint("llama")
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    write_index(folder, {"model.norm.weight": file})
    refused(folder, "E_MODEL_FILES")


@pytest.mark.parametrize("places", [None, [], "x", {"a": 1}, {"a": None}])
def test_index_of_another_form_is_refused(tiny_checkpoint: TinyCheckpoint, places: object) -> None:
    folder = tiny_checkpoint("llama")
    (folder / WEIGHTS).unlink()
    write_index(folder, places)
    refused(folder, "`weight_map` is not an object of names")


def test_index_must_fit_its_shards(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama", max_shard_size="30KB")
    index = folder / f"{WEIGHTS}.index.json"
    places = json.loads(index.read_text())["weight_map"]
    other = next(file for file in places.values() if file != places[DOWN])
    write_index(folder, places | {DOWN: other})
    refused(folder, f"holds the tensor `{DOWN}`, which the index does not place there")
    write_index(folder, places | {"model.more": other})
    refused(folder, f"`{other}` does not hold the tensor `model.more`")


def test_links_out_of_the_folder_are_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    outside = folder.parent / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)
    refused(folder, "the link leads to .*, out of the folder")


def test_special_files_are_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)  # opening it would wait for ever
    refused(folder, "not a regular file")


def header(entries: object) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


def entry(start: int, stop: int, dtype: str = "U8", shape: object = None) -> dict[str, Any]:
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cut short"),
        (b"PK\x03\x04" + b"\x00" * 60, "cut short|not a safetensors file"),
        (b"\x80\x02}q\x00." * 20, "not a safetensors file"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (header(b"[]"), "expected a JSON object"),
        (header(b'{"a": 1, "a": 2}'), "twice in one object"),
        (header(b"{" * 50_000), "expected a JSON object"),
        (header({"a": 1}), "`a` has no dtype, shape"),
        (header({"a": entry(0, 4)}), "end at byte .*cut short"),
        (header({"a": entry(0, 4)}) + b"12345", "cut short or longer"),
        (header({"a": entry(1, 4)}) + b"1234", "`a` begins at byte"),  # a hole
        (header({"a": entry(0, 4), "b": entry(2, 6)}) + b"123456", "`b` begins at byte"),
        (header({"a": entry(0, 4), "b": entry(0, 4)}) + b"1234", "`b` begins at byte"),
        (header({"a": entry(0, 4, "F32", [2])}) + b"1234", "`a` of 8 bytes"),
        (header({"a": entry(0, 4, "Q9")}) + b"1234", "`a` has the dtype 'Q9'"),
        (header({"a": entry(0, 4, shape=[-4])}) + b"1234", "`a` has the shape"),
        (header({"a": entry(0, 4, shape=[2.0, 2])}) + b"1234", "`a` has the shape"),
        (header({"a": entry(0, 4, shape=[2**62, 2**62])}) + b"1234", "`a` of"),
        (header({"a": entry(-4, 0)}) + b"1234", "`a` of 4 bytes has the offsets"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelRefusedError, match=match):
        safetensors_files.list_tensors(tmp_path)


def test_file_cut_after_its_header_was_read_is_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("llama")
    tensors = safetensors_files.list_tensors(folder)
    last = max(tensors.values(), key=lambda info: info.start)
    os.truncate(folder / WEIGHTS, last.start + last.num_bytes // 2)
    with pytest.raises(ModelRefusedError, match="the file ends before the tensor does"):
        safetensors_files.read_tensor(last)


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_one_tensor_at_a_time_is_read(tiny_checkpoint: TinyCheckpoint, precision: str) -> None:
    folder = tiny_checkpoint("llama", hidden_size=256, intermediate_size=704, num_hidden_layers=8)
    stored = list_tensors(folder).values()
    largest = max(info.num_bytes for info in stored)
    with PeakBytes() as tensors:
        weights = load(folder, precision=precision)
    # The one that is read, and in quantizing its values in fp32 by parts.
    assert tensors.peak <= weights.memory_bytes + 4 * largest
    assert sum(info.num_bytes for info in stored) > weights.memory_bytes + 8 * largest
