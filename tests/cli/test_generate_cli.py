from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def run(run: Run) -> Run:
    """Run `fam-engine generate`."""
    return partial(run, "generate")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "one\\n"}\n{"prompt": "two\\n", "answer": "2"}\n')
    return file


def test_a_job_says_what_came_of_it(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--model", tiny_model, "--data", data, "--out", out, "--max-new-tokens", "8")
    code, printed, progress = run(*arguments, "--stop", "x", "--stop", "y", "--source", "tiny")
    assert code == 0
    assert "2 answers to 2 records by tiny" in printed
    assert "1 judged correct" in printed
    assert "the first prompt: one\\n" in progress
    records = [json.loads(line) for line in (out / "generated.jsonl").read_text().splitlines()]
    assert {record["source"] for record in records} == {"tiny"}
    assert not any("x" in record["response"] for record in records)
    code, printed, _ = run(*arguments, "--stop", "x", "--stop", "y", "--source", "tiny", "--json")
    assert code == 0
    assert json.loads(printed)["settings"]["stop"] == ["x", "y"]


def test_records_left_out_show_in_the_exit_code(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    data.write_text(data.read_text() + "{broken\n")
    arguments = ("--model", tiny_model, "--data", data, "--out", tmp_path / "out", "--quiet")
    code, printed, _ = run(*arguments, "--max-new-tokens", "4")
    assert code == 3
    assert "1 records left out: E_JSON_SYNTAX" in printed


def test_a_dry_run_only_says_what_would_happen(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("--model", tiny_model, "--data", data, "--out", tmp_path / "out", "--dry-run")
    code, printed, _ = run(
        *arguments, "--samples", "3", "--temperature", "1", "--max-new-tokens", "5"
    )
    assert code == 0
    assert "2 records to answer, 3 answers each" in printed
    assert "at most 30 to write" in printed
    assert "s if every answer is as long as allowed" in printed
    assert not (tmp_path / "out").exists()


def test_a_setting_out_of_range_is_a_usage_error(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("--model", tiny_model, "--data", data, "--out", tmp_path / "out")
    code, _, complaint = run(*arguments, "--top-p", "1.5")
    assert code == 2
    assert "top_p" in complaint
    code, _, complaint = run(*arguments, "--temperature", "0.00001")
    assert code == 2
    assert complaint.strip().startswith("error[E_SAMPLING]")
