"""lm-evaluation-harness with our model beside its own Hugging Face model, on the same task, in one run.

    python benchmarks/bench_lm_eval.py --threads 1 --out benchmarks/results/lm_eval_cpu.json

Two tasks are made of the real answers that come with the package. `answers`: a question, and eight whole answers to
choose from. `few-shot`: the same after two worked examples, and four last lines to choose from, as most multiple choice
is. Both models get the same `Instance`s, so what is timed is `loglikelihood` as lm-eval calls it: texts to ids,
computing, sums. The engines take turns, each in a process of its own; the peer at its best batch size of 1 to 32, with
its cache of logits on (its default). How far their figures differ is printed with the times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from lm_eval_engine import LmEvalEngine, Pair

from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Worker, take_turns

BATCH_SIZES = (1, 4, 8, 16, 32)
TASKS = ("answers", "few-shot")


def make_task(name: str, num_questions: int) -> list[Pair]:
    """Give each question its answers to choose from."""
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    questions = list(dict.fromkeys(record["prompt"] for record in records))[:num_questions]
    answers = [record["response"] for record in records]
    examples = "".join(f"{record['prompt']}{record['response']}\n\n" for record in records[-2:])
    pairs = []
    for number, question in enumerate(questions):
        if name == "few-shot":
            last_lines = [answer.rpartition("\n")[2] for answer in answers[number * 4 :][:4]]
            pairs += [(examples + question, line) for line in last_lines]
        else:
            pairs += [(question, answer) for answer in answers[number * 8 :][:8]]
    return pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = str(options.model)
    results: dict[str, Any] = {
        "environment": describe_machine("cpu", options.threads, ("lm_eval", "accelerate")),
        "model": options.model.name,
        "questions": options.questions,
    }
    with (
        Worker(LmEvalEngine, "fam-engine", folder, threads=options.threads, device="cpu") as ours,
        Worker(LmEvalEngine, "hf", folder, threads=options.threads, device="cpu") as hf,
    ):
        for name in TASKS:
            pairs = make_task(name, options.questions)
            best = _best_size(hf, pairs[:32])
            ours.run(pairs[:32], 0)
            work = {"fam-engine": (pairs, 0), "hf": (pairs, best)}
            rounds = take_turns({"fam-engine": ours, "hf": hf}, work, options.rounds)
            results[name] = _result(rounds, best)
            print(name, json.dumps(results[name]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _best_size(hf: Worker, pairs: list[Pair]) -> int:
    hf.run(pairs, BATCH_SIZES[0])  # the first run of a process is slow, whatever its size
    seconds = {size: hf.run(pairs, size).seconds for size in BATCH_SIZES}
    return min(seconds, key=lambda size: seconds[size])


def _result(rounds: dict[str, list[Any]], best: int) -> dict[str, Any]:
    wall, cpu = (
        {
            label: statistics.median(getattr(run, kind) for run in runs)
            for label, runs in rounds.items()
        }
        for kind in ("seconds", "cpu_seconds")
    )
    both = list(zip(rounds["fam-engine"][0].answer, rounds["hf"][0].answer, strict=True))
    return {
        "requests": len(both),
        "seconds": wall,
        "cpu_seconds": cpu,
        "ratio": wall["hf"] / wall["fam-engine"],
        "cpu_ratio": cpu["hf"] / cpu["fam-engine"],
        "hf_batch_size": best,
        "largest_logprob_difference": max(abs(a[0] - b[0]) for a, b in both),
        "different_is_greedy": sum(a[1] != b[1] for a, b in both),
    }


if __name__ == "__main__":
    main()
