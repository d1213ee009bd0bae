from __future__ import annotations

import json
from pathlib import Path

import pytest

from fam_engine.config import EvalConfig
from tests.cli.conftest import Run

TASK = '{"prompt": "one\\n", "answer": "two"}\n{"prompt": "two\\n", "answer": "four"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "task.jsonl"
    file.write_text(TASK)
    return file


def arguments(model: Path, data: Path, out: Path) -> tuple[str | Path, ...]:
    return ("eval", "--model", model, "--data", data, "--out", out, "--max-new-tokens", "8")


def test_a_job_prints_a_matrix_and_leaves_its_files(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, notes = run(*arguments(tiny_model, data, out))
    assert code == 0
    assert "base" in printed
    assert "task" in printed
    assert "samples.parquet" in printed
    assert "2 questions (exact), answered by writing" in notes
    assert json.loads((out / "summary.json").read_text())["tasks"]["task"]["n"] == 2
    # The same command once more says the same.
    assert run(*arguments(tiny_model, data, out), "--quiet")[1] == printed


def test_json_is_all_of_standard_output(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, _ = run(*arguments(tiny_model, data, out), "--json", "--quiet")
    assert code == 0
    assert json.loads(printed)["records"]["evaluated"] == 2


def test_a_dry_run_leaves_nothing(run: Run, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = run(*arguments(tiny_model, data, out), "--dry-run", "--train", data)
    assert code == 0
    assert "2 of 2 questions of task" in printed
    assert "at most 16 to be written" in printed
    assert not out.exists()
    code, printed, _ = run(*arguments(tiny_model, data, out), "--dry-run", "--json", "--quiet")
    assert json.loads(printed)["most_tokens"] == 16


def test_left_out_records_show_in_the_exit_code(
    run: Run, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    data.write_text(TASK + '{"prompt": "three\\n"}\n')
    code, printed, _ = run(*arguments(tiny_model, data, tmp_path / "out"), "--quiet")
    assert code == 3
    assert "1 E_NO_GOLD" in printed


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (("--no-base",), 2, "nothing to evaluate"),
        (("--few-shot", "2"), 2, "few_shot_file"),
        (("--few-shot-file", "x.jsonl"), 2, "few_shot_file"),
        (("--choice-metric", "acc_nrm"), 2, "choice_metric"),
        (("--max-new-tokens", "4000"), 2, "leaves no room"),
        (("--adapter", "nowhere"), 10, "E_ADAPTER_NOT_FOUND"),
        (("--train", "nowhere.jsonl"), 4, "does not exist"),
    ],
)
def test_mistakes_end_with_a_line_and_a_code(
    run: Run,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    extra: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    found, _, err = run(*arguments(tiny_model, data, tmp_path / "out"), *extra)
    assert (found, len(err.strip().splitlines())) == (code, 1), err
    assert said in err


def test_every_setting_is_a_flag() -> None:
    import inspect

    from fam_engine.cli.evaluate import run as command

    flags = set(inspect.signature(command).parameters)
    settings = set(EvalConfig.model_fields) - {"map"} | {"map_"}
    assert flags == settings | {"config", "dry_run", "as_json", "quiet"}
