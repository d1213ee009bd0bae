"""Two processes make the step of one: in float64 to the last digits, and equal to the bit on both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fam_engine._rust_tokenize import pack_batch
from fam_engine.data.packing import Entries
from fam_engine.data.tokenizer import TextEncoder
from fam_engine.jobs.data_files import DataFile
from fam_engine.jobs.journal import Journal
from fam_engine.jobs.scoring import ingest
from fam_engine.jobs.scoring.ingest import IngestPlan, ingest_records, spool_folder
from fam_engine.jobs.training.budget import StepPlan
from fam_engine.jobs.training.examples import Examples
from fam_engine.jobs.training.peers import ALONE
from fam_engine.jobs.training.steps import micro_batches, shared_out
from tests.jobs.training.peer import CASES, open_examples, run_cases
from tests.jobs.training.small_job import make_records, write_records

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def spool(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spool(tmp_path_factory.mktemp("spool"), tiny_model, make_records(10))


def write_spool(folder: Path, model: Path, records: list[dict[str, Any]]) -> Path:
    """Write a job's spool; give its folder."""
    files = [DataFile("data", write_records(folder / "data.jsonl", records))]
    with Journal(folder, {}, ingest.SCHEMA) as journal:
        ingest_records(
            journal, TextEncoder(model), IngestPlan(256, "quarantine"), files, lambda _: None
        )
        return spool_folder(journal)


@pytest.fixture(scope="module")
def both(
    tiny_model: Path, spool: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("peers")
    case = {"model": str(tiny_model), "spool": str(spool)}
    (folder / "case.json").write_text(json.dumps(case))
    command = [sys.executable, "-m", "tests.jobs.training.peer"]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], cwd=ROOT) for rank in (0, 1)
    ]
    assert [process.wait(600) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tiny_model: Path, spool: Path) -> dict[str, Any]:
    """What one process finds alone."""
    return run_cases(tiny_model, spool)


def test_what_they_tell_each_other(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["shared"] == {"a": [1, None]}
        assert found["gathered"] == [[0.0, 0.5], [1.0, 0.5]]
        assert found["total"].tolist() == [1.5, 0.0, 2.25]


def test_alone_nothing_is_sent() -> None:
    tensor = torch.ones(3)
    ALONE.sum_([tensor])
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert ALONE.gather([2.0]) == [[2.0]]
    assert ALONE.own([4, 5]) == [4, 5]


@pytest.mark.parametrize("case", [str(case) for case in CASES])
def test_loss_and_gradients_are_those_of_one_process(
    both: list[dict[str, Any]], one: dict[str, Any], case: str
) -> None:
    step, grads = one[case]
    for found in both:
        step_of_two, grads_of_two = found[case]
        for name, value in step.items():
            assert step_of_two[name] == pytest.approx(value, rel=1e-11, abs=1e-12)
        assert grads_of_two.keys() == grads.keys()
        for name, grad in grads.items():
            assert (grad - grads_of_two[name]).abs().max() <= 1e-11 * grad.abs().max() + 1e-15


@pytest.mark.parametrize("case", [str(case) for case in CASES])
def test_both_processes_have_the_same_bits(both: list[dict[str, Any]], case: str) -> None:
    (step, grads), (other_step, other_grads) = (found[case] for found in both)
    assert step == other_step
    assert all(torch.equal(grad, other_grads[name]) for name, grad in grads.items())


def test_validation_is_shared_out_too(both: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert both[0]["validation"] == both[1]["validation"]
    assert both[0]["validation"] == pytest.approx(one["validation"], rel=1e-11)


def test_if_one_runs_out_of_memory_both_take_smaller_micro_batches(
    both: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    (step, plan), other = both[0]["short"], both[1]["short"]
    assert (step, plan) == other
    assert plan == StepPlan(2048, 0, 0)
    assert step.nll == pytest.approx(one["short"][0].nll, rel=1e-11)


def test_micro_batches_are_as_small_as_the_number_of_rounds_allows(spool: Path) -> None:
    examples = open_examples(spool, 10)
    for budget in (64, 128, 4096):
        whole = micro_batches(examples, examples.entries, budget)
        for size in (1, 2, 3, 7):
            shared = shared_out(examples, examples.entries, budget, size)
            rounds = -(-len(whole) // size)
            assert sorted(e for batch in shared for e in batch) == list(range(10))
            assert -(-len(shared) // size) == rounds
            if size > 1 and budget == 4096:
                assert len(shared) > 1


def test_one_process_has_micro_batches_of_nearly_one_size(tiny_model: Path, tmp_path: Path) -> None:
    examples = open_examples(write_spool(tmp_path, tiny_model, make_records(60)), 60)
    whole = packed_tokens(examples, micro_batches(examples, examples.entries, 1024))
    shared = packed_tokens(examples, shared_out(examples, examples.entries, 1024, 1))
    assert len(whole) == len(shared)
    assert max(shared) - min(shared) <= 128 < max(whole) - min(whole)


def test_one_process_computes_no_prompt_anew_for_that(tiny_model: Path, tmp_path: Path) -> None:
    prompt = {"prompt": "one two three " * 10}
    records = [{**prompt, "response": f"four {number} " * 3} for number in range(10)]
    records.append({"prompt": "five", "response": "six " * 16})
    examples = open_examples(write_spool(tmp_path, tiny_model, records), 11)
    whole = packed_tokens(examples, micro_batches(examples, examples.entries, 384))
    assert packed_tokens(examples, shared_out(examples, examples.entries, 384, 1)) == whole
    # Two wait for the larger one alone.
    shared = packed_tokens(examples, shared_out(examples, examples.entries, 384, 2))
    assert len(shared) == len(whole) == 2
    assert max(shared) < max(whole)
    assert sum(shared) > sum(whole)


def packed_tokens(examples: Examples, batches: list[Entries]) -> list[int]:
    return [len(pack_batch(examples.spool, batch)["input_ids"]) for batch in batches]
