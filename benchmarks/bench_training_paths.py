"""A training step by torch's autograd beside the same step written out, on one core of a CPU.

    taskset 2 python benchmarks/bench_training_paths.py --out results.json

Both compute the same gradients of one packed micro-batch (compared first). Paths take turns; reported is the least CPU
time of each, and the memory a step takes at its peak beyond what the process held before, in a process of its own.
Layers have the shape of Qwen2.5-0.5B; four of them, and a head of 16,384 tokens, so that a run takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fam_engine.data.packing import PackedBatch
from fam_engine.jobs.random_model import random_decoder
from fam_engine.model.config import ModelConfig
from fam_engine.model.lora import LoraSpec
from fam_engine.model.trainable import Policy, TrainableModel

LAYERS = 4
SHAPE = {
    "model_type": "qwen2",
    "vocab_size": 16384,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PATHS = ("autograd", "whole", "input")
NUM_TARGETS = 640


def one_batch() -> PackedBatch:
    """Make 8 records of 48 prompt and 80 answer tokens: 1,024 tokens, 640 to predict."""
    rng = np.random.default_rng(0)
    bounds, parents, positions, rows = [0], [], [], []
    for record in range(8):
        prompt = bounds[-1]
        rows += range(prompt + 47, prompt + 127)
        bounds += [prompt + 48, prompt + 127]
        parents += [-1, 2 * record]
        positions += range(127)
    tail = 1024 - bounds[-1]
    bounds, parents, positions = [*bounds, 1024], [*parents, -1], [*positions, *range(tail)]
    return PackedBatch(
        input_ids=rng.integers(0, SHAPE["vocab_size"], 1024).astype(np.int32),
        position_ids=np.array(positions, np.int32),
        cu_seqlens=np.array(bounds, np.int32),
        parents=np.array(parents, np.int32),
        rows=np.array(rows, np.int32),
        targets=rng.integers(0, SHAPE["vocab_size"], NUM_TARGETS).astype(np.int32),
        num_rows=NUM_TARGETS,
        entry_rows=np.arange(0, NUM_TARGETS + 1, 80),
        entries=np.arange(8),
    )


def one_model(dtype: str, dropout: float) -> TrainableModel:
    """Make a model of random NF4 weights, its B not zero."""
    torch.manual_seed(0)
    config = replace(ModelConfig.from_dict(SHAPE), num_layers=LAYERS)
    decoder = random_decoder(config, LAYERS, "nf4", DTYPES[dtype], torch.device("cpu"))
    decoder.weights.embed_VD.mul_(5)
    model = TrainableModel(decoder, LoraSpec(16, 16, dropout, MODULES, False), seed=0)
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def step_of(path: str, model: TrainableModel, batch: PackedBatch) -> Callable[[], torch.Tensor]:
    """Give what adds the gradients of a step to the parameters, and returns the losses."""
    if path == "autograd":

        def run() -> torch.Tensor:
            nll_R = model.reference_nll(batch, dropout_seed=0)
            nll_R.mean().backward()
            return nll_R.detach()

        return run
    policy = Policy(LAYERS if path == "whole" else 0)
    return lambda: model.forward_backward(
        batch,
        lambda nll_R: torch.full_like(nll_R, 1 / NUM_TARGETS),
        dropout_seed=0,
        policy=policy,
    )


def forget(model: TrainableModel) -> torch.Tensor:
    """Take all gradients away; give them in one piece."""
    gradients = [parameter.grad for parameter in model.parameters.values()]
    for parameter in model.parameters.values():
        parameter.grad = None
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def compare(dtype: str, dropout: float, rounds: int) -> dict[str, object]:
    """Give gradients' difference, seconds and peaks of all paths."""
    model, batch = one_model(dtype, dropout), one_batch()
    steps = {path: step_of(path, model, batch) for path in PATHS}
    losses, gradients = {}, {}
    for path, step in steps.items():
        losses[path], gradients[path] = float(step().mean()), forget(model)
    truth = gradients["autograd"]
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(rounds):
        for path, step in steps.items():
            start = time.process_time()
            step()
            seconds[path].append(time.process_time() - start)
            forget(model)
    peaks = {path: peak_in_process(path, dtype, dropout) for path in PATHS}
    best = {path: min(times) for path, times in seconds.items()}
    return {
        "dtype": dtype,
        "dropout": dropout,
        "loss": losses,
        "gradient_difference": {
            path: float((gradients[path] - truth).norm() / truth.norm()) for path in PATHS
        },
        "cpu_seconds": best,
        "time_ratio": {path: best["autograd"] / best[path] for path in PATHS},
        "peak_megabytes": peaks,
        "memory_ratio": {path: peaks["autograd"] / peaks[path] for path in PATHS},
    }


def peak_in_process(path: str, dtype: str, dropout: float) -> float:
    """Give the memory a step takes at its peak, MB, measured in a fresh process."""
    # Large blocks go back to the system at once: else the peak would hold what was freed before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)}
    command = [
        sys.executable,
        __file__,
        "--peak",
        path,
        "--dtype",
        dtype,
        "--dropout",
        str(dropout),
    ]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def peak_megabytes(path: str, dtype: str, dropout: float) -> float:
    """Run a step twice; give the second's peak beyond what was held before it, MB."""
    model = one_model(dtype, dropout)
    step = step_of(path, model, one_batch())
    step()
    forget(model)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def main() -> None:
    """Measure and print; write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", choices=PATHS, help="only the peak of one path")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print(peak_megabytes(given.peak, given.dtype, given.dropout))
        return
    dtypes = [given.dtype] if given.dtype else list(DTYPES)
    results = [compare(dtype, given.dropout, given.rounds) for dtype in dtypes]
    print(json.dumps(results, indent=1))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
