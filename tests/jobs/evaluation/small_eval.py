"""An evaluation small enough to run in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from fam_engine.config import EvalConfig
from fam_engine.jobs.evaluation.job import run_eval
from fam_engine.jobs.outcome import JobOutcome
from fam_engine.model.adapter_files import save_adapter
from fam_engine.model.loading import load_model
from fam_engine.model.trainable import LoraSpec, TrainableModel
from tests.jobs.training.small_job import Notes

QUESTIONS = [
    {"id": f"q{number}", "prompt": f"question {number}?\n", "answer": "blue", "task": "colours"}
    for number in range(6)
]
CHOICES = [
    {
        "id": f"c{number}",
        "prompt": f"which one, {number}?\n",
        "answer": "B",
        "choices": ["red", "a dark blue", "green"],
        "task": "options",
    }
    for number in range(5)
]


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def evaluate(
    model: Path,
    data: Path | Sequence[Path],
    out: Path,
    **settings: Any,  # noqa: ANN401 - any setting
) -> JobOutcome:
    given = {"precision": "fp32", "device": "cpu", "max_new_tokens": 12, **settings}
    files = tuple(map(str, [data] if isinstance(data, Path) else data))
    return run_eval(EvalConfig(model=str(model), data=files, out=out, **given), Notes())


def samples(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "samples.parquet").to_pylist()
    return rows


def make_adapter(model: Path, folder: Path, *, seed: int, strength: float = 0.5) -> Path:
    """An adapter that changes what the model says."""
    decoder = load_model(model, precision="fp32", device="cpu")
    spec = LoraSpec(
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=("q_proj", "k_proj", "down_proj"),
        use_rslora=False,
    )
    trainable = TrainableModel(decoder, spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in trainable.parameters.items():
        if "lora_B" in name:
            tensor.data.normal_(0.0, strength, generator=generator)
    folder.mkdir(parents=True)
    save_adapter(
        folder, spec, trainable.parameters, base_model_name_or_path="tiny", base_fingerprint=None
    )
    return folder
