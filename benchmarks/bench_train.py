"""A training step of QLoRA: seconds, tokens a second, peak memory; ours beside peers, the same bytes and documents.

    python benchmarks/bench_train.py --shape 8b --out results.json
    python benchmarks/bench_train.py --shape 8b --peers peft --budgets 4096 16384 --out results.json
    python benchmarks/bench_train.py --shape 1b --peers peft --curve 200 --out curves.json
    python benchmarks/bench_train.py --shape 8b --longest --out longest.json

In: a shape, peers that are installed (peft, liger, trl, unsloth, unsloth-layer, unsloth-none). Out: a row for every
workload (`workloads.make_documents`), tokens a step and cap of memory. With peers, parity comes first: the same step's
loss, the cosine of every gradient of the first and last layer, their norms. A peer then chooses its fastest micro-batch
for every row, computing layers twice where it does not fit otherwise, while ours makes the steps of `fam-engine train`,
in the micro-batches that it plans for the memory there is; engines take turns. Tokens are real ones, padding
is never counted; a peer that fails or does not fit keeps its row, saying so. Rows are in the order of the budgets
given, and the file is written after each. `--curve` compares losses of that many steps instead, and a peer's with its
own in other micro-batches, which is the noise to judge by; `--longest` finds the longest document that trains under the
cap. A capped card has less memory, not less speed: it is no measurement of a smaller one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from random_models import SHAPES, nf4_model
from timing import matrix_rate
from train_comparison import curves, parity
from train_engines import Setting, Steps, supervised
from train_peers import padded_tokens
from train_workers import OURS, PEERS, Engine, started
from workloads import Question, make_documents

from fam_engine.jobs.bench.machine import describe_machine

PACKAGES = ("peft", "liger-kernel", "trl", "unsloth", "unsloth_zoo", "accelerate", "datasets")
# Of a round; its engine has run the same step before, when its setting was chosen.
WARM_UP = 1


def measure(
    engines: dict[str, Engine], documents: list[Question], cap: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one row: each engine at its fastest setting, engines taking turns."""
    row: dict[str, Any] = {}
    settings: dict[str, Setting] = {}
    for name, engine in engines.items():
        best = _fastest(name, engine, documents, cap)
        if isinstance(best, str):
            row[name] = {"error": best}
        else:
            settings[name] = best
    runs: dict[str, list[Steps]] = {name: [] for name in settings}
    for _ in range(options.rounds):
        for name, setting in settings.items():
            steps = engines[name].run([documents] * (WARM_UP + options.steps), setting)
            if isinstance(steps, Steps):
                runs[name].append(steps)
            else:
                row[name] = {"error": steps}
    for name, found in runs.items():
        if found:
            row[name] = _figures(found, settings[name], documents, options)
    ours = row[OURS].get("tokens_per_second")
    for name in runs if ours else ():
        if name != OURS and "tokens_per_second" in row[name]:
            row[name]["ratio"] = ours / row[name]["tokens_per_second"]
    return row


def _fastest(name: str, engine: Engine, documents: list[Question], cap: float) -> Setting | str:
    """Give the fastest setting that fits; ours has none to choose, which a step shows to fit."""
    twice = (False, True) if name in ("peft", "liger", "trl") else (False,)
    found: dict[Setting, float] = {}
    reason = "no setting"
    for count in [0] if name == OURS else _micro_batches(name, documents):
        for is_checkpointing in twice:
            setting = Setting(cap, count, is_checkpointing)
            steps = engine.run([documents] * 2, setting)
            if isinstance(steps, Steps):
                found[setting] = steps.seconds[-1]
            else:
                reason = steps
            print(f"{name}, {setting}: {found.get(setting, reason)}", flush=True)
            if setting in found:
                break  # what fits is not faster if its layers are computed twice
    return min(found, key=lambda setting: found[setting]) if found else reason


def _micro_batches(name: str, documents: list[Question]) -> list[int]:
    """Give how many documents of a micro-batch to try, as `Setting.docs`: none of which most would be padding."""
    num, tokens = len(documents), _tokens(documents)
    counts = sorted({num, min(4, num), 1}, reverse=True)
    counts = [count for count in counts if padded_tokens(documents, count) <= 2 * tokens]
    can_pack = name.startswith("unsloth") and padded_tokens(documents, num) > tokens
    return [0, *counts] if can_pack else counts


def _figures(
    runs: list[Steps], setting: Setting, documents: list[Question], options: argparse.Namespace
) -> dict[str, Any]:
    seconds = [one for steps in runs for one in steps.seconds[WARM_UP:]]
    median, tokens = statistics.median(seconds), _tokens(documents)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / median,
        "supervised_per_second": supervised(documents) / median,
        "share_of_matrix_rate": step_flops(options.shape, documents) / median / options.rate,
        "peak_bytes": max(steps.peak_bytes for steps in runs),
        "reserved_bytes": max(steps.reserved_bytes for steps in runs),
        "docs": setting.docs,
        "is_checkpointing": setting.is_checkpointing,
        "plan": runs[0].plan,
        "losses": [runs[0].losses[0], runs[0].losses[-1]],
    }


