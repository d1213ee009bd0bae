"""Weights from a checkpoint's safetensors, checked tensor by tensor, as the decoder wants them.

In: a model's folder and its `ModelConfig`. Out: `Weights`. Before anything is read, the tensors
that are there must be the ones the config asks for, no fewer, no more, in these shapes; while
reading, every value must be finite. (Elsewhere a missing tensor becomes random numbers and a
warning; a score from it looks plausible.) Two kinds of extra tensor are
harmless: stored `rotary_emb.inv_freq`, which the config gives, and an `lm_head.weight` equal to a
tied embedding.

Tensors are read one by one in the order the layers need them, quantized or rounded at once, and
their source freed: the peak is the finished model plus one matrix, on a GPU too, where they are
checked and quantized; the host then holds two small buffers (`staging`). Matrices are quantized from
their stored values. At precision nf4 and bf16, embeddings and head are bf16; at fp32 everything is
fp32. Vectors come in the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NoReturn

import torch

from fam_engine.config import Precision
from fam_engine.errors import ModelRefusedError
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.nf4 import PART_NAMES, from_checkpoint, quantize
from fam_engine.model.ops import NF4Weight
from fam_engine.model.safetensors_files import TensorInfo, list_tensors, read_tensor
from fam_engine.model.staging import Stage
from fam_engine.model.weights import LayerWeights, Linear, Weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fam_engine.model.config import ModelConfig

CODE: Final = "E_MODEL_TENSOR"
EMBED: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
FINAL_NORM: Final = "model.norm.weight"
# The merged matrices of a layer and the sources that fill their rows.
SOURCES: Final[dict[str, tuple[str, ...]]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_FLOATS: Final = (torch.bfloat16, torch.float16, torch.float32)
_STORAGE: Final = {"nf4": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}


def load_weights(
    folder: Path,
    config: ModelConfig,
    *,
    precision: Precision,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> Weights:
    """Load a checkpoint.

    Args:
        folder: Where `model.safetensors`, or the index and its shards, are.
        config: The model's shape, from the same folder.
        precision: How matrices are held: see the module's text.
        compute_dtype: Dtype of the vectors.
        device: Where the weights go. Quantization happens there too.

    Returns:
        The weights.

    Raises:
        ModelRefusedError: Files, names, shapes, dtypes or values that are not as they must be;
            names the tensor.
    """
    reader = CheckpointReader(
        tensors=check_tensors(folder, config, precision=precision),
        config=config,
        precision=precision,
        compute_dtype=compute_dtype,
        device=device,
    )
    embed_VD = reader.table(EMBED)
    return Weights(
        embed_VD=embed_VD,
        head_VD=reader.tied_head(embed_VD) if config.tie_word_embeddings else reader.table(HEAD),
        final_norm_D=reader.vector(FINAL_NORM),
        layers=tuple(reader.layer(index) for index in range(config.num_layers)),
        fingerprint=fingerprint(reader.tensors),
    )


def check_tensors(
    folder: Path, config: ModelConfig, *, precision: Precision
) -> dict[str, TensorInfo]:
    """Compare a checkpoint's names, shapes and dtypes with its config, reading no weight.

    Args:
        folder: Where the checkpoint is.
        config: The model's shape, from the same folder.
        precision: How matrices will be held.

    Returns:
        The checkpoint's tensors by name.

    Raises:
        ModelRefusedError: Files, names, shapes or dtypes that are not as they must be.
    """
    if config.quantization and precision != "nf4":
        message = f"the checkpoint is quantized to NF4, precision {precision} was asked for"
        hint = "use --precision nf4, or the model's unquantized checkpoint"
        raise ModelRefusedError(message, code="E_MODEL_PRECISION", where=str(folder), hint=hint)
    tensors, expected = list_tensors(folder), expected_shapes(config)
    allowed = set(expected)
    for name, shape in expected.items():
        info = tensors.get(name)
        if info is None:
            _refuse(name, "is missing; the config asks for it", folder)
        if _is_quantized(name, config):
            allowed.update(_check_quantized(info, tensors))
        elif info.shape != shape or info.dtype not in _FLOATS:
            found = f"is {info.dtype} {list(info.shape)}"
            _refuse(name, f"{found}; expected {list(shape)} in bf16, fp16 or fp32", info.path)
    if config.tie_word_embeddings:
        allowed.add(HEAD)  # compared with the embedding when that is read
    for name, info in tensors.items():
        if name not in allowed and not name.endswith("rotary_emb.inv_freq"):
            _refuse(name, "is not one that the config asks for", info.path)
    return tensors


def _is_quantized(name: str, config: ModelConfig) -> bool:
    return config.quantization is not None and name.endswith("_proj.weight")


def _check_quantized(info: TensorInfo, tensors: dict[str, TensorInfo]) -> Iterator[str]:
    """Give the names of the tensors beside a quantized matrix, which must all be there."""
    if info.dtype != torch.uint8:
        problem = f"is {info.dtype} in a checkpoint quantized to NF4; supported: all or none"
        _refuse(info.name, problem, info.path)
    for end in PART_NAMES:
        name = f"{info.name}.{end}"
        if name not in tensors:
            _refuse(name, "is missing beside a matrix quantized to NF4", info.path)
        yield name


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the shapes (N, K) of a layer's seven matrices by names like `self_attn.q_proj`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def merged_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the shapes (N, K) of a layer's merged matrices by the names of `SOURCES`."""
    shapes = linear_shapes(config)
    return {
        name: (sum(shapes[source][0] for source in sources), shapes[sources[0]][1])
        for name, sources in SOURCES.items()
    }


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the shapes (N, K) of all layers' matrices by names like `model.layers.0.self_attn.q_proj`."""
    return {
        f"model.layers.{index}.{module}": shape
        for index in range(config.num_layers)
        for module, shape in linear_shapes(config).items()
    }


