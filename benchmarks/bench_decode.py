"""Tokens a second and peak memory of answering prompts, against the card's limit and transformers with bitsandbytes.

    python benchmarks/bench_decode.py --shape 8b --out results.json
    python benchmarks/bench_decode.py --shape 8b --peers transformers transformers-static --out results.json

In: a shape (`random_models.SHAPES`), the same NF4 bytes for all engines. Greedy answers of 150 tokens to 1, 8 and 64
prompts of GSM8K's lengths at a time, and a workload like `rewrite`'s: 32 prompts, 4 samples each, 64 sequences at a
time. Out: a row a workload. The limit: a step must read every matrix and the head once, and what the cache holds;
these bytes over the card's copy rate, measured here, give the least time of a step, and a row says which share of that
the whole run reached, prompts and all (1 is the limit, of steps alone), and which the steps alone: by what a run takes
more than one of four tokens. Ours with an adapter is a peer, `with-adapter`. With peers, engines take turns, and the
share of greedy answers that begin with the same token is told: with random weights, tokens are nearly tied.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from decode_engines import (
    AdaptedDecoding,
    Asked,
    OursDecoding,
    TransformersDecoding,
    UnslothDecoding,
)
from random_models import SHAPES, nf4_model
from timing import copy_rate
from workloads import make_workload

from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Run, Worker, take_turns

# A weight in NF4 with its block's absmax, and that one's own.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Tokens of a short run: on a GPU of ours the step is a CUDA graph by then.
SHORT = 4
PEERS: dict[str, tuple[Any, ...]] = {
    "with-adapter": (AdaptedDecoding,),
    "transformers": (TransformersDecoding, "dynamic"),
    "transformers-static": (TransformersDecoding, "static"),
    "unsloth": (UnslothDecoding, "0"),
    "unsloth-graphs": (UnslothDecoding, "1"),
}


def workloads(config: dict[str, Any], num_tokens: int) -> dict[str, Asked]:
    """Give what is asked, by name."""
    prompts = [question.prompt for question in make_workload("G1", 64, config["vocab_size"])]
    asked = {
        f"{count} at a time": Asked(prompts[:count], 1, num_tokens, count, 0.0)
        for count in (1, 8, 64)
    }
    return asked | {"rewrite": Asked(prompts[:32], 4, num_tokens, 64, 0.7)}


def step_bytes(config: dict[str, Any], asked: Asked) -> float:
    """Give the bytes one step must read: matrices and head once, keys and values of every sequence.

    A prompt's are counted once for all its samples. Answers are half written on the average.
    """
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    kv_width = config["num_key_value_heads"] * width
    layer = 2 * hidden * (config["num_attention_heads"] * width + kv_width) + 3 * hidden * inner
    weights = config["num_hidden_layers"] * layer * NF4_BYTES
    head = config["vocab_size"] * hidden * 2
    own = asked.concurrency * asked.num_tokens / 2
    prompts = asked.concurrency / asked.num_samples * statistics.mean(map(len, asked.prompts))
    return weights + head + (own + prompts) * config["num_hidden_layers"] * 2 * kv_width * 2


@contextlib.contextmanager
def started(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Start the engines; a peer that cannot be is left out, and said so."""
    with contextlib.ExitStack() as stack:
        start = {"device": options.device, "threads": options.threads}
        ours = Worker(OursDecoding, str(folder), options.device, **start)
        engines = {"fam-engine": stack.enter_context(ours)}
        for name in options.peers:
            kind, *more = PEERS[name]
            try:
                worker = Worker(kind, str(folder), options.device, *more, **start)
            except Exception as error:
                print(f"{name} cannot be started: {_reason(error)}", flush=True)
                continue
            engines[name] = stack.enter_context(worker)
        yield engines


def measure(
    engines: dict[str, Worker], asked: Asked, options: argparse.Namespace, rate: float
) -> dict[str, Any]:
    """Measure one workload after two short runs of each engine, of which the second has nothing to compile."""
    short = replace(asked, num_tokens=SHORT)
    begun: dict[str, Run] = {}
    row: dict[str, Any] = {"step_bytes": step_bytes(SHAPES[options.shape], asked)}
    for name, worker in engines.items():
        try:
            worker.run(short)
            begun[name] = worker.run(short)
        except Exception as error:
            row[name] = {"error": _reason(error)}
    floor = row["step_bytes"] / rate
    try:
        running = {name: engines[name] for name in begun}
        rounds = take_turns(running, dict.fromkeys(begun, (asked,)), options.rounds)
    except Exception as error:  # rows before and after are worth having
        return row | {"all": {"error": _reason(error)}}
    for name, runs in rounds.items():
        row[name] = _figures(runs, begun[name], asked, floor, engines[name].loaded_bytes)
    ours = row.get("fam-engine", {}).get("tokens_per_second")
    for name in rounds if ours else ():
        if name != "fam-engine":
            row[name]["ratio"] = ours / row[name]["tokens_per_second"]
            firsts = zip(rounds["fam-engine"][0].answer, rounds[name][0].answer, strict=True)
            row[name]["same_first_token"] = statistics.mean(
                bool(len(a) and a[0] == b[0]) for a, b in firsts
            )
    return row


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _figures(
    runs: list[Run], begun: Run, asked: Asked, floor: float, loaded_bytes: int
) -> dict[str, Any]:
    num_tokens, num_begun = (sum(len(ids) for ids in run.answer) for run in (runs[0], begun))
    seconds = statistics.median(run.seconds for run in runs)
    # Where texts begin in the places of others, their prompts are in here too.
    num_steps = (num_tokens - num_begun) / asked.concurrency
    return {
        "seconds": [run.seconds for run in runs],
        "tokens": num_tokens,
        "tokens_per_second": num_tokens / seconds,
        "share_of_limit": floor * num_tokens / asked.concurrency / seconds,
        "share_of_limit_of_steps": floor * num_steps / (seconds - begun.seconds),
        "peak_bytes": max(run.peak_bytes for run in runs),
        "loaded_bytes": loaded_bytes,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--shape", choices=[name for name in SHAPES if name != "qwen2.5-0.5b"], default="8b"
    )
    parser.add_argument(
        "--models", type=Path, help="folder where models are kept; default: none is"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--num-tokens", type=int, default=150, help="of an answer")
    options = parser.parse_args()
    rate = copy_rate(options.device)
    results: dict[str, Any] = {
        "environment": describe_machine(options.device, options.threads),
        "copy_bytes_per_s": rate,
        "results": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model = nf4_model(options.models or Path(folder), options.shape, options.device)
        with started(model, options) as engines:
            for name, asked in workloads(SHAPES[options.shape], options.num_tokens).items():
                row = {"shape": options.shape, "workload": name}
                row |= measure(engines, asked, options, rate)
                results["results"].append(row)
                print(_line(row), flush=True)
                options.out.write_text(json.dumps(results, indent=1) + "\n")


def _line(row: dict[str, Any]) -> str:
    said = [
        f"{name} {value['tokens_per_second']:.0f} tokens/s, {value['share_of_limit']:.0%} of the limit, "
        f"{value['peak_bytes'] / 2**30:.2f} GiB"
        for name, value in row.items()
        if isinstance(value, dict) and "tokens_per_second" in value
    ]
    return f"{row['shape']} {row['workload']}: " + " | ".join(said)


if __name__ == "__main__":
    main()
