"""LoRA adapters in PEFT's form, checked and attached to the weights they change.

In: a folder with adapter_config.json and adapter_model.safetensors, and the model's shape. Out:
weights whose `Linear.lora` hold A, B and the scaling of each source matrix by its rows.

Plain LoRA on the seven matrices of a layer, all of one rank and alpha. Whatever else PEFT can do
(DoRA, biases, trained embeddings, ranks by pattern, initialisations that change the base model) is
refused by name. The tensors must be exactly those the configuration names: PEFT loads an adapter
none of whose names match as one that changes nothing, with a warning. A pattern is not matched, for
a hostile one runs for years: where the configuration has one, the tensors say which matrices are
changed, as PEFT saves no others. `base_model_name_or_path` is never followed, `auto_mapping` never
imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import torch

from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.errors import ModelRefusedError, UsageError
from fam_engine.model.adapter_files import CONFIG_FILE, TENSORS_FILE
from fam_engine.model.checkpoint import SOURCES, linear_shapes, module_shapes
from fam_engine.model.fields import Fields
from fam_engine.model.fingerprint import check_base
from fam_engine.model.safetensors_files import read_header, read_tensor
from fam_engine.model.weights import Linear, LoraDelta, LoraPart, Weights

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from pathlib import Path

    from fam_engine.model.config import ModelConfig
    from fam_engine.model.safetensors_files import TensorInfo

CODE: Final = "E_ADAPTER"
MAX_RANK: Final = 4096
_FLOATS: Final = (torch.bfloat16, torch.float16, torch.float32)

# Name -> why leaving it aside cannot change a score.
HARMLESS: Final[dict[str, str]] = {
    "auto_mapping": "names Python modules to import, which we don't",
    "base_model_name_or_path": "where the trainer had the base model",
    "revision": "where the trainer had the base model",
    "inference_mode": "whether PEFT lets it train",
    "lora_dropout": "acts in training only",
    "megatron_core": "a module to import, which we don't",
    "peft_version": "who wrote the file",
    "qalora_group_size": "without effect while use_qalora is false",
    "ensure_weight_tying": "acts on trained embeddings, which are refused",
}
# Fields that must have one of these values, or be absent: anything else is another method.
_NEUTRAL: Final[dict[str, Sequence[object]]] = {
    "task_type": ("CAUSAL_LM", None),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    # Others (pissa, olora, corda, loftq, lora_ga) change the base weights before training.
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "modules_to_save": (None, []),
    # Their keys are patterns, and no tensor tells the alpha of its matrix.
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "loftq_config": ({}, None),
    # What the list of layers is called, in all models we know.
    "layers_pattern": (None, "", [], "layers", ["layers"]),
} | dict.fromkeys(
    (
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "eva_config",
        "kasa_config",
        "layer_replication",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ),
    (None,),
)

# Fields that say which matrices are changed.
_TARGETS: Final = ("target_modules", "exclude_modules", "layers_to_transform")

# Every field of PEFT 0.21.2 is one of these.
KNOWN_FIELDS: Final = frozenset(
    {*HARMLESS, *_NEUTRAL, *_TARGETS, "peft_type", "r", "lora_alpha", "use_rslora"}
)


@dataclass(frozen=True)
class LoraSpec:
    """The form of an adapter to train; names as in PEFT's `LoraConfig`.

    Attributes:
        rank: R, of every matrix.
        alpha: Numerator of the scaling.
        dropout: Probability that a value of LoRA's input is left out in training, below 1.
        target_modules: Which of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, in
            every layer.
        use_rslora: Whether the scaling is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)
            instead of alpha / rank.

    Raises:
        UsageError: A value out of range, or the name of no such matrix.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    use_rslora: bool

    def __post_init__(self) -> None:
        """Check the values."""
        known = tuple(source.split(".")[1] for sources in SOURCES.values() for source in sources)
        problems = {
            f"rank {self.rank}, expected 1 to {MAX_RANK}": not 1 <= self.rank <= MAX_RANK,
            f"alpha {self.alpha}, expected 1e-6 to 1e9": not 1e-6 <= self.alpha <= 1e9,
            f"dropout {self.dropout}, expected at least 0, below 1": not 0 <= self.dropout < 1,
            "no target modules": not self.target_modules,
        } | {
            f"target module `{name}`, expected some of {', '.join(known)}": name not in known
            for name in self.target_modules
        }
        for problem, is_there in problems.items():
            if is_there:
                raise UsageError(f"the adapter to train has {problem}", code="E_LORA")

    @property
    def scaling(self) -> float:
        """Return the factor of B @ A."""
        return scaling_of(rank=self.rank, alpha=self.alpha, use_rslora=self.use_rslora)

    def modules(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """Give the shapes (N, K) of the matrices it changes by their full names, layer after layer."""
        return {
            module: shape
            for module, shape in module_shapes(config).items()
            if module.rpartition(".")[2] in self.target_modules
        }


def scaling_of(*, rank: int, alpha: float, use_rslora: bool) -> float:
    """Give the factor of B @ A."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A checked adapter.

    Attributes:
        rank: R, the same for every matrix.
        scaling: Factor of B @ A.
        matrices: By the full name of the changed module: A [R, K] and B [N, R], float32 (float64
            while a float64 model is trained).
    """

    rank: int
    scaling: float
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]