def has_bias(config: ModelConfig, module: str) -> bool:
    """Whether one of the seven matrices has a bias."""
    if module == "self_attn.o_proj":
        return config.attention_output_bias
    return config.mlp_bias if module.startswith("mlp.") else config.attention_bias


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give the shape of every tensor an unquantized checkpoint of this config must hold."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBED: table, FINAL_NORM: (config.hidden_size,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = table
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (config.hidden_size,)
        for norm in ("q_norm", "k_norm") if config.qk_norm else ():
            shapes[f"{layer}self_attn.{norm}.weight"] = (config.head_dim,)
        for module, shape in linear_shapes(config).items():
            shapes[f"{layer}{module}.weight"] = shape
            if has_bias(config, module):
                shapes[f"{layer}{module}.bias"] = shape[:1]
    return shapes


@dataclass(frozen=True, kw_only=True)
class CheckpointReader:
    """Reads the tensors of one checkpoint, which `check_tensors` has looked at.

    The other fields are the arguments of `load_weights`.
    """

    tensors: dict[str, TensorInfo]
    config: ModelConfig
    precision: Precision
    compute_dtype: torch.dtype
    device: torch.device

    def vector(self, name: str) -> torch.Tensor:
        """Read a norm weight or a bias into the compute dtype."""
        return self.read(name, self.compute_dtype)

    def table(self, name: str) -> torch.Tensor:
        """Read the embedding or the head into its storage dtype."""
        return self.read(name, _STORAGE[self.precision])

    def tied_head(self, embed_VD: torch.Tensor) -> torch.Tensor:
        """Give the embedding as the head; a head that is stored as well must be equal to it."""
        info = self.tensors.get(HEAD)
        if info is not None and not torch.equal(
            read_tensor(info), read_tensor(self.tensors[EMBED])
        ):
            problem = f"differs from `{EMBED}`, but the config has tie_word_embeddings true"
            _refuse(HEAD, problem, info.path)
        return embed_VD

    def layer(self, index: int) -> LayerWeights:
        """Read one layer."""
        prefix = f"model.layers.{index}."
        attention = f"{prefix}self_attn."
        qk_norm = self.config.qk_norm
        return LayerWeights(
            input_norm_D=self.vector(f"{prefix}input_layernorm.weight"),
            post_norm_D=self.vector(f"{prefix}post_attention_layernorm.weight"),
            **{name: self.linear(prefix, sources) for name, sources in SOURCES.items()},
            q_norm=self.vector(f"{attention}q_norm.weight") if qk_norm else None,
            k_norm=self.vector(f"{attention}k_norm.weight") if qk_norm else None,
        )

    def linear(self, prefix: str, modules: Sequence[str]) -> Linear:
        """Read matrices with the same input, merged on their rows."""
        bias = None
        if has_bias(self.config, modules[0]):
            bias = torch.cat([self.vector(f"{prefix}{module}.bias") for module in modules])
        if self.precision == "nf4":
            return Linear(
                weight=tuple(self.nf4(f"{prefix}{module}") for module in modules), bias=bias
            )
        return Linear(weight=self._merged(prefix, modules), bias=bias)

    def _merged(self, prefix: str, modules: Sequence[str]) -> torch.Tensor:
        """Read matrices into consecutive rows of one."""
        shapes = [linear_shapes(self.config)[module] for module in modules]
        num_rows = sum(shape[0] for shape in shapes)
        dtype = _STORAGE[self.precision]
        weight = torch.empty((num_rows, shapes[0][1]), dtype=dtype, device=self.device)
        row = 0
        for module, shape in zip(modules, shapes, strict=True):
            weight[row : row + shape[0]] = self.read(f"{prefix}{module}.weight", dtype)
            row += shape[0]
        return weight

    def nf4(self, module: str) -> NF4Weight:
        """Read the matrix of `model.layers.0.mlp.up_proj` and its like, quantized if it is not."""
        name = f"{module}.weight"
        if not _is_quantized(name, self.config):
            return quantize(self.read(name, None))
        shape = module_shapes(self.config)[module]
        parts = {end: read_tensor(self.tensors[f"{name}.{end}"]) for end in PART_NAMES}
        parts["weight"] = self._fetch(name)
        return from_checkpoint(name, parts, shape).to(self.device)

    @cached_property
    def _stage(self) -> Stage:
        return Stage(self.device)

    def _fetch(self, name: str) -> torch.Tensor:
        """Read a tensor as it is stored, to the device."""
        info = self.tensors[name]
        return read_tensor(info) if self.device.type == "cpu" else self._stage.read(info)

    def read(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        """Read a tensor of finite values, to the device; `dtype` None keeps the stored one."""
        info = self.tensors[name]
        tensor = self._fetch(name).to(dtype)
        # One pass without a temporary: both extremes are NaN if any value is.
        low, high = torch.aminmax(tensor)
        if not bool(low.isfinite() & high.isfinite()):
            _refuse(name, f"has values that are not finite (in {tensor.dtype})", info.path)
        return tensor


def _refuse(name: str, problem: str, path: Path | None) -> NoReturn:
    where = None if path is None else str(path)
    raise ModelRefusedError(f"the tensor `{name}` {problem}", code=CODE, where=where)
