"""The whole loop by its commands on an NVIDIA GPU, with the embedded model: each command as a user types it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fam_engine.cli import main
from tests.simulated.gpu import is_simulated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.real_gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

Command = Callable[..., None]
MODEL = ("--model", "embedded", "--device", "cuda")
# A simulated GPU takes minutes for what a GPU does in a second.
SMALL = is_simulated()
RECORDS, FEW, STEPS, NEW_TOKENS = (2, 2, 1, 2) if SMALL else (64, 16, 6, 16)
TASKS, QUESTIONS = (2, 1) if SMALL else (16, 8)
TASK = '{"prompt": "one and one\\n", "answer": "2"}\n{"prompt": "two and two\\n", "answer": "4"}\n'
STUDY = f"""
title: A study that fits a test
models: [embedded]
device: cuda
tasks:
  new: {{skills: [average], num_train: {TASKS}, num_test: {QUESTIONS}}}
retention:
  known: {{skills: [addition], num_test: {QUESTIONS}, first_seed: 3000000}}
answers:
  plain: {{style: plain}}
  formal: {{style: formal}}
reference: formal
seeds: [0]
budget: {{records: {TASKS}, questions: {QUESTIONS}, retention_questions: {QUESTIONS}}}
train: {{epochs: 1, learning_rate: 2.0e-3, rank: 4, batch_size: 8}}
eval: {{max_new_tokens: {NEW_TOKENS}}}
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str, out: str) -> None:
        monkeypatch.setattr(sys, "argv", ["fam-engine", name, *arguments, "--out", out, "--quiet"])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert not ended.value.code

    return run


def test_score_select_train_merge_eval(command: Command, tmp_path: Path) -> None:
    command("score", *MODEL, "--data", "embedded", "--limit", str(RECORDS), out="scores")
    on_cpu = ("--model", "embedded", "--device", "cpu", "--compute-dtype", "fp32")
    command("score", *on_cpu, "--data", "embedded", "--limit", str(RECORDS), out="scores-cpu")
    nll, wanted = (
        pq.read_table(tmp_path / folder / "scores.parquet")["nll_mean"].to_pylist()
        for folder in ("scores", "scores-cpu")
    )
    assert max(abs(a - b) for a, b in zip(nll, wanted, strict=True)) < 0.02
    by = ("--data", "embedded", "--limit", str(RECORDS), "--scores", "scores/scores.parquet")
    command("select", *by, out="chosen")
    chosen = "chosen/selected.jsonl"
    command("train", *MODEL, "--data", chosen, "--steps", str(STEPS), out="trained")
    assert all(math.isfinite(value) for value in _losses(tmp_path / "trained"))
    adapted = (*MODEL, "--adapter", "trained/adapter")
    few = ("--data", "embedded", "--limit", str(FEW))
    command("merge", *adapted, *few, out="merged")
    command("score", *adapted, *few, out="scores-adapter")
    (tmp_path / "task.jsonl").write_text(TASK)
    command(
        "eval", *adapted, "--data", "task.jsonl", "--max-new-tokens", str(NEW_TOKENS), out="eval"
    )
    assert (tmp_path / "eval" / "samples.parquet").exists()


def test_generate_and_rewrite(command: Command, tmp_path: Path) -> None:
    few = ("--data", "embedded", "--limit", str(QUESTIONS), "--max-new-tokens", str(2 * NEW_TOKENS))
    command("generate", *MODEL, *few, "--samples", "2", "--temperature", "0.7", out="texts")
    lines = (tmp_path / "texts" / "generated.jsonl").read_text().splitlines()
    assert len(lines) == 2 * QUESTIONS
    command("rewrite", *MODEL, *few, "--method", "answer", "--samples", "2", out="rewritten")
    assert (tmp_path / "rewritten" / "rewritten.jsonl").exists()


def test_experiment(command: Command, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    command("experiment", "study.yaml", out="study")
    assert "by the rule" in (tmp_path / "study" / "report.md").read_text()


def _losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