def _tokens(documents: list[Question]) -> int:
    return sum(len(question.prompt) + len(question.answers[0]) for question in documents)


def step_flops(shape: str, documents: list[Question]) -> float:
    """Give what a step's frozen matrices cost, forward and back to the input, nothing computed twice.

    Attention and the adapter are left out: a share of the card's rate that is too low, for every engine alike.
    """
    config = SHAPES[shape]
    hidden, width = config["hidden_size"], config["head_dim"]
    heads = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    layer = hidden * width * heads + 3 * hidden * config["intermediate_size"]
    matrices = 4 * config["num_hidden_layers"] * layer * _tokens(documents)
    return matrices + 4 * config["vocab_size"] * hidden * supervised(documents)


def longest(engine: Engine, options: argparse.Namespace, cap: float) -> dict[str, Any]:
    """Find the longest document that trains, to 16,384 tokens, by bisection.

    Inputs of layers may go to the host's memory, as in `fam-engine train`.
    """
    config = SHAPES[options.shape]
    grain = 16384 if options.device == "cuda" else 32
    low, high = 0, 8 if options.device == "cuda" else 2  # 131,072 tokens: the model's last position
    tried = {}
    while low < high:
        middle = -(-(low + high) // 2)
        ids = np.arange(middle * grain, dtype=np.int32) % config["vocab_size"]
        steps = engine.run([[Question(ids[:1], [ids[1:]])]], Setting(cap))
        is_trained = isinstance(steps, Steps)
        tried[middle * grain] = (
            {"seconds": steps.seconds[0], "peak_bytes": steps.peak_bytes, "plan": steps.plan}
            if isinstance(steps, Steps)
            else {"error": steps}
        )
        print(f"{middle * grain} tokens: {tried[middle * grain]}", flush=True)
        low, high = (middle, high) if is_trained else (low, middle - 1)
        if not is_trained and steps != "out of memory":
            break
    return {"shape": options.shape, "cap_gib": cap, "longest_tokens": low * grain, "tried": tried}


def main() -> None:
    """Measure and write the results after every row."""
    options = _options()
    options.rate = matrix_rate(options.device)
    environment = describe_machine(options.device, options.threads, packages=PACKAGES)
    results: dict[str, Any] = {
        "environment": environment,
        "matrix_flops_per_s": options.rate,
        "results": [],
        "failed": {},
    }

    def keep(row: dict[str, Any] | None = None) -> None:
        if row is not None:
            results["results"].append(row)
            print(_line(row), flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        model = nf4_model(options.models or Path(folder), options.shape, options.device)
        with started(model, options, results["failed"]) as engines:
            keep()
            for row in _rows(engines, options):
                keep(row)


def _rows(engines: dict[str, Engine], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    vocab = SHAPES[options.shape]["vocab_size"]
    if options.curve:
        yield curves(engines, options)
        return
    if options.longest:
        yield from (longest(engines[OURS], options, cap) for cap in options.caps if cap)
        return
    first = make_documents("documents", min(options.budgets), vocab)
    yield {"shape": options.shape, "parity": parity(engines, first)}
    for budget, cap, name in itertools.product(options.budgets, options.caps, options.workloads):
        documents = make_documents(name, budget, vocab)
        row = {
            "shape": options.shape,
            "workload": name,
            "tokens": _tokens(documents),
            "supervised": supervised(documents),
            "documents": len(documents),
            "cap_gib": cap,
        }
        yield row | {"engines": measure(engines, documents, cap, options)}


def _line(row: dict[str, Any]) -> str:
    if "engines" not in row:
        return json.dumps({name: value for name, value in row.items() if name != "curves"})[:400]
    said = [
        f"{name} {value['error']}"
        if "error" in value
        else f"{name} {value['tokens_per_second']:.0f} tokens/s {value['peak_bytes'] / 2**30:.1f} GiB"
        for name, value in row["engines"].items()
    ]
    cap = f", {row['cap_gib']:.0f} GiB" if row["cap_gib"] else ""
    return f"{row['shape']} {row['workload']} of {row['tokens']} tokens{cap}: " + " | ".join(said)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--shape", choices=[*SHAPES.keys() - {"qwen2.5-0.5b"}], default="8b")
    parser.add_argument(
        "--models", type=Path, help="folder where models are kept; default: none is"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--workloads", nargs="*", default=["blocks", "documents"])
    parser.add_argument("--budgets", nargs="*", type=int, default=[2048, 4096, 8192, 16384])
    parser.add_argument("--caps", nargs="*", type=float, default=[24.0, 0.0], help="GiB; 0: none")
    parser.add_argument("--steps", type=int, default=3, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--curve", type=int, default=0, help="compare losses of so many steps")
    parser.add_argument("--longest", action="store_true", help="find the longest document")
    return parser.parse_args()


if __name__ == "__main__":
    main()
