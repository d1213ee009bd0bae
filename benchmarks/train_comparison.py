"""Whether the engines of training compute the same: a first step's loss and gradients, and the losses of many steps.

In: engines and documents. Out: rows for `bench_train.py`, which measures nothing before the first step is compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
from random_models import SHAPES
from train_engines import Setting, Steps
from train_workers import OURS, Engine
from workloads import Question, make_documents

# Of the worst gradient. On a CPU, where tests compare, all are above 0.999; 8B in bf16 on an H100 had 0.983, which
# nothing explains yet. Below, a peer's step is not shown to be ours: its row stays, and says so.
LEAST_COSINE = 0.99


def parity(engines: dict[str, Engine], documents: list[Question]) -> dict[str, Any]:
    """Compare the first step's loss and gradients with ours."""
    found = {
        name: engine.run([documents], Setting(docs=1), True) for name, engine in engines.items()
    }
    ours = found[OURS]
    if isinstance(ours, str):
        return {OURS: {"error": ours}}
    norms = [float(np.linalg.norm(gradient)) for gradient in ours.gradients.values()]
    rows: dict[str, Any] = {OURS: {"loss": ours.losses[0], "least_gradient_norm": min(norms)}}
    for name, peer in found.items():
        if isinstance(peer, str):
            rows[name] = {"error": peer}
        elif name != OURS:
            rows[name] = distance(ours, peer)
    return rows


def distance(ours: Steps, peer: Steps) -> dict[str, Any]:
    """Give how far the first losses and the gradients, a pair at a time, are apart, and which is farthest."""
    assert ours.gradients.keys() == peer.gradients.keys(), "the peer trains other matrices"
    cosines, ratios = {}, []
    for name, a in ours.gradients.items():
        b = peer.gradients[name]
        sizes = np.linalg.norm(a), np.linalg.norm(b)
        cosines[name] = float((a * b).sum() / (sizes[0] * sizes[1]))
        ratios.append(float(sizes[0] / sizes[1]))
    # One that is no number comes first: nothing is shown by it.
    worst = min(cosines, key=lambda name: -math.inf if math.isnan(cosines[name]) else cosines[name])
    return {
        "loss": peer.losses[0],
        "loss_difference": abs(ours.losses[0] - peer.losses[0]) / ours.losses[0],
        "least_gradient_cosine": cosines[worst],
        "worst_gradient": worst,
        "is_parity_shown": cosines[worst] >= LEAST_COSINE,
        "gradient_norm_ratios": [min(ratios), max(ratios)],
    }


def curves(engines: dict[str, Engine], options: argparse.Namespace) -> dict[str, Any]:
    """Compare the losses of many steps, each with documents of its own."""
    vocab = SHAPES[options.shape]["vocab_size"]
    steps = [
        make_documents(options.workloads[0], options.budgets[0], vocab, seed=1 + number)
        for number in range(options.curve)
    ]
    found = {name: engine.run(steps, Setting(docs=1)) for name, engine in engines.items()}
    # The same documents in other micro-batches: what rounding alone does.
    for name in options.peers:
        if isinstance(found.get(name), Steps):
            found[f"{name} again"] = engines[name].run(steps, Setting(docs=0))
    rows: dict[str, Any] = {}
    for name, one in found.items():
        if isinstance(one, str):
            rows[name] = {"error": one}
            continue
        rows[name] = {"losses": one.losses, "last_quarter": _last_quarter(one)}
        beside = found.get(name.removesuffix(" again")) if name.endswith(" again") else found[OURS]
        if name != OURS and isinstance(beside, Steps):
            difference = np.array(one.losses) - np.array(beside.losses)
            rows[name] |= {
                "mean_difference": float(difference.mean()),
                "largest_difference": float(np.abs(difference).max()),
            }
    return {"shape": options.shape, "steps": options.curve, "curves": rows}


def _last_quarter(steps: Steps) -> float:
    return statistics.mean(steps.losses[-max(1, len(steps.losses) // 4) :])
