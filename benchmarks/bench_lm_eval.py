"""lm-evaluation-harness with our model beside its own Hugging Face model, on the same task, in one run.

    python benchmarks/bench_lm_eval.py --out results.json

The task is real multiple choice or made from GSM8K-like answers that come with the package: a question and eight answers to
choose from, scored by log-likelihood. Both models get the same `Instance`s, so what is timed is `loglikelihood` as
lm-eval calls it: texts to ids, computing, sums. Agreement comes first, then the engines take turns, each in a process of
its own; the peer at its best batch size of 1 to 32, with its cache of logits on (its default).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from fam_engine.embedded import DEMO_RECORDS, MODEL
from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Worker, take_turns

BATCH_SIZES = (1, 4, 8, 16, 32)
NUM_CHOICES = 8
Pair = tuple[str, str]


class LmEvalEngine:
    """A model of lm-eval.

    Args:
        kind: `fam-engine` or `hf`.
        folder: The model's.
    """

    def __init__(self, kind: str, folder: str) -> None:
        if kind == "hf":
            from lm_eval.models.huggingface import HFLM

            self._model: Any = HFLM(folder, dtype="float32", device="cpu", batch_size=1)
        else:
            from fam_engine.integrations.lm_eval import FamEngineLM

            self._model = FamEngineLM(folder, precision="fp32", device="cpu")

    def run(self, pairs: list[Pair], size: int) -> list[tuple[float, bool]]:
        """Give the log-likelihoods of all pairs."""
        from lm_eval.api.instance import Instance

        if hasattr(self._model, "batch_size_per_gpu"):
            self._model.batch_size_per_gpu = size
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs
        ]
        answers: list[tuple[float, bool]] = self._model.loglikelihood(asked, disable_tqdm=True)
        return answers


def make_task(num_questions: int) -> list[Pair]:
    """Give each question eight answers to choose from: its own, and those of the questions after it."""
    lines = DEMO_RECORDS.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[: num_questions + NUM_CHOICES]]
    pairs = []
    for number in range(num_questions):
        others = records[number : number + NUM_CHOICES]
        pairs += [(f"{records[number]['question']}\n", other["answer"]) for other in others]
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
    pairs = make_task(options.questions)
    folder = str(options.model)
    with (
        Worker(LmEvalEngine, "fam-engine", folder, threads=options.threads, device="cpu") as ours,
        Worker(LmEvalEngine, "hf", folder, threads=options.threads, device="cpu") as hf,
    ):
        few = pairs[: 4 * NUM_CHOICES]
        ours.run(few, 0)
        seconds = {size: hf.run(few, size).seconds for size in BATCH_SIZES}
        best = min(seconds, key=lambda size: seconds[size])
        work = {"fam-engine": (pairs, 0), "hf": (pairs, best)}
        rounds = take_turns({"fam-engine": ours, "hf": hf}, work, options.rounds)
    result = _result(rounds, best, options)
    print(json.dumps(result["summary"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _result(rounds: dict[str, list[Any]], best: int, options: argparse.Namespace) -> dict[str, Any]:
    times = {label: [run.seconds for run in runs] for label, runs in rounds.items()}
    medians = {label: statistics.median(seconds) for label, seconds in times.items()}
    both = zip(rounds["fam-engine"][0].answer, rounds["hf"][0].answer, strict=True)
    differences = [(abs(a[0] - b[0]), a[1] != b[1]) for a, b in both]
    return {
        "environment": describe_machine("cpu", options.threads),
        "model": options.model.name,
        "questions": options.questions,
        "choices": NUM_CHOICES,
        "seconds": times,
        "summary": {
            "fam-engine_seconds": medians["fam-engine"],
            "hf_seconds": medians["hf"],
            "hf_batch_size": best,
            "ratio": medians["hf"] / medians["fam-engine"],
            "largest_logprob_difference": max(one for one, _ in differences),
            "different_is_greedy": sum(other for _, other in differences),
        },
    }


if __name__ == "__main__":
    main()