def find_config(folder: Path) -> Path:
    """Give the configuration of an adapter's folder.

    Raises:
        ModelRefusedError: There is none; if the folder is what `train` left, the message names the adapter in it.
    """
    if not folder.is_dir():
        raise ModelRefusedError(
            "is not a folder, expected a PEFT LoRA adapter",
            code="E_ADAPTER_NOT_FOUND",
            where=str(folder),
        )
    path, inner = folder / CONFIG_FILE, folder / "adapter"
    if not path.exists() and (inner / CONFIG_FILE).is_file():
        hint = f"did you mean {inner}?"
        raise ModelRefusedError("no such file", code=CODE, where=str(path), hint=hint)
    hint = f"an adapter's folder has {CONFIG_FILE} and {TENSORS_FILE}"
    return plain_file(folder, CONFIG_FILE, code=CODE, hint=hint)


def load_adapter(folder: Path, config: ModelConfig, *, base: str | None) -> Adapter:
    """Read and check an adapter.

    Args:
        folder: Where its two files are.
        config: The model it is for.
        base: Fingerprint of that model's checkpoint; None: there is none.

    Raises:
        ModelRefusedError: Another method than plain LoRA, or tensors that are not exactly those the
            configuration names, in shape, dtype or by a value that is not finite; or it was trained
            over another model, and says so.
    """
    path = find_config(folder)
    fields = Fields(read_json_object(path, code=CODE), where=str(path), code=CODE)
    fields.get("peft_type")
    fields.only("peft_type", ["LORA"])
    for name, supported in _NEUTRAL.items():
        fields.only(name, supported)
    rank = fields.integer("r", low=1, high=MAX_RANK)
    alpha = fields.number("lora_alpha", low=1e-6, high=1e9)
    scaling = scaling_of(
        rank=rank, alpha=alpha, use_rslora=fields.boolean("use_rslora", default=False)
    )
    modules = _read_targets(fields, config)
    fields.finish(HARMLESS)
    tensors_path = _find_tensors(folder)
    tensors = read_header(tensors_path)
    if _has_pattern(fields):
        modules = _with_tensors(modules, tensors)
    _check_tensors(tensors_path, tensors, modules, rank)
    if base is not None:
        check_base(tensors_path, base)
    matrices = {
        module: (_read(tensors[tensor_name(module, "A")]), _read(tensors[tensor_name(module, "B")]))
        for module in modules
    }
    return Adapter(rank=rank, scaling=scaling, matrices=matrices)


def attach_adapter(
    weights: Weights, adapter: Adapter, config: ModelConfig, *, device: torch.device
) -> Weights:
    """Give the same weights with the adapter's matrices in `Linear.lora`, on the device."""
    shapes = linear_shapes(config)

    def with_lora(index: int, name: str, linear: Linear) -> Linear:
        parts, row = [], 0
        for source in SOURCES[name]:
            stop = row + shapes[source][0]
            found = adapter.matrices.get(f"model.layers.{index}.{source}")
            if found is not None:
                lora_A, lora_B = (matrix.to(device) for matrix in found)
                parts.append(
                    LoraPart(
                        row_start=row,
                        row_stop=stop,
                        lora_A=lora_A,
                        lora_B=lora_B,
                        scaling=adapter.scaling,
                    )
                )
            row = stop
        return replace(linear, lora=LoraDelta(parts=tuple(parts)) if parts else None)

    layers = (
        layer.with_linears(partial(with_lora, index)) for index, layer in enumerate(weights.layers)
    )
    return replace(weights, layers=tuple(layers))


