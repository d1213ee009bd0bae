"""Tokenizing speed beside every tokenizer a user could install, in one run, ids to numpy.

    python benchmarks/bench_tokenize.py --peers .venv-peers/bin/python --tokenizers DIR --out results.json

DIR holds a folder a tokenizer (`gpt2/tokenizer.json` ...). For each tokenizer and corpus, first the ids of all engines
are compared with those of `tokenizers` 0.23; then they take turns. Cold is the first pass of a fresh process over texts
it has not seen; warm the median of the later ones. Megabytes are those of the text; a second is one of processor time
(some engines ignore the number of threads they are given), for two threads it is one of wall time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpora import CORPORA, texts_of
from tokenizer_engines import (
    FamEngine,
    Fastokens,
    Gigatoken,
    Tiktoken,
    Tokenizers0,
    Tokenizers1,
)

from fam_engine.jobs.bench.machine import describe_machine
from fam_engine.jobs.bench.workers import Run, Worker, take_turns

REFERENCE = "tokenizers 0.23"
OURS = "fam-engine"
ENGINES = {
    OURS: FamEngine,
    REFERENCE: Tokenizers0,
    "tokenizers 1.0rc3": Tokenizers1,
    "gigatoken": Gigatoken,
    "fastokens": Fastokens,
    "tiktoken": Tiktoken,
}
NAMES = (
    "gpt2",
    "llama3",
    "qwen2.5",
    "deepseek",
    "mistral_v03",
    "gemma_shaped_mistral_vocab",
)
# The slow ones get a part of the text: their speed does not depend on how much there is.
_SLOW = {REFERENCE: 500_000, "tiktoken": 1_000_000}
_COLD_STARTS = 2


def measure(file: Path, corpus: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines on one tokenizer and corpus."""
    texts = texts_of(corpus)
    row: dict[str, Any] = {
        "tokenizer": file.parent.name,
        "corpus": corpus,
        "threads": threads,
        "bytes": _num_bytes(texts),
        "engines": {},
    }
    cold: dict[str, list[float]] = {}
    for start in range(_COLD_STARTS):
        with started(file, texts, threads, options, row) as engines:
            for name, worker in engines.items():
                cold.setdefault(name, []).append(_speed(worker.run(), name, texts, threads))
            if start + 1 == _COLD_STARTS:
                work = {name: ("count", _passes(name, texts)) for name in engines}
                runs = take_turns(engines, work, options.rounds)
                answers = {name: worker.run("ids").answer for name, worker in engines.items()}
    for name, found in runs.items():
        passes = _passes(name, texts)
        speeds = [passes * _speed(run, name, texts, threads) for run in found]
        low, high = np.percentile(speeds, (20, 80))
        row["engines"][name] = {
            "warm": statistics.median(speeds),
            "warm_p20": low,
            "warm_p80": high,
            "cold": statistics.median(cold[name]),
            "num_ids": len(answers[name]),
            "differing_ids": _differing(answers[name], answers[REFERENCE]),
            "peak_bytes": max(run.peak_bytes for run in found),
        }
    return row


@contextlib.contextmanager
def started(
    file: Path, texts: list[str], threads: int, options: argparse.Namespace, row: dict[str, Any]
) -> Iterator[dict[str, Worker]]:
    """Start the engines that can load this tokenizer; the others' reasons are noted."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, engine in ENGINES.items():
            python = sys.executable if name in (OURS, REFERENCE) else options.peers
            arguments = (str(file), _part(texts, name), threads)
            try:
                worker = Worker(engine, *arguments, python=python)
                workers[name] = stack.enter_context(worker)
            except Exception as error:
                row["engines"][name] = {"refused": str(error)[:200]}
        yield workers


def load_times(file: Path, options: argparse.Namespace) -> dict[str, float]:
    """Measure how long each engine takes to load a tokenizer again, in ms (files in memory)."""
    times: dict[str, float] = {}
    with started(file, ["a"], 1, options, {"engines": {}}) as engines:
        for name, worker in engines.items():
            seconds = [worker.run("load").seconds for _ in range(options.rounds)]
            times[name] = statistics.median(seconds) * 1e3
    return times


def _part(texts: list[str], name: str) -> list[str]:
    """Give an engine's part of the texts."""
    part, room = [], _SLOW.get(name, sys.maxsize)
    for text in texts:
        room -= len(text.encode())
        if room < 0 and part:
            break
        part.append(text)
    return part


def _passes(name: str, texts: list[str]) -> int:
    """Give the passes of a warm run: about 20 MB of text, of the slow ones one pass."""
    return 1 if name in _SLOW else max(1, 20_000_000 // _num_bytes(texts))


def _num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _speed(run: Run, name: str, texts: list[str], threads: int) -> float:
    """Give megabytes a second."""
    seconds = run.cpu_seconds if threads == 1 else run.seconds
    return _num_bytes(_part(texts, name)) / seconds / 1e6


def _differing(ids: np.ndarray, reference: np.ndarray) -> int:
    """Count the ids that differ in the part both have done."""
    length = min(len(ids), len(reference))
    return int((ids[:length] != reference[:length]).sum())


def ratios(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Give our speed over each peer's, cold and warm."""
    engines = row["engines"]
    return {
        name: {kind: engines[OURS][kind] / peer[kind] for kind in ("warm", "cold")}
        for name, peer in engines.items()
        if name != OURS and "warm" in peer
    }


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{name} {found['warm']:.1f} ({found['cold']:.1f})"
        + (f" DIFFERS in {found['differing_ids']}" if found["differing_ids"] else "")
        for name, found in row["engines"].items()
        if "warm" in found
    ]
    return f"{row['tokenizer']:28}{row['corpus']:8}{row['threads']} " + ", ".join(cells)


def _peers(python: str) -> list[str]:
    """List what is installed in the peers' environment."""
    command = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--peers", default=sys.executable, help="python of the peers' environment")
    parser.add_argument("--names", nargs="*", default=NAMES)
    parser.add_argument("--corpora", nargs="*", default=list(CORPORA))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "environment": {**describe_machine("cpu", None), "peers": _peers(options.peers)},
        "load_ms": {},
        "results": [],
    }
    for name in options.names:
        file = options.tokenizers / name / "tokenizer.json"
        results["load_ms"][name] = load_times(file, options)
        for corpus in options.corpora:
            for threads in options.threads:
                row = measure(file, corpus, threads, options)
                results["results"].append({**row, "ratios": ratios(row)})
                print(_line(row), flush=True)
                if options.out:
                    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
