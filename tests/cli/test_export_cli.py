from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

GOOD = '{"prompt": "one", "response": "two"}\n{"prompt": "one", "response": "three"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "selected.jsonl"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("trl", "load_dataset("),
        ("axolotl", "  message_field_training: train"),
        ("llama-factory", '    "formatting": "sharegpt",'),
    ],
)
def test_it_prints_what_the_tool_must_be_told(
    run: Run, data: Path, tmp_path: Path, name: str, told: str
) -> None:
    out = tmp_path / "out.jsonl"
    code, printed, _ = run("export", data, "--format", name, "--out", out, "--quiet")
    assert code == 0
    assert printed.startswith("2 of 2 records exported\n")
    assert told in printed
    assert len(out.read_text().splitlines()) == 2


def test_records_left_out_end_in_exit_code_3(run: Run, data: Path, tmp_path: Path) -> None:
    data.write_text(GOOD + "not json\n" * 7)
    flags = ("--format", "trl", "--out", tmp_path / "out.jsonl", "--quiet")
    code, printed, _ = run("export", data, *flags)
    assert code == 3
    assert f"left out: {data}:3: E_JSON_SYNTAX: " in printed
    assert "left out: 2 more" in printed
    code, printed, _ = run("export", "--data", data, *flags, "--json")
    assert code == 3
    assert json.loads(printed)["records"]["left_out"] == 7


@pytest.mark.parametrize(
    ("flags", "code", "starts", "named"),
    [
        (("--format", "csv"), 2, "error[E_CONFIG_VALUE]", "'trl', 'axolotl' or 'llama-factory'"),
        (("--out", "out.txt"), 2, "error[E_CONFIG_VALUE]", "needs the ending .jsonl"),
        (("--data", "nowhere.jsonl"), 4, "error[E_INPUT_FILE] nowhere.jsonl", "does not exist"),
        (("--out", "/dev/null/out.jsonl"), 5, "error[E_STORAGE]", "cannot be written"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    run: Run, data: Path, tmp_path: Path, flags: tuple[str, ...], code: int, starts: str, named: str
) -> None:
    others = {"--format": "trl", "--out": str(tmp_path / "out.jsonl")}
    rest = [part for pair in others.items() if pair[0] not in flags for part in pair]
    found, _, err = run("export", data, *rest, *flags, "--quiet")
    assert found == code
    assert err.startswith(starts)
    assert named in err
    assert err.count("\n") == 1


def test_it_needs_no_torch() -> None:
    program = "import sys, fam_engine.jobs.exporting.job; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
