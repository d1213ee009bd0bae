"""Scoring speed and memory beside peers, in one run: workloads G1, G8, L8.

    python benchmarks/bench_score.py --peers transformers transformers-dequantize --out results.json
    python benchmarks/bench_score.py --device cuda --shape 8b --peers transformers unsloth --out results.json

Agreement comes first: the log-probs of every answer token, ours and the fastest peer's, are compared, and their
distance is printed with the times. Then each peer picks its best batch size per workload, and the engines take turns,
A B A B, three rounds. Of NF4, `transformers-dequantize` is bitsandbytes' other way on a CPU, and `transformers-bf16`
has the same matrices made bf16 once, for who has the memory; with bf16 weights there is `transformers` alone. The shape
is that of Qwen2.5-0.5B, or one of a GPU's (`random_models.SHAPES`), which is NF4 from the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engines import OursEngine, TransformersEngine, UnslothEngine
from random_models import QWEN_05B, SHAPES, nf4_model, write_random_model
from workloads import Question, count_tokens, make_workload

from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Run, Worker, take_turns

BATCH_SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (4, 16, 64)}
# By whether they read NF4.
PEERS = {
    False: {"transformers": (TransformersEngine, "bf16")},
    True: {
        "transformers": (TransformersEngine, "nf4"),
        "transformers-dequantize": (TransformersEngine, "nf4-dequantize"),
        "transformers-bf16": (TransformersEngine, "nf4-bf16"),
        "unsloth": (UnslothEngine, "nf4"),
    },
}
NUM_QUESTIONS = {"G1": 32, "G8": 8, "L8": 4}


@contextlib.contextmanager
def started(
    folder: str, precision: str, options: argparse.Namespace
) -> Iterator[dict[str, Worker]]:
    """Start the engines of one precision."""
    peers = PEERS[precision == "nf4"]
    engines: dict[str, tuple[Any, str]] = {"fam-engine": (OursEngine, precision)}
    engines |= {name: peers[name] for name in options.peers if name in peers}
    with contextlib.ExitStack() as stack:
        yield {
            label: stack.enter_context(
                Worker(
                    engine,
                    folder,
                    variant,
                    options.device,
                    threads=options.threads,
                    device=options.device,
                )
            )
            for label, (engine, variant) in engines.items()
        }


def measure(engines: dict[str, Worker], name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one workload."""
    questions = make_workload(name, options.questions[name], options.config["vocab_size"])
    # The largest batch needs as many records: eight questions with one answer are too few.
    largest = BATCH_SIZES[options.device][-1]
    few = questions[: max(1, largest // len(questions[0].answers))]
    size = {label: _best_size(worker, label, few, options) for label, worker in engines.items()}
    work = {label: (questions, size[label]) for label in engines}
    rounds = take_turns(engines, work, options.rounds)
    tokens = count_tokens(questions)
    result: dict[str, Any] = {"workload": name, "questions": len(questions), **tokens}
    for label, runs in rounds.items():
        seconds = statistics.median(run.seconds for run in runs)
        result[label] = {
            "size": size[label],
            "seconds": [run.seconds for run in runs],
            "effective_tokens_per_second": tokens["effective"] / seconds,
            "peak_bytes": max(run.peak_bytes for run in runs),
            "loaded_bytes": engines[label].loaded_bytes,
        }
    if len(engines) > 1:
        result |= _beside_peers(result, rounds)
    return result


def _beside_peers(result: dict[str, Any], rounds: dict[str, list[Run]]) -> dict[str, Any]:
    """Give the ratio to the best peer, and how far its log-probs are from ours."""
    peers = [label for label in rounds if label != "fam-engine"]
    best = max(peers, key=lambda label: result[label]["effective_tokens_per_second"])
    ours, peer = (result[label]["effective_tokens_per_second"] for label in ("fam-engine", best))
    difference = np.abs(rounds["fam-engine"][0].answer - rounds[best][0].answer)
    return {
        "best_peer": best,
        "ratio": ours / peer,
        "logprob_difference": {"mean": difference.mean(), "max": difference.max()},
    }


def _best_size(
    worker: Worker, label: str, questions: list[Question], options: argparse.Namespace
) -> int:
    """Find the batch size an engine is fastest at; ours uses its default."""
    if label == "fam-engine":
        worker.run(questions[:1], options.tokens_per_batch)
        return options.tokens_per_batch
    seconds = {size: worker.run(questions, size).seconds for size in BATCH_SIZES[options.device]}
    return min(seconds, key=lambda size: seconds[size])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument(
        "--models", type=Path, help="folder where models are kept; default: none is"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS[True], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="*", default=["bf16", "nf4"])
    parser.add_argument("--workloads", nargs="*", default=list(NUM_QUESTIONS))
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of questions")
    options = parser.parse_args()
    options.config = SHAPES[options.shape]
    options.questions = {
        name: max(2, int(NUM_QUESTIONS[name] * options.scale)) for name in options.workloads
    }
    results: dict[str, Any] = {
        "environment": describe_machine(options.device, options.threads),
        "results": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model = _model(options, Path(folder))
        for precision in options.precision:
            with started(str(model), precision, options) as engines:
                for name in options.questions:
                    row = {"shape": options.shape, "precision": precision}
                    row |= measure(engines, name, options)
                    results["results"].append(row)
                    print(_line(row), flush=True)
                    if options.out:
                        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _model(options: argparse.Namespace, folder: Path) -> Path:
    """Give the model's folder; those of a GPU's shapes are NF4 from the start."""
    if options.config is QWEN_05B:
        write_random_model(folder, options.config)
        return folder
    options.precision = ["nf4"]
    return nf4_model(options.models or folder, options.shape, options.device)


def _line(row: dict[str, Any]) -> str:
    ours = row["fam-engine"]
    line = (
        f"{row['shape']} {row['precision']:5} {row['workload']:3} fam-engine "
        f"{ours['effective_tokens_per_second']:7.0f} tokens/s {ours['peak_bytes'] / 2**30:.2f} GiB"
    )
    if "best_peer" not in row:
        return line
    peer = row[row["best_peer"]]
    return line + (
        f" | {row['best_peer']} {peer['effective_tokens_per_second']:7.0f} tokens/s "
        f"{peer['peak_bytes'] / 2**30:.2f} GiB (batch {peer['size']}) | {row['ratio']:.2f}x | "
        f"log-prob difference mean {row['logprob_difference']['mean']:.4f}"
    )


if __name__ == "__main__":
    main()