def _read_targets(fields: Fields, config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the full names and shapes (N, K) of the modules the fields mean; of a pattern, all that it may mean."""
    excluded, layers = _read_excluded(fields), _read_layers(fields)
    return {
        module: shape
        for module, shape in _read_named(fields, config).items()
        if not any(_is_named(module, name) for name in excluded)
        and (layers is None or int(module.split(".")[2]) in layers)
    }


def _read_excluded(fields: Fields) -> Sequence[object]:
    excluded = fields.get("exclude_modules", None)
    if not isinstance(excluded, list | str | None):
        fields.refuse("exclude_modules", "a list of module names, or a pattern")
    return excluded if isinstance(excluded, list) else ()


def _read_layers(fields: Fields) -> Sequence[int] | None:
    """Give the numbers of the layers that are changed; None: all are."""
    layers = fields.get("layers_to_transform", None)
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is None or not numbers:
        return None
    if any(type(number) is not int for number in numbers):
        fields.refuse("layers_to_transform", "numbers of layers")
    return numbers


def _read_named(fields: Fields, config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the modules `target_modules` names."""
    targets = fields.get("target_modules")
    shapes = module_shapes(config)
    if isinstance(targets, str) and targets:  # a pattern to PEFT, but for "all-linear"
        return shapes
    if not isinstance(targets, list) or not targets:
        fields.refuse("target_modules", 'a list of module names, "all-linear" or a pattern')
    chosen: dict[str, tuple[int, int]] = {}
    for target in targets:
        found = {module: shape for module, shape in shapes.items() if _is_named(module, target)}
        if not found or target == "":
            names = ", ".join(module.split(".")[1] for module in linear_shapes(config))
            fields.refuse("target_modules", f"modules of this model out of {names}")
        chosen |= found
    return chosen


def _is_named(module: str, name: object) -> bool:
    """Whether a name is, as in PEFT, the whole one of a module or the end of it after a dot."""
    return isinstance(name, str) and f".{module}".endswith(f".{name}")


def _has_pattern(fields: Fields) -> bool:
    """Whether a regular expression says which modules are changed."""
    given = (fields.get(name, None) for name in ("target_modules", "exclude_modules"))
    return any(isinstance(value, str) and value not in ("", "all-linear") for value in given)


def _with_tensors(
    modules: dict[str, tuple[int, int]], tensors: Container[str]
) -> dict[str, tuple[int, int]]:
    """Give those of the modules that have an A or a B."""
    return {
        module: shape
        for module, shape in modules.items()
        if any(tensor_name(module, letter) in tensors for letter in "AB")
    }


def _find_tensors(folder: Path) -> Path:
    if not (folder / TENSORS_FILE).exists() and (folder / "adapter_model.bin").exists():
        message = "the adapter is pickled (`adapter_model.bin`); only safetensors are read"
        hint = "unpickling runs code: save it again with PEFT's save_pretrained in a safe place"
        raise ModelRefusedError(message, code="E_MODEL_PICKLE", where=str(folder), hint=hint)
    return plain_file(folder, TENSORS_FILE, code=CODE)


def _check_tensors(
    path: Path, tensors: Mapping[str, TensorInfo], modules: dict[str, tuple[int, int]], rank: int
) -> None:
    """Refuse tensors that are not exactly an A and a B for each module, of the right shape."""
    expected: dict[str, tuple[int, int]] = {}
    for module, (num_rows, num_columns) in modules.items():
        expected[tensor_name(module, "A")] = (rank, num_columns)
        expected[tensor_name(module, "B")] = (num_rows, rank)
    for unexpected in sorted(tensors.keys() - expected.keys()):
        _refuse(path, unexpected, "is not one that adapter_config.json asks for in this model")
    for tensor, shape in expected.items():
        info = tensors.get(tensor)
        if info is None:
            _refuse(path, tensor, "is missing; adapter_config.json asks for it")
        if info.shape != shape or info.dtype not in _FLOATS:
            found = f"is {info.dtype} {list(info.shape)}"
            _refuse(path, tensor, f"{found}; expected {list(shape)} in bf16, fp16 or fp32")
    if not modules:
        message = "has no tensor of a matrix of this model, so it changes nothing"
        raise ModelRefusedError(message, code=CODE, where=str(path))


def tensor_name(module: str, letter: str) -> str:
    """Give the name PEFT's file has for the A or B of a module such as `model.layers.0.mlp.up_proj`."""
    return f"base_model.model.{module}.lora_{letter}.weight"


def _read(info: TensorInfo) -> torch.Tensor:
    tensor = read_tensor(info).float()
    if not bool(tensor.isfinite().all()):
        _refuse(info.path, info.name, "has values that are not finite")
    return tensor


def _refuse(path: Path, name: str, problem: str) -> NoReturn:
    raise ModelRefusedError(f"the tensor `{name}` {problem}", code=CODE, where=str(path))
