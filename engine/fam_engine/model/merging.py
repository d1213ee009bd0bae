"""Merging an adapter into its model: a plain checkpoint that needs no adapter.

In: a model's folder and an adapter's. Out: a folder with safetensors, config.json and the
tokenizer's files, which transformers and our own loader read.

Two bases to add scaling * B @ A to:

- `original`: the matrices as the model's folder has them, in 16 or 32 bits. What most people
  publish; but an adapter trained over NF4 has also learnt to make up for NF4's errors, which are
  not there.
- `dequantized`: each matrix quantized to NF4 and back, what the adapter was trained on. All seven
  matrices of a layer are, with or without an adapter on them.

The sum is made in fp32 and rounded to the matrix's stored dtype (bf16 where it is stored in NF4).
Embeddings, head, norms and biases are copied. One tensor at a time is in memory, and files have the
names they have in the model's folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch

from fam_engine.config import Precision
from fam_engine.data.files import write_folder_whole
from fam_engine.data.plain_files import plain_file, read_json_object
from fam_engine.data.templates import MORE_TEMPLATES, TOOL_TEMPLATE, tool_template
from fam_engine.errors import ModelRefusedError, StorageError, UsageError
from fam_engine.model import ops
from fam_engine.model.checkpoint import CheckpointReader, check_tensors, expected_shapes
from fam_engine.model.config import ModelConfig
from fam_engine.model.fingerprint import fingerprint
from fam_engine.model.lora import Adapter, load_adapter
from fam_engine.model.nf4 import PART_NAMES
from fam_engine.model.safetensors_writing import Kinds, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

MergeBase = Literal["original", "dequantized"]
CODE: Final = "E_MERGE"
_BESIDE_NF4: Final = tuple(f".weight.{end}" for end in PART_NAMES)
# Not copied: adapters (transformers would attach one it finds beside a model), and Python code.
_COPIED: Final = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def served_precision(trained: Precision) -> Precision:
    """Give the precision a merged model is served in: 16 bits, but for those who work in 32."""
    return "fp32" if trained == "fp32" else "bf16"


def plan_merge(model: Path, adapter: Path, *, base: MergeBase) -> Merge:
    """Check all that a merge is made from.

    Args:
        model: The model's folder.
        adapter: The adapter's folder.
        base: What the adapter is added to, see the module's text.

    Raises:
        ModelRefusedError: A model or adapter that is not as it must be; `original` of a model
            that is stored in NF4.
    """
    config = ModelConfig.from_folder(model)
    if config.quantization and base == "original":
        message = "the checkpoint is quantized to NF4: its original weights are not there"
        hint = "use --base dequantized, or the model's unquantized checkpoint"
        raise ModelRefusedError(message, code=CODE, where=str(model), hint=hint)
    reader = CheckpointReader(
        tensors=check_tensors(model, config, precision="nf4"),
        config=config,
        precision="nf4",
        compute_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    loaded = load_adapter(adapter, config, base=fingerprint(reader.tensors))
    return Merge(model=model, base=base, reader=reader, adapter=loaded)


def check_out(out: Path) -> None:
    """Make sure that a merged model can be written to a folder, which must not be there, or be empty.

    Raises:
        UsageError: It has files in it.
        StorageError: It is no folder.
    """
    with _storage_errors(out):
        if out.exists() and any(out.iterdir()):
            message = "the output folder has files in it"
            raise UsageError(message, code=CODE, where=str(out), hint="give a new folder")


@contextlib.contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the merged model cannot be written: {error.strerror or error}"
        raise StorageError(message, code=CODE, where=str(out)) from error


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge whose parts fit, to be written.

    Attributes:
        model: The model's folder.
        base: What the adapter is added to.
        reader: The model's checkpoint.
        adapter: What to add.
    """

    model: Path
    base: MergeBase
    reader: CheckpointReader
    adapter: Adapter

    def write(self, out: Path) -> None:
        """Write the merged checkpoint; its folder appears whole or not at all.

        Args:
            out: The folder, see `check_out`.

        Raises:
            ModelRefusedError: A sum that is not finite in the stored dtype.
            UsageError: `out` has files in it.
            StorageError: The disk would not take it.
        """
        check_out(out)
        with _storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_folder_whole(out, self._write)

    @property
    def num_bytes(self) -> int:
        """What the tensors take on disk."""
        kinds = (kind for kinds in self.shards().values() for kind in kinds.values())
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)

    def _write(self, folder: Path) -> None:
        """Write all files into a folder."""
        total = 0
        places: dict[str, str] = {}
        for file, kinds in self.shards().items():
            total += write_tensors(folder / file, kinds, self._make)
            places.update(dict.fromkeys(kinds, file))
        if set(places.values()) != {"model.safetensors"}:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            _write_json(folder / "model.safetensors.index.json", index)
        config = read_json_object(plain_file(self.model, "config.json", code=CODE), code=CODE)
        config.pop("quantization_config", None)
        _write_json(folder / "config.json", config)
        for name in _COPIED:
            if (self.model / name).exists():
                shutil.copyfile(plain_file(self.model, name, code=CODE), folder / name)
        if (tools := tool_template(self.model)) is not None:
            (folder / MORE_TEMPLATES).mkdir()
            shutil.copyfile(tools, folder / MORE_TEMPLATES / TOOL_TEMPLATE)

    def shards(self) -> dict[str, Kinds]:
        """Give the tensors of every file: the model's, less those beside NF4 matrices."""
        shapes = expected_shapes(self.reader.config)
        shards: dict[str, Kinds] = {}
        for name, info in self.reader.tensors.items():
            if not name.endswith(_BESIDE_NF4):
                dtype = torch.bfloat16 if info.dtype == torch.uint8 else info.dtype
                kind = (dtype, shapes.get(name, info.shape))
                shards.setdefault(info.path.name, {})[name] = kind
        return shards

    def _make(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Make one tensor of a merged checkpoint."""
        module = name.removesuffix(".weight")
        found = self.adapter.matrices.get(module)
        is_quantized = self.base == "dequantized" and name.endswith("_proj.weight")
        if not is_quantized and found is None:
            return self.reader.read(name, None)
        if is_quantized:
            weight = self.reader.nf4(module)
            matrix = ops.dequantize([weight], out=torch.empty(weight.shape))
        else:
            matrix = self.reader.read(name, torch.float32)
        if found is not None:
            lora_A, lora_B = found
            matrix.addmm_(lora_B * self.adapter.scaling, lora_A)
        merged = matrix.to(dtype)
        if not bool(merged.isfinite().all()):
            message = f"the merged tensor `{name}` has values that are not finite in {dtype}"
            where = str(self.reader.tensors[name].path)
            raise ModelRefusedError(message, code=CODE, where=where)
        return merged


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
