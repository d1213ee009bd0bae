from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

GOOD = '{"prompt": "one\\n", "response": "two"}\n{"prompt": "one\\n", "response": "three"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(GOOD)
    return file


def test_it_prints_counts_an_example_and_packs(run: Run, tiny_model: Path, data: Path) -> None:
    code, printed, _ = run("tokenize", data, "--model", tiny_model, "--verify", "--quiet")
    assert code == 0
    assert f"{data}: prompt and response\n  one\\n[[two]]" in printed
    assert "2 of 2 records tokenized" in printed
    assert "packs of 2,048 tokens" in printed
    assert "24 encodings compared with the reference, 0 differ" in printed
    assert "another copy of it" not in printed  # said where the reference is asked about itself


def test_files_may_follow_data_too(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(GOOD)
    flags = ("--model", tiny_model, "--json", "--quiet")
    summaries = [
        json.loads(run("tokenize", *files, *flags)[1])
        for files in ((data, other), ("--data", data, other), (data, "--data", other))
    ]
    assert {summary["records"]["read"] for summary in summaries} == {4}


def test_ids_are_written_on_request(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--model", tiny_model, "--out", out, "--quiet")
    code, printed, _ = run("tokenize", data, *flags, "--ids", "jsonl")
    assert code == 0
    assert "ids.jsonl, summary.json, quarantine.jsonl" in printed
    assert len((out / "ids.jsonl").read_text().splitlines()) == 2


def test_quarantined_records_end_in_exit_code_3(run: Run, tiny_model: Path, data: Path) -> None:
    data.write_text(GOOD + "not json\n")
    code, printed, _ = run("tokenize", data, "--model", tiny_model, "--quiet")
    assert code == 3
    assert "left out: 1 E_JSON_SYNTAX" in printed


def test_a_difference_ends_in_exit_code_1(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fam_engine.jobs.tokenizing import job

    folder = tmp_path / "model"
    folder.mkdir()
    file = folder / "tokenizer.json"
    file.write_bytes((tiny_model / "tokenizer.json").read_bytes())
    definition = json.loads(file.read_text())
    vocab = definition["model"]["vocab"]
    vocab["w"], vocab["z"] = vocab["z"], vocab["w"]
    real = job.TextCheck

    def spoilt(encoder: object) -> object:
        file.write_text(json.dumps(definition))
        return real(encoder)

    monkeypatch.setattr(job, "TextCheck", spoilt)
    data.write_text(GOOD + "not json\n")  # weighs less than a difference
    code, printed, _ = run("tokenize", data, "--model", folder, "--verify", "--quiet")
    assert code == 1
    assert "24 encodings compared with the reference, 8 differ" in printed
    assert f"{data}:1: 'w' at the start, special tokens parsed: " in printed
    assert "our fault" in printed


@pytest.mark.parametrize(
    ("flags", "code", "starts", "named"),
    [
        (("--ids", "jsonl"), 2, "error[E_CONFIG_VALUE]", "needs `out`"),
        (("--ids", "csv", "--out", "o"), 2, "error[E_CONFIG_VALUE]", "'jsonl' or 'parquet'"),
        (("--capacity", "0"), 2, "error[E_CONFIG_VALUE]", "capacity"),
        (("--boundary", "both"), 2, "error[E_CONFIG_VALUE]", "'separate' or 'joint'"),
        (("--template", "nowhere"), 2, "error[E_TEMPLATE_FILE] nowhere", "cannot be read"),
        (("--data", "nowhere.jsonl"), 4, "error[E_INPUT_FILE] nowhere.jsonl", "does not exist"),
        (("--out", "/dev/null/x"), 5, "error[E_STORAGE]", "cannot be written"),
        (("--model", "nowhere"), 10, "error[E_MODEL_NOT_FOUND]", "`nowhere`"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run,
    tiny_model: Path,
    data: Path,
    flags: tuple[str, ...],
    code: int,
    starts: str,
    named: str,
) -> None:
    model = () if "--model" in flags else ("--model", tiny_model)
    found, _, err = run("tokenize", data, *model, *flags, "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_the_example_of_its_help_prints_what_it_says(run: Run) -> None:
    from fam_engine.cli.tokenize import EPILOG

    command, *expected = EPILOG.split("\n\n")
    code, printed, _ = run(*command.removeprefix("Example: fam-engine ").split())
    assert code == 0
    for line in expected:
        assert line in printed.splitlines()


def test_the_flags_are_the_settings_and_no_others() -> None:
    import inspect

    from fam_engine.cli.tokenize import run as command
    from fam_engine.config import TokenizeConfig

    flags = {name.rstrip("_") for name in inspect.signature(command).parameters}
    assert flags - set(TokenizeConfig.model_fields) == {"files", "config", "as_json", "quiet"}
    assert set(TokenizeConfig.model_fields) <= flags
